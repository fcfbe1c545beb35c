"""What ZeRO 3 gathers in bf16, and what that costs: `python benchmarks/gathers.py [KIND ...]`.

The drawn models of benchmarks/memory.py are trained under `train.precision: bf16` by ZeRO 3 on two
CPU workers, 8 texts of 128 tokens on each, by turns with all weights gathered in float32 and with
linear layers' weights gathered in bf16 (as the engine does). The bytes are those that a worker's
collectives put out in a step, the CPU time is a worker's own; the losses have to be equal.
"""

import json
import os
import platform
import sys
import tempfile
import time
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from memory import MB, SIZES, WORDS, WORKERS, make_model, on_workers

TEXTS, WIDTH, ROUNDS = 8, 128, 3
# A list of the user's own stands in place of ours: layers that no text model has.
WHOLE = {"torch_autocast": {"lower_precision_safe_modules": ["torch.nn.Conv3d"]}}


class Gathered:
    """Bytes that have been gathered on this worker, counted in the collective."""

    def __init__(self) -> None:
        import deepspeed.comm

        self.bytes = 0
        self._gather = deepspeed.comm.allgather_fn
        deepspeed.comm.allgather_fn = self._counting

    def _counting(self, output: Any, *arguments: Any, **more: Any) -> Any:
        self.bytes += output.nbytes
        return self._gather(output, *arguments, **more)


def train_by_turns(rank: int, folder: Path, answers: "Queue[Any]") -> None:
    """Into `answers`: of each way the bytes, CPU seconds and loss of every step."""
    import torch

    from scpo_ray.models.loading import load_reward_model
    from scpo_ray.models.rendering import load_renderer
    from scpo_ray.records import Worker
    from scpo_ray.settings.model import ModelConfig
    from scpo_ray.settings.train import TrainConfig
    from scpo_ray.training.deepspeed_engine import divided_reading
    from scpo_ray.training.engine import start_engine
    from scpo_ray.workers import join_group

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    worker = Worker(rank, WORKERS, "cpu")
    join_group(worker)
    config = ModelConfig(path=str(folder), max_length=WIDTH, renderer="pair", dtype="float32")
    renderer = load_renderer(folder, config)
    engines = []
    for more in (folder / "whole.json", None):
        train = TrainConfig(
            engine="deepspeed", zero_stage=3, precision="bf16", dropout=False, deepspeed_config=more
        )
        divided = divided_reading(train, worker)
        model = load_reward_model(folder, config, renderer, device="cpu", seed=0, divided=divided)
        engines.append(start_engine(model, train, worker))
    ids = torch.randint(5, WORDS, (TEXTS, WIDTH), generator=torch.Generator().manual_seed(rank))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    counted = Gathered()
    rows: list[list[tuple[int, float, float]]] = [[], []]
    # The first step records the order of layers and is not like the others.
    for _ in range(ROUNDS + 1):
        for engine, row in zip(engines, rows, strict=True):
            bytes_before, start = counted.bytes, time.process_time()
            loss = engine.rewards(batch).square().mean() / WORKERS
            engine.backward(loss, last=True)
            engine.step()
            spent = time.process_time() - start
            row.append((counted.bytes - bytes_before, spent, float(loss.detach())))
    answers.put((rank, [row[1:] for row in rows]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def table(folder: Path, kinds: list[str]) -> None:
    print("\n| model | gathered | MB a step | CPU s a step | bytes | CPU time |\n|" + "---|" * 6)
    for kind in kinds:
        model = make_model(kind, folder / kind)
        (model / "whole.json").write_text(json.dumps(WHOLE))
        whole, rounded = on_workers(train_by_turns, model)[0][1]
        if [row[2] for row in whole] != [row[2] for row in rounded]:
            raise SystemExit(f"{kind}: the losses differ: {whole} and {rounded}")
        ratios = [after[1] / before[1] for before, after in zip(whole, rounded, strict=True)]
        compared = f"{rounded[0][0] / whole[0][0]:.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
        for name, rows, cells in (("float32", whole, "1.00 | 1.00"), ("bf16", rounded, compared)):
            seconds = ", ".join(f"{row[1]:.2f}" for row in rows)
            print(f"| {kind} | {name} | {rows[0][0] / MB:.0f} | {seconds} | {cells} |", flush=True)


def main() -> None:
    print(f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, {WORKERS} workers")
    with tempfile.TemporaryDirectory() as folder:
        table(Path(folder), sys.argv[1:] or list(SIZES))


if __name__ == "__main__":
    main()
