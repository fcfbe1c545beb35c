"""What a training needs of memory, estimated and measured: `python benchmarks/memory.py [ROW ...]`.

Models of some 40 million weights, drawn and saved in a temporary folder, are trained for two steps
of two passes by every engine on two CPU workers, each run in fresh processes.

The estimate that `scpo train --dry-run` shows stands, part by part, beside the most memory that a
worker held above what it had when everything was imported and a network with one layer of the same
widths had been trained in the same way and let go. Its anonymous memory counts, and in training the
pages of files that are mapped into it, since a frozen base's weights are such. ROW is a part of
rows' names, such as "llama" or "ZeRO 3"; without any, all are measured.
"""

import gc
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scpo_ray.records import MemoryEstimate, Worker
    from scpo_ray.settings.train import TrainConfig

# Large blocks go back to the system at once, so that what is measured is what is held.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}

WORKERS, WORDS, TEXTS, WIDTH = 2, 4_000, 4, 64
ENGINES = [("torch", None), *((f"DeepSpeed ZeRO {stage}", stage) for stage in range(4))]
# What is set beside the engine: in `model` and in `train`.
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "": ({"dtype": "float32"}, {}),
    ", bf16": ({"dtype": "float32"}, {"precision": "bf16"}),
    ", LoRA": ({"lora": {}, "dtype": "float32"}, {}),
    ", LoRA over bfloat16": ({"lora": {}, "dtype": "bfloat16"}, {}),
}
ROWS = [
    (f"{engine}{name}", stage, settings)
    for name, settings in SETTINGS.items()
    for engine, stage in ENGINES
    if not name or stage in (None, 2, 3)
]
# Libraries make and keep kernels for the widths that they meet: those are no part of a model.
WARMING = {"num_hidden_layers": 1}
MB = 2**20
SIZES = {
    "bert": {"hidden_size": 768, "num_hidden_layers": 3, "num_attention_heads": 12}
    | {"intermediate_size": 3072},
    "llama": {"hidden_size": 768, "num_hidden_layers": 3, "num_attention_heads": 12}
    | {"num_key_value_heads": 4, "intermediate_size": 2048, "pad_token_id": 0},
    "deberta-v2": {"hidden_size": 768, "num_hidden_layers": 3, "num_attention_heads": 12}
    | {"intermediate_size": 3072, "relative_attention": True, "position_buckets": 256}
    | {"pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0},
}


def make_model(kind: str, folder: Path, **sizes: int) -> Path:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from scpo_ray.models.tiny import make_tiny_backbone

    make_tiny_backbone(folder, [f"w{number}" for number in range(WORDS - 4)], seed=0)
    sizes = {"vocab_size": WORDS, "num_labels": 1, **SIZES[kind], **sizes}
    config = AutoConfig.for_model(kind, **sizes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def held_bytes() -> tuple[int, int]:
    """This process's anonymous memory, and the pages of files that are mapped into it."""
    status = Path("/proc/self/status").read_text()
    anonymous, files = (
        1024 * int(status.partition(f"{name}:")[2].split()[0]) for name in ("RssAnon", "RssFile")
    )
    return anonymous, files


class Peak:
    """The most memory of this process above what it has now, sampled each 2 ms."""

    def __init__(self) -> None:
        self.base = held_bytes()
        self.anonymous, self.held = 0, 0
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def _sample(self) -> None:
        while not self._over.wait(0.002):
            found = zip(held_bytes(), self.base, strict=True)
            anonymous, files = (now - before for now, before in found)
            self.anonymous = max(self.anonymous, anonymous)
            self.held = max(self.held, anonymous + files)

    def stop(self) -> None:
        self._over.set()
        self._sampler.join()


def two_steps(
    folder: Path, of_model: dict[str, Any], train: "TrainConfig", worker: "Worker"
) -> tuple["MemoryEstimate", int, int]:
    """The estimate, the peak while the network is loaded, and that until it is trained."""
    import torch

    from scpo_ray.models.loading import load_reward_model
    from scpo_ray.models.rendering import load_renderer
    from scpo_ray.models.shapes import network_shape
    from scpo_ray.settings.model import ModelConfig
    from scpo_ray.training.deepspeed_engine import divided_reading
    from scpo_ray.training.engine import start_engine
    from scpo_ray.training.memory import estimate_memory

    config = ModelConfig(path=str(folder), max_length=WIDTH, renderer="pair", **of_model)
    renderer = load_renderer(folder, config)
    autocast = train.precision == "bf16"
    shape = network_shape(folder, config, texts=TEXTS, width=WIDTH, autocast=autocast)
    estimate = estimate_memory(shape, train, num_workers=WORKERS, device="cpu")
    gc.collect()
    peak = Peak()
    divided = divided_reading(train, worker) if train.zero_stage == 3 else None
    model = load_reward_model(folder, config, renderer, device="cpu", seed=0, divided=divided)
    # Pages of a file that is read and let go again are the system's.
    loaded = peak.held = peak.anonymous
    running = start_engine(model, train, worker)
    ids = torch.randint(5, WORDS, (TEXTS, WIDTH))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for _ in range(2):
        for last in (False, True):
            running.backward(running.rewards(batch).sum() / 100, last=last)
        running.step()
    peak.stop()
    return estimate, loaded, peak.held


def train_by_engine(
    rank: int,
    folders: tuple[Path, Path],
    stage: int | None,
    settings: tuple[dict[str, Any], dict[str, Any]],
    answers: "Queue[Any]",
) -> None:
    """One worker's training of the network that warms, and then of the one that is measured."""
    import torch

    from scpo_ray.records import Worker
    from scpo_ray.settings.train import TrainConfig
    from scpo_ray.workers import join_group

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    worker = Worker(rank, WORKERS, "cpu")
    join_group(worker)
    of_model, of_training = settings
    engine = {} if stage is None else {"engine": "deepspeed", "zero_stage": stage}
    train = TrainConfig(**engine, **of_training)
    for folder in folders:
        found = two_steps(folder, of_model, train, worker)
    answers.put((rank, *found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def on_workers(task: Callable[..., None], *arguments: Any) -> list[Any]:
    """Every worker's answer, by rank."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611", "WORLD_SIZE": str(WORKERS)}
    context = get_context("spawn")
    answers = context.Queue()
    processes = [
        context.Process(target=task, args=(rank, *arguments, answers)) for rank in range(WORKERS)
    ]
    for process in processes:
        process.start()
    found = sorted((answers.get(timeout=400) for _ in processes), key=lambda row: row[0])
    for process in processes:
        process.join()
    return found


def table(folder: Path, wanted: list[str]) -> None:
    print("\n| model | engine | weights | gradients | optimizer | activations | buffers", end="")
    print(" | estimate, MB | peak, MB | differs | while loading |\n|" + "---|" * 11)
    for kind in SIZES:
        rows = [row for row in ROWS if not wanted or any(w in f"{kind}, {row[0]}" for w in wanted)]
        if not rows:
            continue
        model = make_model(kind, folder / kind)
        warming = make_model(kind, folder / f"{kind}-warming", **WARMING)
        size = (model / "model.safetensors").stat().st_size / MB
        for name, stage, settings in rows:
            found = on_workers(train_by_engine, (warming, model), stage, settings)
            estimate = found[0][1]
            loading, peak = (max(row[column] for row in found) for column in (2, 3))
            parts = (
                estimate.weights,
                estimate.gradients,
                estimate.optimizer,
                estimate.activations,
                estimate.buffers,
                estimate.total,
                peak,
            )
            cells = " | ".join(f"{part / MB:.0f}" for part in parts)
            print(
                f"| {kind}, {size:.0f} MB | {name} | {cells} | {estimate.total / peak - 1:+.0%} | "
                f"{loading / MB:.0f} |",
                flush=True,
            )


def main() -> None:
    print(f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, {WORKERS} workers")
    with tempfile.TemporaryDirectory() as folder:
        table(Path(folder), sys.argv[1:])


if __name__ == "__main__":
    main()
