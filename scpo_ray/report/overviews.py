"""What the commands show before and beside runs: a data set, scores, plans, costs."""

from dataclasses import dataclass, field
from typing import Literal

from scpo_ray.records import CultureCounts


@dataclass(frozen=True)
class DataHealth:
    """What `scpo data` shows.

    `truncated_texts`: culture -> texts cut at the maximum length; None without a tokenizer.
    `refusals`: why nothing can be trained with these settings, if so. `detectable`: culture -> the
    smallest difference of accuracy that its test pairs could show between two models that differ
    on 20 % of them (`intervals.detectable_difference`); None with fewer than two users.
    """

    counts: dict[str, CultureCounts]
    truncated_texts: dict[str, int] | None
    max_length: int
    warnings: list[str]
    fingerprint: str
    detectable: dict[str, float | None] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CultureScores:
    """What the global model says of one culture's training pairs."""

    num_pairs: int
    accuracy: float
    mean_margin: float
    """Reward units."""
    kept_share: float
    """Share of the pairs below the filter threshold."""


@dataclass(frozen=True)
class GlobalScores:
    cultures: dict[str, CultureScores]
    filter_threshold: float | None
    num_texts: int
    path: str


@dataclass(frozen=True)
class PlannedRun:
    """What a run would do. `seconds`: steps timed here and now, times their number."""

    name: str
    num_train_pairs: int
    num_selected: int
    num_steps: int
    epochs: float
    num_tokens: int
    seconds: float


@dataclass(frozen=True)
class SweepCost:
    """What `scpo sweep --dry-run` shows. `seconds`: of training, one trial at a time, from steps
    timed here and now and `num_sampled` trials spread over the sweep; None where nothing trains."""

    name: str
    num_settings: int
    num_trials: int
    num_ended: int
    num_sampled: int
    seconds: float | None
    axes: dict[str, int]
    """Axis -> how many values it has in the sweep."""


@dataclass(frozen=True)
class Finding:
    """What `scpo doctor` saw of one thing. `remedy`: what to do, or what it matters for."""

    what: str
    found: str
    verdict: Literal["fine", "note", "fault"] = "fine"
    remedy: str = ""
