"""The mean of saved models' weights: a way to fit."""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scpo_ray.methods.task import FitContext, Fitted, PreparedRun
from scpo_ray.models.adapters import merged_adapters
from scpo_ray.models.export import load_exported, save_reward_model
from scpo_ray.models.merging import summed_model
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.models.scoring import score_tokens
from scpo_ray.records import InputError
from scpo_ray.results import TrainingCurve
from scpo_ray.settings.model import ModelConfig
from scpo_ray.storage.disk import check_folder, whole_folder
from scpo_ray.training.loop import TrainingSummary
from scpo_ray.workers import from_first

log = logging.getLogger(__name__)


def fit_mean(prepared: PreparedRun, context: FitContext, folders: Sequence[Path]) -> Fitted:
    """Averages, saves and scores; adapters are folded into their weights before.

    Raises: InputError naming a folder that is no model saved here, is damaged, or whose weights or
        rendering are not those of the others.
    """
    task = prepared.task

    def averaged() -> tuple[NDArray[np.float32], TrainingSummary]:
        started = time.monotonic()
        model = mean_model(folders, device=task.worker.device, config=task.config.model)
        if model.renderer.fingerprint != task.base.renderer.fingerprint:
            raise InputError(
                f"{folders[0]}: renders texts in another way than model.path",
                ["its tokenizer, renderer and max_length must be those of the run's global model"],
            )
        with whole_folder(context.run_dir.model_dir) as folder:
            save_reward_model(model, folder)
        rewards = score_tokens(model, task.tokens)
        seconds = time.monotonic() - started
        return rewards, TrainingSummary(0, 0, seconds, TrainingCurve())

    rewards, summary = from_first(averaged, task.worker)
    names = ", ".join(
        folder.parent.name if folder.name == "model" else folder.name for folder in folders
    )
    told = f"The mean of {len(folders)} models' weights: {names}."
    return Fitted(lambda texts: rewards[texts], summary, (told,))


def mean_model(folders: Sequence[Path], *, device: str, config: ModelConfig) -> RewardModel:
    """A model whose every weight is the mean of the folders' models'. Raises: as `fit_mean`."""
    renderer: str | None = None

    def read() -> Iterator[tuple[RewardModel, float]]:
        nonlocal renderer
        for folder in folders:
            model = _whole(folder, device, config)
            if renderer not in (None, model.renderer.fingerprint):
                raise InputError(f"{folder}: renders texts in another way than {folders[0]}")
            renderer = model.renderer.fingerprint
            yield model, 1 / len(folders)

    try:
        mean = summed_model(read())
    except ValueError as error:
        named = ", ".join(map(str, folders))
        raise InputError("methods.soup.models: no mean of these", [str(error), named]) from None
    log.info("the mean of %d models: %s", len(folders), ", ".join(map(str, folders)))
    return mean


def _whole(folder: Path, device: str, config: ModelConfig) -> RewardModel:
    check_folder(folder, "the command that made it makes it again")
    model = load_exported(folder, device=device, config=config)
    has_adapters = hasattr(model.network, "merge_and_unload")
    return merged_adapters(model) if has_adapters else model
