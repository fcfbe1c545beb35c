"""What the commands show before and beside runs: a data set, scores, plans, costs."""

from dataclasses import dataclass, field
from typing import Literal

from scpo_ray.records import CultureCounts, MemoryEstimate
from scpo_ray.results import MarginLook


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
    margins: MarginLook
    """What other values of tau and beta would do."""


@dataclass(frozen=True)
class GlobalScores:
    """What `scpo score` shows.

    `filter_threshold`, `weight_temperature`: of the settings; None where there is no filter, or a
    run is to choose.
    """

    cultures: dict[str, CultureScores]
    filter_threshold: float | None
    weight_temperature: float | None
    num_texts: int
    path: str


@dataclass(frozen=True)
class PlannedRun:
    """What a run would do. `seconds`: steps timed here and now, times their number; `memory`: of
    each worker, where it was asked for and a network is trained."""

    name: str
    num_train_pairs: int
    num_selected: int
    num_steps: int
    epochs: float
    num_tokens: int
    seconds: float
    memory: MemoryEstimate | None = None


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


@dataclass(frozen=True)
class FileScores:
    """What a file's scoring found.

    `subsets`: of RewardBench 2, column -> subset -> its score (the share of prompts whose best
    completion is right; for Ties a rule of its own) and number of prompts.
    """

    output: str
    num_rows: int
    columns: list[str]
    subsets: dict[str, dict[str, tuple[float, int]]]


@dataclass(frozen=True)
class JudgedPrompt:
    """A prompt with K candidate responses, and what each judge says of them.

    Attributes:
        place: where it was read.
        values: judge -> what each candidate is worth to it; to a culture and in a linear mixture or
            the worst off in standard deviations, in a mixture of people a share.
        picks: judge -> place of its candidate.
        parted: see `evaluation.picks.loss_to_others`.
    """

    place: str
    turns: list[tuple[str, str]]
    responses: list[str]
    values: dict[str, list[float]]
    picks: dict[str, int]
    parted: float


@dataclass(frozen=True)
class Steering:
    """What cultures and mixtures would pick of a file's candidates.

    Attributes:
        judges: cultures, then mixtures. agreement: judge -> judge -> share of the prompts for which
            both pick the same.
        num_parted: prompts for which not all pick the same.
        examples: those that part the judges most, the furthest first.
        truncated: responses that a model read cut.
    """

    judges: list[str]
    num_prompts: int
    num_parted: int
    agreement: dict[str, dict[str, float]]
    examples: list[JudgedPrompt]
    truncated: int
