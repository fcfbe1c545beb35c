"""What each setting of a sweep reaches: all of them measured in the same resamples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scpo_ray.evaluation.comparable import CulturePairs
from scpo_ray.evaluation.comparison import MACRO
from scpo_ray.records import Layer
from scpo_ray.results import Difference, Estimate
from scpo_ray.settings.sweep import ObjectiveConfig
from scpo_ray.statistics.cluster_variance import (
    macro_seed_variance,
)
from scpo_ray.statistics.intervals import LEVEL
from scpo_ray.statistics.joint_scores import Lowest, Measured, Seeds, measured
from scpo_ray.sweep.outcomes import SweepOutcomes


@dataclass(frozen=True)
class Scores:
    """The numbers of S settings, in the order in which they were asked for.

    Attributes:
        accuracy: culture, or "" for the macro mean -> layer -> (S) estimates.
        objective: NaN where a setting has none.
        per_culture: (C, S) the objective's layer on each culture, NaN where there is no number.
        minus_global: (S) macro differences on `all`.
        other_cultures: (S) macro means over the cultures that models were not trained for.
    """

    accuracy: dict[str, dict[Layer, list[Estimate]]]
    objective: Measured | Lowest
    per_culture: NDArray[np.float64]
    minus_global: list[Difference | None]
    other_cultures: list[Estimate]


def score_settings(
    outcomes: SweepOutcomes, settings: Sequence[int], objective: ObjectiveConfig
) -> Scores:
    """Every setting's accuracy by culture and layer, and its objective, on the same clusters.

    Estimates, differences (from the global model, too) and the ranking come from what each cluster
    moves the numbers by. The objective "worst" is corrected for the lowest of several measured
    numbers being too low (`Lowest`). Where a setting has several seeds its numbers vary by them as
    well, as one model for all cultures does in all of them at once. Not so `other_cultures`: users
    alone.

    Returns: without a global model, an objective on `distinctive` or `agreed` is NaN throughout.
    Raises: ValueError if the objective's culture is not one of the sweep's.
    """
    cultures = outcomes.cultures
    own = outcomes.own(settings)
    goal = scored_cultures(objective, cultures)
    accuracy: dict[str, dict[Layer, list[Estimate]]] = {c: {} for c in (MACRO, *cultures)}
    nothing = np.full(len(settings), np.nan)
    reached: Measured | Lowest = Measured(nothing, np.empty((0, len(settings))), (), 0, 0)
    per_culture = np.full((len(cultures), len(settings)), np.nan)
    minus_global: list[Difference | None] = [None] * len(settings)
    for layer in outcomes.layers:
        tested = {c: _on_layer(outcomes.tested[c], layer) for c in cultures}
        seeds = {c: _seeds(outcomes, settings, c, tested[c]) for c in cultures}
        alone = {c: _measured([c], own, tested, seeds) for c in cultures}
        macro = _measured(cultures, own, tested, seeds)
        for culture, score in {MACRO: macro, **alone}.items():
            accuracy[culture][layer] = score.estimates()
        if layer == "all":
            minus_global = _minus_global(macro, tested)
        if layer == objective.metric:
            per_culture = np.stack([alone[culture].values for culture in cultures])
            reached = macro if len(goal) > 1 else alone[goal[0]]
            if objective.culture == "worst":
                reached = Lowest(tuple(alone[culture] for culture in goal))
    others = _other_cultures(outcomes, settings)
    return Scores(accuracy, reached, per_culture, minus_global, others)


def scored_cultures(objective: ObjectiveConfig, cultures: Sequence[str]) -> list[str]:
    """The cultures that the objective is made from.

    Raises: ValueError if it names one that is not among them.
    """
    if objective.culture in ("macro", "worst"):
        return list(cultures)
    if objective.culture not in cultures:
        known = ", ".join(cultures)
        raise ValueError(
            f"objective.culture must be macro, worst or one of {known}, got {objective.culture!r}"
        )
    return [objective.culture]


@dataclass(frozen=True)
class _LayerPairs:
    """One culture's pairs on one layer: their rows of all, clusters, and the global model's."""

    rows: NDArray[np.int64]
    clusters: NDArray[np.int64]
    ref_outcomes: NDArray[np.bool_] | None


def _on_layer(pairs: CulturePairs, layer: Layer) -> _LayerPairs:
    mask, ref_outcomes = pairs.masks[layer], pairs.ref_outcomes
    return _LayerPairs(
        pairs.rows[mask],
        pairs.clusters[mask],
        None if ref_outcomes is None else ref_outcomes[mask],
    )


def _measured(
    cultures: Sequence[str],
    own: NDArray[np.float64],
    tested: Mapping[str, _LayerPairs],
    seeds: Mapping[str, Sequence[Seeds]],
) -> Measured:
    return measured(
        [own[tested[culture].rows] for culture in cultures],
        [tested[culture].clusters for culture in cultures],
        [seeds[culture] for culture in cultures],
    )


def _seeds(
    outcomes: SweepOutcomes, settings: Sequence[int], culture: str, tested: _LayerPairs
) -> list[Seeds]:
    """What other seeds of each setting would add; nothing is known of a setting with one."""
    found: list[Seeds] = []
    for setting in settings:
        by_seed = outcomes.by_seed(setting, culture)
        found.append({})
        if by_seed is not None and len(tested.rows):
            # By the runs: a model of its own for each culture is another training, one for all is
            # not.
            training = " ".join(run.trial.run_id for run in outcomes.runs_for(setting, culture))
            variance = macro_seed_variance([by_seed[tested.rows]], [tested.clusters])
            found[-1] = {training: variance}
    return found


def _minus_global(macro: Measured, tested: Mapping[str, _LayerPairs]) -> list[Difference | None]:
    known = [pairs.ref_outcomes for pairs in tested.values() if pairs.ref_outcomes is not None]
    if len(known) < len(tested):
        return [None] * len(macro.values)
    columns = [column[:, None].astype(np.float64) for column in known]
    rival = measured(columns, [pairs.clusters for pairs in tested.values()], [[{}]] * len(tested))
    return macro.minus(rival, 0, level=LEVEL)


def _other_cultures(outcomes: SweepOutcomes, settings: Sequence[int]) -> list[Estimate]:
    others = outcomes.others(settings)
    tested = {
        name: _on_layer(pairs, "all")
        for name, pairs in outcomes.tested.items()
        if not np.isnan(others[pairs.rows]).all()
    }
    if not tested:
        return [Estimate(None, None, None, 0, 0)] * len(settings)
    nothing: list[Seeds] = [{}] * len(settings)
    return _measured(list(tested), others, tested, dict.fromkeys(tested, nothing)).estimates()


def objective_values(
    means: Sequence[NDArray[np.float64]] | NDArray[np.float64], objective: ObjectiveConfig
) -> NDArray[np.float64]:
    """(S,) from the (S,) means of each of its cultures."""
    combined: NDArray[np.float64] = (
        np.min(means, axis=0) if objective.culture == "worst" else np.mean(means, axis=0)
    )
    return combined
