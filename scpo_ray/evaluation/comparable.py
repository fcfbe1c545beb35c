"""Runs that are compared: what each ranked, and whether they can stand side by side."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scpo_ray.evaluation.metrics import layer_masks, ranked_right
from scpo_ray.records import InputError, Layer
from scpo_ray.results import CultureEvaluation, RunResult
from scpo_ray.settings.evaluation import EvaluationConfig
from scpo_ray.settings.naming import trained_cultures

# Reference margins of two runs may differ by the rounding of another device, not by another model:
# by so much of their root mean square.
REF_MARGIN_TOLERANCE = 0.01


@dataclass(frozen=True)
class PairOutcomes:
    """What one model did with every test pair: a run's `test_pairs.parquet` in columns.

    Attributes:
        culture, pair_id: (P,) text.
        cluster: (P,) int64, the user or question, the same number in all runs on one data set.
        ref_margin: (P,) float32, the global model's r+ - r-, or None where there is none.
        margin: (P,) float32, the trained model's.
        pair_hash: (P,) uint64 of the two texts in order (`pair_hashes`); None of pairs that an
            earlier version wrote.
    """

    culture: NDArray[Any]
    pair_id: NDArray[Any]
    cluster: NDArray[Any]
    ref_margin: NDArray[np.float32] | None
    margin: NDArray[np.float32]
    pair_hash: NDArray[np.uint64] | None = None

    @cached_property
    def tested(self) -> frozenset[str]:
        """The cultures that have a pair."""
        return frozenset(self.culture)


def pair_outcomes(
    columns: Mapping[str, NDArray[Any]], like: PairOutcomes | None = None
) -> PairOutcomes:
    """From the columns of `run_dir.load_test_pairs`.

    Args:
        like: a run on the same pairs: what equals its columns is kept once, for both. Thousands
            of runs are told apart by their margins alone.

    Raises: InputError if one is missing or a margin is NaN or infinite.
    """
    missing = {"culture", "pair_id", "cluster", "margin"} - columns.keys()
    if missing:
        raise InputError(f"test pairs without {', '.join(sorted(missing))}")
    for name in sorted(columns.keys() & {"margin", "ref_margin"}):
        if not np.isfinite(columns[name]).all():
            raise InputError(f"test pairs with a {name} that is not finite")
    kept: dict[str, NDArray[Any] | None] = {}
    for name in ("culture", "pair_id", "cluster", "ref_margin", "pair_hash"):
        ours, theirs = columns.get(name), getattr(like, name, None)
        is_known = ours is not None and theirs is not None and np.array_equal(ours, theirs)
        kept[name] = theirs if is_known else ours
    # Copied: a view would keep the whole table that it was read from.
    return PairOutcomes(**kept, margin=columns["margin"].copy())  # type: ignore[arg-type]


def for_comparison(
    result: RunResult, *, is_shown: bool, like: RunResult | None = None
) -> RunResult:
    """What a comparison and its page need of a run's result: thousands are in memory at once.

    Of the cultures it was trained for all is kept; of the others what the matrix of trained and
    tested cultures shows, accuracy on `all` and its difference from the global model's.

    Args:
        is_shown: whether the run is in that matrix (of several seeds the lowest is); else nothing
            is kept of the other cultures, and no answer shares.
        like: another run on the same data, whose counts are kept once for both.
    """
    own = set(trained_cultures(result.culture_weights))
    return replace(
        result,
        data=like.data if like is not None and like.data == result.data else result.data,
        evaluation={
            culture: found if culture in own else _on_all_alone(found)
            for culture, found in result.evaluation.items()
            if is_shown or culture in own
        },
        dev={c: found for c, found in result.dev.items() if c in own},
        calibration={c: found for c, found in result.calibration.items() if c in own},
        best_of_n={c: found for c, found in result.best_of_n.items() if c in own},
        opinions=result.opinions if is_shown else [],
    )


def _on_all_alone(found: CultureEvaluation) -> CultureEvaluation:
    return CultureEvaluation(
        before={},
        after={layer: e for layer, e in found.after.items() if layer == "all"},
        difference={layer: d for layer, d in found.difference.items() if layer == "all"},
        controls={},
    )


@dataclass(frozen=True)
class ComparedRun:
    """A finished run and the culture it was trained for (for "global": it stands in for).

    `culture` is "" for one model of a mixture, which a sweep measures on every culture.
    `opinions`: the columns of `run_dir.load_test_opinions`.
    """

    result: RunResult
    culture: str
    outcomes: PairOutcomes
    opinions: Mapping[str, NDArray[Any]] | None = None

    @property
    def name(self) -> str:
        return f"{self.result.method}/{self.culture or 'mixture'}/seed {self.result.seed}"


@dataclass(frozen=True)
class CulturePairs:
    """One culture's test pairs, the same in every run.

    `rows`: where they stand in a run's columns; `clusters`: (P_c,) codes, alike over cultures;
    `masks`: layer -> (P_c,); `ref_outcomes`: (P_c,) of the global model, or None.
    """

    rows: NDArray[np.int64]
    clusters: NDArray[np.int64]
    masks: dict[Layer, NDArray[np.bool_]]
    ref_outcomes: NDArray[np.bool_] | None


def check_comparable(run: ComparedRun, first: ComparedRun) -> None:
    """Whether both were tested on the same pairs in the same order, in the same way.

    Raises: ValueError naming the two runs and what sets them apart, or the run whose trained
        culture is not among those it was tested on.
    """
    check_same_evaluation(run, first)
    ours, theirs = run.outcomes, first.outcomes
    both = f"{first.name} and {run.name}"
    tested = theirs.tested if ours.culture is theirs.culture else ours.tested
    if run.culture and run.culture not in tested:
        raise ValueError(f"{run.name} was not tested on {run.culture!r}")
    difference = pairs_difference(theirs, ours)
    if difference is not None:
        raise ValueError(f"{both} differ in {difference}")


def pairs_difference(first: PairOutcomes, second: PairOutcomes) -> str | None:
    """What two models' test pairs differ in; None where they are the same ones in one order."""
    if not all(
        _are_equal(getattr(first, name), getattr(second, name))
        for name in ("culture", "pair_id", "cluster")
    ):
        return f"their pairs: {_first_difference(first, second)}"
    ours, theirs = first.pair_hash, second.pair_hash
    if ours is not None and theirs is not None and not _are_equal(ours, theirs):
        row = int(np.flatnonzero(ours != theirs)[0])
        return (
            f"their texts: in {int((ours != theirs).sum())} of {len(ours)} pairs these are others, "
            f"or the other one is chosen; the first is {first.pair_id[row]!r} of "
            f"{first.culture[row]!r}"
        )
    if first.ref_margin is None and second.ref_margin is None:
        return None
    if first.ref_margin is None or second.ref_margin is None:
        return "their global model: only one has its margins"
    return _margins_difference(first.ref_margin, second.ref_margin)


def _are_equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    # Thousands of runs share columns (`pair_outcomes`), which then need no look at each row.
    return one is other or np.array_equal(one, other)


def _margins_difference(first: NDArray[np.float32], second: NDArray[np.float32]) -> str | None:
    if first is second or not len(first):
        return None
    size = float(np.sqrt(np.mean(np.square(first, dtype=np.float64))))
    change = float(np.abs(first - second).max())
    if change <= REF_MARGIN_TOLERANCE * size:
        return None
    return f"their global model: margins by up to {change:.3g}, and their usual size is {size:.3g}"


def check_same_evaluation(run: ComparedRun, first: ComparedRun) -> None:
    """Whether two runs, perhaps on other pairs, were tested in the same way.

    Raises: ValueError naming the two, if their evaluation settings differ or only one of them has
        a global model's margins.
    """
    both = f"{first.name} and {run.name}"
    if evaluation_settings(run) != evaluation_settings(first):
        raise ValueError(f"{both} differ in their evaluation settings")
    if (run.outcomes.ref_margin is None) != (first.outcomes.ref_margin is None):
        raise ValueError(f"of {both} only one has a global model's margins")


def _first_difference(first: PairOutcomes, second: PairOutcomes) -> str:
    rows = (
        zip(*(c.tolist() for c in (columns.culture, columns.pair_id, columns.cluster)), strict=True)
        for columns in (first, second)
    )
    for number, (one, other) in enumerate(zip_longest(*rows)):
        if one != other:
            shown = ["no pair" if row is None else " ".join(map(repr, row)) for row in (one, other)]
            return f"row {number} is {shown[0]} and {shown[1]} (culture, pair, cluster)"
    return "they hold values of different types"


def evaluation_settings(run: ComparedRun) -> EvaluationConfig:
    """How the run was tested, from its result's config."""
    return EvaluationConfig.model_validate(run.result.config["evaluation"])


def right(margins: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(P,) whether each pair is ranked right, from r+ - r-.

    Raises: ValueError if a margin is NaN or infinite.
    """
    return ranked_right(margins, np.zeros_like(margins))


def culture_pairs(outcomes: PairOutcomes, settings: EvaluationConfig) -> dict[str, CulturePairs]:
    """Tested culture -> its pairs, in the order of the columns; clusters are coded over all."""
    _, clusters = np.unique(outcomes.cluster, return_inverse=True)
    tested = {}
    for culture in dict.fromkeys(outcomes.culture):
        rows = np.flatnonzero(outcomes.culture == culture)
        masks: dict[Layer, NDArray[np.bool_]] = {"all": np.ones(len(rows), dtype=np.bool_)}
        ref_outcomes = None
        if outcomes.ref_margin is not None:
            margins = outcomes.ref_margin[rows]
            ref_outcomes = right(margins)
            masks = layer_masks(
                margins,
                np.zeros_like(margins),
                distinctive_threshold=settings.distinctive_threshold,
            )
        tested[str(culture)] = CulturePairs(rows, clusters[rows], masks, ref_outcomes)
    return tested
