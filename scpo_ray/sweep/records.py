"""The nouns of a sweep: what its chapters hand to each other. Frozen, and without behaviour."""

from dataclasses import dataclass
from typing import Any, Literal

from scpo_ray.records import HeldOut
from scpo_ray.results import Difference, Estimate, Verdict

TrialState = Literal["waiting", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Setting:
    """One point of a sweep's space but for the culture: what is compared with the other points.

    `values`: axis -> the value it has here, as JSON can hold it (a bundle's name for a bundle).
    `label`: them in one line. Two settings of a sweep never have the same values.
    """

    number: int
    values: dict[str, Any]
    label: str


@dataclass(frozen=True)
class TrialRecord:
    """One run of a sweep: a setting, a culture, a seed and perhaps a fold.

    `trial_id`: hash of the resolved run and of the data and model it found. `culture`: what the
    run is trained for; "" where the space names none (one model for all). `objective`: the
    objective on this run's own dev pairs (test pairs without dev users), in [0, 1]; None where
    there is no such number.
    """

    trial_id: str
    run_id: str
    setting: int
    culture: str
    seed: int
    fold: int | None
    state: TrialState
    reused: bool
    """Whether it had ended before this sweep asked for it."""
    objective: float | None
    num_steps: int
    num_pairs: int
    """Training pairs selected, over all cultures of the run."""
    train_seconds: float
    path: str
    """The run's folder."""
    mlflow_run_id: str
    """"" where nothing is tracked there."""
    error: str
    """What went wrong or why it was stopped; "" otherwise."""


@dataclass(frozen=True)
class SettingSummary:
    """What the finished runs of one setting reached, seeds averaged and folds put together.

    Keys of `accuracy` are cultures, "" for the macro mean over them, then layers. The macro mean,
    `objective` and the differences are there only if every culture of the sweep has its runs.
    `minus_best`: paired, on the objective, its interval holding for all settings at once; None for
    the best itself (`intervals.standing` has the word for it). `minus_global`: on the layer
    "all", macro. `objective_per_culture` leaves out cultures without a number.
    """

    setting: Setting
    num_finished: int
    num_failed: int
    num_stopped: int
    accuracy: dict[str, dict[str, Estimate]]
    other_cultures: Estimate | None
    """Accuracy on `all` of the cultures the models were not trained for; None with one model."""
    objective: Estimate | None
    objective_per_culture: dict[str, float]
    minus_best: Difference | None
    minus_global: Difference | None
    seed_sd: float | None
    """Standard deviation over seeds of the objective; None with one seed."""
    kept_share: float | None
    """Mean share of the training pairs selected; 0 for a method that trains nothing."""
    num_pairs: float | None
    """Mean number of training pairs selected per run."""


@dataclass(frozen=True)
class EfficiencyPoint:
    """A method at one data fraction: mean training pairs selected per run, and the objective."""

    fraction: float
    num_pairs: float
    objective: Estimate


@dataclass(frozen=True)
class EfficiencyCurve:
    """A method's objective by data fraction, and the pairs it needs to match a rival.

    `name`: the values of the other axes in one line. `pairs_to_match`: selected training pairs at
    which the curve first reaches what the rival has at its largest fraction, as a share of the
    rival's pairs there: value, low, high over resampled clusters (infinite where it never does).
    """

    name: str
    points: list[EfficiencyPoint]
    rival: str
    pairs_to_match: tuple[float, float, float] | None
    rival_learned: Verdict
    """The rival with all its users against the rival with the fewest: unless it is better there is
    nothing to match, for a curve that stays flat is reached anywhere."""

    is_at_most: bool
    """Whether the curve's first point suffices: fewer pairs might, too."""


@dataclass(frozen=True)
class SweepResult:
    """A sweep's table: `sweep_result.json` in its folder, from which the report is made."""

    format: Literal[2]
    name: str
    experiment: str
    question: str
    """The first lines of the sweep file's header."""
    objective: dict[str, str]
    """`metric` (a layer), `culture` ("macro", "worst" or a name) and `mode` (max or min)."""
    axes: list[str]
    """The dotted settings that vary (with "culture" and bundles' names), in the file's order."""
    cultures: list[str]
    """Those the runs are trained for, or tested on where the space names none."""
    seeds: list[int]
    num_folds: int | None
    measured_on: HeldOut
    """Whose pairs all numbers are from, but for `chosen_honestly` and `chosen_minus_global`: dev,
    so that test users have no part in any choice; test where nobody is held out for choices."""
    settings: list[SettingSummary]
    """Best objective first; those without one last."""
    trials: list[TrialRecord]
    importance: dict[str, float]
    """Axis -> share of the objective's variance between settings that it explains alone."""
    pareto: list[int]
    """Numbers of the settings that no other beats on both `distinctive` and `agreed`."""
    best_trials: dict[str, str]
    """Culture -> id of the finished trial to register: of the best setting there, lowest seed."""
    chosen_honestly: Estimate | None
    """What the choice is worth on users (or questions) that had no part in it. Measured on dev: the
    objective of the best setting on test users; with folds, in each fold that of its own best.
    Measured on test: of the setting chosen on half of the clusters, on the other half, mean over 20
    random halvings."""
    chosen_minus_global: Difference | None
    """The same choice on test users minus the global model, on all pairs, macro mean; None where
    it is from halvings."""
    efficiency: list[EfficiencyCurve]
