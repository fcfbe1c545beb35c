"""What of a step could be done beside it: `python benchmarks/step_overheads.py MODEL`.

Two CPU workers train all weights of the encoder in the folder MODEL in float32, 8 pairs a step of
texts of 100 tokens on average, by turns as the package does and with PyTorch's
DistributedDataParallel, which sums gradients in buckets while the backward pass runs. Shares are of
the CPU time of a worker's step: of making its batch (the plan's division, tokens into tensors), and
of summing gradients after the backward pass. The losses have to be the same.
"""

import os
import platform
import sys
import time
from dataclasses import replace
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np
from adapters_together import drawn_texts
from memory import WORKERS, on_workers

PAIRS, STEPS = 8, 4


class Clock:
    """CPU seconds of this process, by what they went into."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def of(self, name: str, call: Any, *arguments: Any) -> Any:
        started = time.process_time()
        value = call(*arguments)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started
        return value


def train_by_turns(rank: int, folder: Path, answers: "Queue[Any]") -> None:
    """Into `answers`: each step's CPU seconds both ways, of ours by part, and the losses."""
    import torch
    from torch.nn.functional import softplus
    from torch.nn.parallel import DistributedDataParallel

    from scpo_ray.models.loading import load_reward_model
    from scpo_ray.models.rendering import load_renderer
    from scpo_ray.records import ALONE, Worker
    from scpo_ray.settings.model import ModelConfig
    from scpo_ray.settings.train import TrainConfig
    from scpo_ray.training.engine import TorchEngine
    from scpo_ray.training.plan import plan_steps
    from scpo_ray.workers import join_group

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    worker = Worker(rank, WORKERS, "cpu")
    join_group(worker)
    config = ModelConfig(path=str(folder), new_head=True, max_length=256)
    renderer = load_renderer(folder, config)
    models = [load_reward_model(folder, config, renderer, device="cpu", seed=0) for _ in range(2)]
    train = TrainConfig(dropout=False, max_steps=STEPS, batch_size=PAIRS)
    # The second one's gradients are summed by PyTorch, in place of the engine.
    ours, theirs = TorchEngine(models[0], train, worker), TorchEngine(models[1], train, ALONE)
    parallel = DistributedDataParallel(theirs.model.scored)
    tokens = drawn_texts(2 * PAIRS * STEPS, models[0].network.config.vocab_size)
    plan = plan_steps(
        np.arange(2 * PAIRS * STEPS).reshape(-1, 2),
        tokens.lengths,
        batch_size=PAIRS,
        num_steps=STEPS,
        micro_batch_tokens=2_048,
        num_workers=WORKERS,
        seed=0,
    )
    steps = replace(plan, in_rows=models[0].in_rows).steps_from(0)

    def loss_of(rewards: Any, batch: Any) -> Any:
        pairs = rewards[torch.from_numpy(batch.pairs)]
        return softplus(pairs[:, 1] - pairs[:, 0]).sum() / PAIRS

    def our_pass(inputs: Any, batch: Any) -> float:
        loss = loss_of(ours.rewards(inputs), batch)
        ours.backward(loss, last=True)
        return float(loss.detach())

    def their_pass(inputs: Any, batch: Any) -> float:
        loss = loss_of(parallel(**inputs), batch)
        (loss * WORKERS).backward()  # the mean over workers is what it takes
        return float(loss.detach())

    rows = []
    for _ in range(STEPS):
        clock = Clock()
        ours._sum_gradients = partial(clock.of, "sums", partial(TorchEngine._sum_gradients, ours))
        step = clock.of("batches", next, steps)
        (batch,) = step.micro_batches(rank)
        inputs = clock.of("batches", ours.model.batch, tokens, batch.texts)
        loss = clock.of("ours", our_pass, inputs, batch)
        clock.of("ours", ours.step)
        other = clock.of("theirs", their_pass, inputs, batch)
        clock.of("theirs", theirs.step)
        rows.append((clock.seconds, loss, other))
    answers.put((rank, rows))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def main() -> None:
    rows = on_workers(train_by_turns, Path(sys.argv[1]))[0][1][1:]
    difference = max(abs(ours - theirs) for _, ours, theirs in rows)
    if difference > 1e-5:
        raise SystemExit(f"the losses differ by {difference:.1e}")
    print(f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, {WORKERS} workers\n")
    print("| step, CPU s | of it batches | of it sums after the pass | by buckets, CPU s | times |")
    print("|---|---|---|---|---|")
    for seconds, _, _ in rows:
        whole = seconds["batches"] + seconds["ours"]
        batches, sums = seconds["batches"] / whole, seconds["sums"] / whole
        theirs = seconds["theirs"] + seconds["batches"]
        cells = f"{whole:.2f} | {batches:.2%} | {sums:.1%} | {theirs:.2f} | {whole / theirs:.2f}"
        print(f"| {cells} |")


if __name__ == "__main__":
    main()
