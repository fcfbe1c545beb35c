"""How many training pairs a method needs to reach what another one does with all of them."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor, inf
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scpo_ray.results import Difference, Verdict
from scpo_ray.settings.sweep import CULTURE
from scpo_ray.statistics.intervals import verdict
from scpo_ray.sweep.records import EfficiencyCurve, EfficiencyPoint, SettingSummary
from scpo_ray.sweep.space import make_setting

FRACTION = "data.data_fraction"
RIVAL = "finetune"

# A curve that lies below its rival by rounding alone has reached it.
ROUNDING = 1e-12


def efficiency_curves(
    axes: Sequence[str],
    summaries: Sequence[SettingSummary],
    replicates: Mapping[int, NDArray[np.float64]],
    mode: Literal["max", "min"],
    *,
    tail: float,
    minus: Callable[[int, int], Difference | None],
) -> list[EfficiencyCurve]:
    """The objective by data fraction: a curve for each combination of the other axes.

    The rival is the first with a value "finetune" (a method, or a bundle of that name), else the
    first of all. The interval of `pairs_to_match` is over the replicates of the objective; it is
    0 to infinity where there are none. A setting without an objective is no point of its curve.

    Args:
        axes: the sweep's; without "data.data_fraction", or with one value of it, no curve.
        summaries: in the order of their numbers.
        replicates: setting's number -> (samples,) of its objective, NaN where it has none.
        tail: the share of replicates that an interval leaves out at each end.
        minus: the paired difference of two settings' objectives, by their numbers.

    Returns: in the order in which `summaries` names them. `pairs_to_match` is None for the rival
        itself, and where it has no objective at its largest fraction or no pair selected there.
    """
    fractions = {summary.setting.values.get(FRACTION) for summary in summaries}
    if FRACTION not in axes or len(fractions) < 2:
        return []
    others = [axis for axis in axes if axis not in (FRACTION, CULTURE)]
    curves: dict[str, list[SettingSummary]] = {}
    rivals = []
    for summary in summaries:
        values = {axis: summary.setting.values[axis] for axis in others}
        name = make_setting(0, values).label
        curves.setdefault(name, []).append(summary)
        if RIVAL in values.values():
            rivals.append(name)
    rival = next(iter([*rivals, *curves]))
    for curve in curves.values():
        curve.sort(key=_fraction)
    learned = _learned(curves[rival], minus, mode)
    found = []
    for name, curve in curves.items():
        points = [
            EfficiencyPoint(_fraction(s), s.num_pairs, s.objective)
            for s in curve
            if s.objective is not None and s.num_pairs is not None
        ]
        matched = None
        if name != rival:
            matched = _to_match(curve, curves[rival][-1], replicates, mode, tail)
        first = min((point.num_pairs for point in points), default=inf)
        whole = curves[rival][-1].num_pairs
        at_most = bool(matched and whole and matched[0] <= first / whole)
        found.append(EfficiencyCurve(name, points, rival, matched, learned, at_most))
    return found


def matching_pairs(
    num_pairs: NDArray[np.float64], reached: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Where a curve first reaches its target, with straight lines between its points.

    Args:
        num_pairs: (N,) rising.
        reached: (N, R), R curves over the same points; higher is better.
        target: (R,) what each is to reach.

    Returns: (R,) numbers of pairs: the first point's where it suffices, infinite where none does.
    """
    enough = reached >= target - ROUNDING
    matching = np.where(enough[0], num_pairs[0], inf)
    for point in range(1, len(num_pairs)):
        here = enough[point] & np.isinf(matching)
        below, above = reached[point - 1, here], reached[point, here]
        way = np.clip((target[here] - below) / (above - below), 0, 1)
        matching[here] = num_pairs[point - 1] + way * (num_pairs[point] - num_pairs[point - 1])
    return matching


def _to_match(
    curve: Sequence[SettingSummary],
    rival: SettingSummary,
    replicates: Mapping[int, NDArray[np.float64]],
    mode: Literal["max", "min"],
    tail: float,
) -> tuple[float, float, float] | None:
    """The share of the rival's pairs: value, low, high."""
    points = sorted(
        (s.num_pairs, s.setting.number, s.objective.value)
        for s in curve
        if s.num_pairs is not None and s.objective is not None and s.objective.value is not None
    )
    goal = None if rival.objective is None else rival.objective.value
    if not points or goal is None or not rival.num_pairs:
        return None
    sign = 1.0 if mode == "max" else -1.0
    num_pairs = np.array([pairs for pairs, _, _ in points])
    values = np.array([[value] for _, _, value in points])
    resampled = np.stack([replicates[number] for _, number, _ in points])
    goals = replicates[rival.setting.number]
    kept = ~np.isnan(resampled).any(axis=0) & ~np.isnan(goals)
    value = matching_pairs(num_pairs, sign * values, sign * np.array([goal]))[0]
    low, high = 0.0, inf
    if 2 * np.count_nonzero(kept) >= len(goals):
        # Percentiles by rank: between two ranks there may be the step to infinity.
        ranked = np.sort(matching_pairs(num_pairs, sign * resampled[:, kept], sign * goals[kept]))
        last = len(ranked) - 1
        low, high = ranked[floor(tail * last)], ranked[ceil((1 - tail) * last)]
    whole = rival.num_pairs
    return float(value / whole), float(low / whole), float(high / whole)


def _learned(
    rival: Sequence[SettingSummary],
    minus: Callable[[int, int], Difference | None],
    mode: Literal["max", "min"],
) -> Verdict:
    """Whether the rival is better with its largest share of the users than with its smallest."""
    first, last = (s.setting.number for s in (rival[0], rival[-1]))
    if first == last:
        return "unknown"
    return verdict(minus(last, first) if mode == "max" else minus(first, last))


def _fraction(summary: SettingSummary) -> float:
    return float(summary.setting.values[FRACTION])
