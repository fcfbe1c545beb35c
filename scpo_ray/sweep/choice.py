"""What the chosen setting is worth on users who had no part in the choice."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scpo_ray.evaluation.comparable import ComparedRun
from scpo_ray.evaluation.comparison import MACRO
from scpo_ray.results import Difference, Estimate
from scpo_ray.settings.sweep import ObjectiveConfig
from scpo_ray.statistics.cluster_variance import MacroParts, SeedVariance, macro_parts
from scpo_ray.statistics.intervals import LEVEL, Spread, stream
from scpo_ray.statistics.joint_scores import ranking
from scpo_ray.sweep.outcomes import SweepOutcomes, read_outcomes
from scpo_ray.sweep.records import TrialRecord
from scpo_ray.sweep.scores import objective_values, score_settings, scored_cultures

NUM_HALVINGS = 20
"""How often the clusters are halved to see what a choice on one half is worth on the other."""
MIN_CLUSTERS = 4
"""A culture with fewer is not halved: a half needs two."""


def chosen_on_test(
    outcomes: SweepOutcomes,
    settings: Sequence[int],
    best: int,
    objective: ObjectiveConfig,
    load: Callable[[TrialRecord], ComparedRun],
) -> tuple[Estimate, Difference | None]:
    """The chosen setting's objective on test users, and its macro difference from the global model.

    With folds each fold's choice is made on its own dev users, since the others' are its test
    users: together these choices are tested once on everyone.

    Args:
        outcomes: on dev pairs.
        settings: their numbers; best: that of the best of all, which is the choice without folds.
        load: reads a finished run with its test pairs.
    """
    choices = dict.fromkeys(outcomes.folds, best)
    if len(outcomes.folds) > 1:
        choices = fold_choices(outcomes, settings, objective)
    trials = [
        # As runs of one setting: what is measured is the choice.
        replace(run.trial, setting=0)
        for runs in outcomes.runs.values()
        for run in runs
        if run.trial.setting == choices[run.trial.fold]
    ]
    tested = read_outcomes(trials, load)
    if tested is None:
        raise ValueError(f"setting {best} was chosen, and has no finished run")
    scores = score_settings(tested, [0], objective)
    return scores.objective.estimates()[0], scores.minus_global[MACRO]["all"][0]


def fold_choices(
    outcomes: SweepOutcomes, settings: Sequence[int], objective: ObjectiveConfig
) -> dict[int | None, int]:
    """Fold -> number of the setting that is best on the fold's pairs alone.

    Only settings that finished in every fold are chosen from.

    Raises: ValueError if there is none.
    """
    own = outcomes.own(settings)
    goal = [outcomes.tested[culture] for culture in scored_cultures(objective, outcomes.cultures)]
    found = {}
    for fold, rows in zip(outcomes.folds, outcomes.fold_rows, strict=True):
        means = []
        for pairs in goal:
            mine = pairs.rows[pairs.masks[objective.metric]]
            mine = mine[(mine >= rows.start) & (mine < rows.stop)]
            # A culture without such pairs in this fold has no say in it.
            means += [own[mine].mean(axis=0)] if len(mine) else []
        values = objective_values(means, objective) if means else np.full(len(settings), np.nan)
        known = [None if np.isnan(value) else float(value) for value in values]
        first = ranking(known, mode=objective.mode)[0]
        if known[first] is None:
            raise ValueError(f"fold {fold}: no setting has an objective")
        found[fold] = settings[first]
    return found


def chosen_by_halves(
    outcomes: SweepOutcomes, settings: Sequence[int], objective: ObjectiveConfig, seed: int
) -> Estimate | None:
    """As `honest_choice`, from the outcomes of a sweep that has test pairs alone."""
    if objective.metric not in outcomes.layers:
        return None
    own = outcomes.own(settings)
    goal = [outcomes.tested[culture] for culture in scored_cultures(objective, outcomes.cultures)]
    masks = [pairs.masks[objective.metric] for pairs in goal]
    return honest_choice(
        [own[pairs.rows[mask]] for pairs, mask in zip(goal, masks, strict=True)],
        [pairs.clusters[mask] for pairs, mask in zip(goal, masks, strict=True)],
        objective,
        rng=stream(seed, "sweep", "halvings"),
    )


def honest_choice(
    outcomes: Sequence[NDArray[np.float64]],
    clusters: Sequence[NDArray[np.int64]],
    objective: ObjectiveConfig,
    *,
    rng: np.random.Generator,
) -> Estimate | None:
    """What the best of many settings is worth on users that did not choose it.

    The best of many measured numbers is partly the luckiest. Here the clusters are halved at
    random, for all cultures at once; what is best on one half is measured on the other, both ways.

    The objective "worst" is chosen by the lowest culture of a half, and measured on that culture's
    other half: the lowest of several measured numbers would be too low there as well.

    Args:
        outcomes, clusters: per culture of the objective, (B_c, S) and (B_c,) on its layer; a
            setting with a NaN is not chosen.

    Returns: the mean over 20 halvings, with a 95 % interval over other users (or questions) for
        what the halves chose; seeds are averaged. None with fewer than two settings, or where a
        culture has fewer than four clusters or is left without pairs by more than half of the
        halvings.
    """
    complete = ~np.any([np.isnan(values).any(axis=0) for values in outcomes], axis=0)
    members = [np.unique(column) for column in clusters]
    if np.count_nonzero(complete) < 2 or min(map(len, members)) < MIN_CLUSTERS:
        return None
    columns = [values[:, complete] for values in outcomes]
    labels = np.unique(np.concatenate(members))
    is_worst = objective.culture == "worst"
    # What each cluster moves a setting's number by: of all cultures, or of each by itself.
    groups = [[place] for place in range(len(columns))] if is_worst else [[*range(len(columns))]]
    parts = [macro_parts([columns[c] for c in g], [clusters[c] for c in g]) for g in groups]
    places = [np.searchsorted(labels, found.labels) for found in parts]
    moved, measured_on = np.zeros(len(labels)), []
    for _ in range(NUM_HALVINGS):
        side = _halved([np.searchsorted(labels, column) for column in members], len(labels), rng)
        sides = [side[np.searchsorted(labels, column)] for column in clusters]
        if any(half.all() or not half.any() for half in sides):
            continue
        means = [
            np.stack([v[half == here].mean(axis=0) for v, half in zip(columns, sides, strict=True)])
            for here in (0, 1)
        ]
        for here in (0, 1):
            reached = objective_values(means[here], objective)
            best = int(np.argmax(reached if objective.mode == "max" else -reached))
            group = int(np.argmin(means[here][:, best])) if is_worst else 0
            measured_on.append(means[1 - here][groups[group], best].mean())
            other = side[places[group]] != here
            # A half has about half of the pairs, and counts as half of the two ways.
            moved[places[group][other]] += parts[group].parts[other, best]
    if len(measured_on) < NUM_HALVINGS:
        return None
    moved /= len(measured_on) / 2
    whole = macro_parts(columns, clusters) if is_worst else parts[0]
    value = float(np.mean(measured_on))
    low, high = _ends(value, moved, parts)
    return Estimate(value, low, high, whole.num_pairs, len(labels))


def _ends(
    value: float, moved: NDArray[np.float64], parts: Sequence[MacroParts]
) -> tuple[float, float] | tuple[None, None]:
    """The interval's ends, from what each cluster moved the value by; none without freedom."""
    known = [found.layout for found in parts if found.layout is not None]
    if not known:
        return None, None
    layout = min(known, key=lambda layout: layout.degrees)
    spread = Spread.of(moved, layout, SeedVariance(0.0, 0.0))
    return spread.share_ends(value, LEVEL)


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
