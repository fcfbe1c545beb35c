"""What each setting of a sweep reaches: all of them measured in the same resamples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scpo_ray.evaluation.comparison import MACRO, CulturePairs
from scpo_ray.records import Difference, Estimate, Layer
from scpo_ray.settings.sweep import ObjectiveConfig
from scpo_ray.statistics.cluster_variance import macro_seed_variance
from scpo_ray.statistics.intervals import ClusterDraws, draw_clusters, stream
from scpo_ray.statistics.joint_scores import (
    Replicated,
    SeedNoise,
    added,
    lowest,
    nothing,
    replicated,
    shared,
    with_seeds,
)
from scpo_ray.sweep.outcomes import SweepOutcomes

NUM_HALVINGS = 20
"""How often the clusters are halved to see what a choice on one half is worth on the other."""
MIN_CLUSTERS = 4
"""A culture with fewer is not halved: a half needs two."""


@dataclass(frozen=True)
class Scores:
    """The numbers of S settings, in the order in which they were asked for.

    Attributes:
        accuracy: culture, or "" for the macro mean -> layer -> (S) estimates.
        objective: NaN where a setting has none.
        per_culture: (C, S) the objective's layer on each culture, NaN where there is no number.
        minus_global: (S) macro differences on `all`.
        other_cultures: (S) macro means over the cultures that models were not trained for.
        chosen_honestly: see `honest_choice`.
    """

    accuracy: dict[str, dict[Layer, list[Estimate]]]
    objective: Replicated
    per_culture: NDArray[np.float64]
    minus_global: list[Difference | None]
    other_cultures: list[Estimate]
    chosen_honestly: Estimate | None


def score_settings(
    outcomes: SweepOutcomes, settings: Sequence[int], objective: ObjectiveConfig, seed: int
) -> Scores:
    """Every setting's accuracy by culture and layer, and its objective, from a joint bootstrap.

    For each layer the clusters of all cultures are drawn once and shared by all settings, the
    global model among them: estimates, differences and ranking come from the same resamples.

    The objective "worst" is the lowest culture, in each resample as in the data: noise pulls the
    lowest of several down, so its interval lies low, the more so the fewer the users.

    Where a setting has several seeds, its replicates vary by them as well, as one model for all
    cultures does in all of them at once. Not so `other_cultures`: users alone.

    Returns: without a global model, an objective on `distinctive` or `agreed` is NaN throughout.
    Raises: ValueError if the objective's culture is not one of the sweep's.
    """
    cultures = outcomes.cultures
    own = outcomes.own(settings)
    goal = scored_cultures(objective, cultures)
    is_worst = objective.culture == "worst"
    accuracy: dict[str, dict[Layer, list[Estimate]]] = {c: {} for c in (MACRO, *cultures)}
    reached = nothing(outcomes.samples, len(settings))
    per_culture = np.full((len(cultures), len(settings)), np.nan)
    minus_global: list[Difference | None] = [None] * len(settings)
    chosen_honestly = None
    for layer in outcomes.layers:
        tested = {c: _on_layer(outcomes.tested[c], layer) for c in cultures}
        clusters = {culture: pairs.clusters for culture, pairs in tested.items()}
        draws = _draws(clusters, outcomes.samples, stream(seed, "sweep", "accuracy", layer))
        macro, aim = None, None
        for row, culture in enumerate(cultures):
            # Only sums are kept: all replicates of all cultures would be most of the memory.
            score = replicated(own[tested[culture].rows], clusters[culture], draws[culture])
            noise = _seed_noise(outcomes, settings, culture, tested[culture], layer, seed)
            score = with_seeds(score, noise)
            accuracy[culture][layer] = score.estimates()
            macro = added(macro, score)
            if layer == objective.metric:
                per_culture[row] = score.values
                if culture in goal:
                    aim = (lowest if is_worst else added)(aim, score)
        mean = shared(macro, len(cultures), list(clusters.values()))
        accuracy[MACRO][layer] = mean.estimates()
        if layer == "all":
            minus_global = _minus_global(mean, tested, draws)
        if layer == objective.metric:
            counted = [clusters[culture] for culture in goal]
            reached = shared(aim, 1 if is_worst else len(goal), counted)
            chosen_honestly = honest_choice(
                [own[tested[culture].rows] for culture in goal],
                counted,
                objective,
                rng=stream(seed, "sweep", "halvings"),
            )
    others = _other_cultures(outcomes, settings, stream(seed, "sweep", "other cultures"))
    return Scores(accuracy, reached, per_culture, minus_global, others, chosen_honestly)


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


def honest_choice(
    outcomes: Sequence[NDArray[np.float64]],
    clusters: Sequence[NDArray[np.int64]],
    objective: ObjectiveConfig,
    *,
    rng: np.random.Generator,
) -> Estimate | None:
    """What the best of many settings is worth on users that did not choose it.

    The best of many measured numbers is partly the luckiest: its own value is too good. Here the
    clusters are halved at random, for all cultures at once; the setting that is best on one half
    is measured on the other, both ways, and the two are averaged.

    Args:
        outcomes, clusters: per culture of the objective, (B_c, S) and (B_c,) on its layer; a
            setting with a NaN is not chosen.

    Returns: the mean over 20 halvings. `low` and `high` are the 2.5 and 97.5 percentiles of the
        20, how much the choice of the half matters: not a confidence interval. None with fewer
        than two settings, or where a culture has fewer than four clusters or is left without
        pairs by more than half of the halvings.
    """
    complete = ~np.any([np.isnan(values).any(axis=0) for values in outcomes], axis=0)
    members = [np.unique(column) for column in clusters]
    if np.count_nonzero(complete) < 2 or min(map(len, members)) < MIN_CLUSTERS:
        return None
    labels = np.unique(np.concatenate(members))
    measured = []
    for _ in range(NUM_HALVINGS):
        side = _halved([np.searchsorted(labels, column) for column in members], len(labels), rng)
        first = [side[np.searchsorted(labels, column)] == 0 for column in clusters]
        if any(half.all() or not half.any() for half in first):
            continue
        reached = [
            objective_values(
                [
                    values[half if here else ~half][:, complete].mean(axis=0)
                    for values, half in zip(outcomes, first, strict=True)
                ],
                objective,
            )
            for here in (True, False)
        ]
        best = [np.argmax(half if objective.mode == "max" else -half) for half in reached]
        measured.append((reached[1][best[0]] + reached[0][best[1]]) / 2)
    if 2 * len(measured) < NUM_HALVINGS:
        return None
    low, high = np.quantile(measured, [0.025, 0.975])
    num_pairs = sum(len(column) for column in clusters)
    return Estimate(float(np.mean(measured)), float(low), float(high), num_pairs, len(labels))


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


def _draws(
    clusters: Mapping[str, NDArray[np.int64]], samples: int, rng: np.random.Generator
) -> dict[str, ClusterDraws]:
    drawn = draw_clusters(list(clusters.values()), samples=samples, rng=rng)
    return dict(zip(clusters, drawn, strict=True))


def _seed_noise(
    outcomes: SweepOutcomes,
    settings: Sequence[int],
    culture: str,
    tested: _LayerPairs,
    layer: Layer,
    seed: int,
) -> dict[int, SeedNoise]:
    """Of the settings with several seeds; by their places."""
    found = {}
    for column, setting in enumerate(settings):
        by_seed = outcomes.by_seed(setting, culture)
        if by_seed is None or not len(tested.rows):
            continue
        # By the runs: a model of its own for each culture is another training, one for all is not.
        training = " ".join(run.trial.run_id for run in outcomes.runs_for(setting, culture))
        found[column] = SeedNoise(
            training,
            macro_seed_variance([by_seed[tested.rows]], [tested.clusters]),
            stream(seed, "sweep", "seeds", layer, training),
        )
    return found


def _minus_global(
    macro: Replicated, tested: Mapping[str, _LayerPairs], draws: Mapping[str, ClusterDraws]
) -> list[Difference | None]:
    total = None
    for culture, pairs in tested.items():
        if pairs.ref_outcomes is None:
            return [None] * len(macro.values)
        ref_outcomes = pairs.ref_outcomes[:, None].astype(np.float64)
        score = replicated(ref_outcomes, pairs.clusters, draws[culture])
        total = added(total, score)
    rival = shared(total, len(tested), [pairs.clusters for pairs in tested.values()])
    return macro.minus(rival, 0)


def _other_cultures(
    outcomes: SweepOutcomes, settings: Sequence[int], rng: np.random.Generator
) -> list[Estimate]:
    others = outcomes.others(settings)
    tested = {
        name: _on_layer(pairs, "all")
        for name, pairs in outcomes.tested.items()
        if not np.isnan(others[pairs.rows]).all()
    }
    if not tested:
        return nothing(outcomes.samples, len(settings)).estimates()
    clusters = {name: pairs.clusters for name, pairs in tested.items()}
    draws = _draws(clusters, outcomes.samples, rng)
    total = None
    for name, pairs in tested.items():
        score = replicated(others[pairs.rows], pairs.clusters, draws[name])
        total = added(total, score)
    return shared(total, len(tested), list(clusters.values())).estimates()


def _halved(
    members: Sequence[NDArray[np.int64]], num_clusters: int, rng: np.random.Generator
) -> NDArray[np.int8]:
    """(G,) 0 or 1: the half of each cluster, each culture's halves as near in number as can be."""
    side = np.full(num_clusters, -1, dtype=np.int8)
    for column in members:
        fresh = rng.permutation(column[side[column] < 0])
        wanted = len(column) // 2 - int(np.count_nonzero(side[column] == 0))
        side[fresh] = 1
        side[fresh[: max(0, wanted)]] = 0
    return side


def objective_values(
    means: Sequence[NDArray[np.float64]], objective: ObjectiveConfig
) -> NDArray[np.float64]:
    """(S,) from the (S,) means of each of its cultures."""
    combined: NDArray[np.float64] = (
        np.min(means, axis=0) if objective.culture == "worst" else np.mean(means, axis=0)
    )
    return combined
