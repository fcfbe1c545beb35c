"""What methods are given and what they give back."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scpo_ray.models.global_model import GlobalModel
from scpo_ray.records import Pairs, PreferenceData, Tokens, Worker
from scpo_ray.results import ChosenSelection
from scpo_ray.settings.naming import trained_cultures
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.run_dir import RunDir
from scpo_ray.tracking.trackers import Tracker
from scpo_ray.training.loop import TrainingSummary
from scpo_ray.training.plan import Plan


@dataclass(frozen=True)
class Task:
    """What there is to learn, and from what.

    `ref_rewards`: (T,) the global model's, None with a new head. `culture_weights`: culture ->
    weight, all of the data's where the settings name none. `train_pairs`: those of the cultures
    that the method learns from.
    """

    config: RunConfig
    data: PreferenceData
    tokens: Tokens
    base: GlobalModel
    worker: Worker
    ref_rewards: NDArray[np.float32] | None
    culture_weights: dict[str, float]
    train_pairs: Pairs

    @property
    def settings(self) -> Any:
        """The method's own section; None if it has none."""
        return self.config.own_settings

    @property
    def trained_cultures(self) -> list[str]:
        return trained_cultures(self.culture_weights)

    @property
    def ref_pair_rewards(self) -> tuple[Tensor, Tensor]:
        """(P,) the global model's rewards of each training pair's chosen and rejected response.

        Raises: ValueError if there is no global model.
        """
        if self.ref_rewards is None:
            raise ValueError("this method selects by a global model's rewards, and there are none")
        pairs = self.train_pairs
        chosen, rejected = self.ref_rewards[pairs.chosen], self.ref_rewards[pairs.rejected]
        return torch.from_numpy(chosen), torch.from_numpy(rejected)


@dataclass(frozen=True)
class Selection:
    """Over P training pairs: `keep` (P,) bool, `weights` (P,) float32 (also of dropped pairs).

    `chosen`: what stood for "auto" in the settings; None where nothing did.
    """

    keep: Tensor
    weights: Tensor
    chosen: ChosenSelection | None = None


def every_pair(task: Task) -> Selection:
    """All training pairs, each counting 1."""
    num_pairs = len(task.train_pairs)
    return Selection(torch.ones(num_pairs, dtype=torch.bool), torch.ones(num_pairs))


@dataclass(frozen=True)
class PreparedRun:
    """All that is decided before the first gradient; making it finds every fault of the input.

    `selection` speaks of all of the task's pairs, `rows` are the kept ones, `weights`
    (len(rows),) what each counts with its culture's weight. `plan` is None for a method that does
    not train the network.
    """

    task: Task
    selection: Selection
    rows: NDArray[np.int64]
    weights: NDArray[np.float32]
    plan: Plan | None

    @cached_property
    def kept_pairs(self) -> Pairs:
        """The pairs that the plan's rows stand for."""
        return self.task.train_pairs.take(self.rows)


@dataclass(frozen=True)
class Midway:
    """What a sweep wants to know before the end: after which steps, and who is told what.

    `tell` gets the step and culture -> layer -> share of the pairs ranked right that choices are
    made on (`PreferenceData.choice_pairs`).
    """

    steps: frozenset[int]
    tell: Callable[[int, dict[str, dict[str, float]]], None]


@dataclass(frozen=True)
class FitContext:
    """Where a fit leaves what it makes, and who hears of it."""

    run_dir: RunDir
    tracker: Tracker
    midway: Midway | None


@dataclass(frozen=True)
class Fitted:
    """What a method made.

    Attributes:
        rewards: from (n,) texts to their (n,) rewards; every worker calls it alike.
        summary: of the training.
        told: sentences about this fit for the report.
        makes_model: whether a model of its own was saved in the run's folder.
    """

    rewards: Callable[[NDArray[np.int64]], NDArray[np.float32]]
    summary: TrainingSummary
    told: tuple[str, ...] = ()
    makes_model: bool = True
