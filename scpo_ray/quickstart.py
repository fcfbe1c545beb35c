"""The whole system on generated data in 90 s: a global model, six methods, three cultures."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from scpo_ray.data.synthetic import SyntheticConfig, best_accuracy, vocabulary
from scpo_ray.launch.runs import compare, start_run
from scpo_ray.models.tiny import make_tiny_backbone
from scpo_ray.results import ComparisonResult
from scpo_ray.settings.comparison import ComparisonConfig, SpaceConfig
from scpo_ray.settings.model import ModelConfig
from scpo_ray.settings.run import RunConfig
from scpo_ray.settings.selection import SelectionConfig
from scpo_ray.settings.train import TrainConfig
from scpo_ray.storage.disk import whole_folder
from scpo_ray.storage.run_dir import trained_model_dir

MAJORITY = "Majority"
CULTURES = ("North", "South", "East")


@dataclass(frozen=True)
class Quickstart:
    """What the quickstart made; `best`: culture -> the best accuracy anyone could reach."""

    comparison: ComparisonResult
    folder: Path
    mlflow_uri: str
    best: dict[str, float]


@contextmanager
def _one_thread() -> Iterator[None]:
    """A model this small gains nothing from more threads: 90 s with one and with two, which wait
    for each other where other programs run: nine minutes in place of three beside two of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def quickstart(output_dir: Path) -> Quickstart:
    """Trains a global model on the majority, then compares the six methods on three cultures.

    The global model learns from the majority's people alone; every culture is then taught to it
    by each method. Everything is written below `output_dir`; a second call finds it done.
    """
    backbone = output_dir / "tiny-backbone"
    if not backbone.is_dir():
        with whole_folder(backbone) as folder:
            make_tiny_backbone(folder, vocabulary(), seed=0)
    _, global_run = start_run(
        RunConfig(
            experiment="quickstart-global",
            method="finetune",
            output_dir=output_dir,
            culture_weights={MAJORITY: 1.0},
            data=_people(None),
            model=ModelConfig(path=str(backbone), max_length=48, new_head=True),
            train=TrainConfig(
                batch_size=32, max_steps=400, learning_rate=2e-3, warmup_steps=20, dropout=False
            ),
        )
    )
    global_model = output_dir / "global-model"
    if not global_model.is_dir():
        # Under a name that sweeps/smoke.yaml can give.
        with whole_folder(global_model) as folder:
            shutil.copytree(trained_model_dir(global_run), folder, dirs_exist_ok=True)
    data = _people(list(CULTURES))
    comparison = ComparisonConfig(
        run=RunConfig(
            experiment="quickstart",
            output_dir=output_dir,
            data=data,
            model=ModelConfig(path=str(global_model), max_length=48),
            selection=SelectionConfig(filter_threshold=0.7),
            train=TrainConfig(batch_size=32, max_steps=100, learning_rate=5e-4, dropout=False),
        ),
        space=SpaceConfig(),
    )
    summary, folder = compare(comparison)
    return Quickstart(summary, folder, comparison.run.mlflow_uri, best_accuracy(data))


def _people(cultures: list[str] | None) -> SyntheticConfig:
    """The same people for both chapters; the cultures' tastes lie half way from the majority's."""
    return SyntheticConfig(
        source="synthetic",
        cultures=cultures,
        users={MAJORITY: 120, **dict.fromkeys(CULTURES, 80)},
        interactions_per_user=8,
        taste_distance=0.5,
    )
