"""Several models measured in the same resamples: intervals, paired differences, who is best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scpo_ray.records import Difference, Estimate
from scpo_ray.statistics import (
    ClusterDraws,
    interval_tail,
    joint_means,
    percentile_intervals,
    within_noise,
)


@dataclass(frozen=True)
class Behind:
    """A model beside the best of several.

    `difference`: paired, without a p-value; None for the best itself and without a number.
    `is_tied`: it is the best, or its difference to it is within noise.
    """

    difference: Difference | None
    is_tied: bool


@dataclass(frozen=True)
class Replicated:
    """A number for each of S models (or settings), with its replicates in the same resamples.

    `values`: (S,), `replicates`: (samples, S), NaN where a model has none; `tail`: the share of
    them that an interval leaves out at each end (`statistics.interval_tail`); `num_pairs` and
    `num_clusters`: the test pairs behind each number.
    """

    values: NDArray[np.float64]
    replicates: NDArray[np.float64]
    tail: float
    num_pairs: int
    num_clusters: int

    def estimates(self) -> list[Estimate]:
        """(S) numbers with their 95 % intervals."""
        intervals = percentile_intervals(self.replicates, self.tail)
        # The seeds' noise knows no bounds; a share has them.
        rows = zip(self.values, *np.clip(intervals, 0, 1), strict=True)
        return [
            Estimate(_number(value), _number(low), _number(high), *self._sizes(value))
            for value, low, high in rows
        ]

    def minus(self, value: float, replicates: NDArray[np.float64]) -> list[Difference | None]:
        """(S) paired differences from a rival; without p-values. None where a number is missing.

        Args:
            value, replicates: the rival's, (samples,) from the same resamples.
        """
        values = self.values - value
        intervals = percentile_intervals(self.replicates - replicates[:, None], self.tail)
        # Two columns that are alike may differ by the rounding of a matrix product.
        rows = (np.round([values, *intervals], 12) + 0.0).T
        return [
            None
            if np.isnan(value)
            else Difference(value, _number(low), _number(high), None, None, *self._sizes(value))
            for value, low, high in rows.tolist()
        ]

    def behind_best(self, mode: Literal["max", "min"]) -> list["Behind"]:
        """(S) how far each model is behind the best of them (of ties, the first)."""
        best = ranking([_number(value) for value in self.values], mode=mode)[0]
        differences = self.minus(self.values[best], self.replicates[:, best])
        differences[best] = None
        return [
            Behind(found, bool(not np.isnan(value) and (found is None or within_noise(found))))
            for value, found in zip(self.values, differences, strict=True)
        ]

    def _sizes(self, value: float) -> tuple[int, int]:
        return (0, 0) if np.isnan(value) else (self.num_pairs, self.num_clusters)


def nothing(samples: int, num_models: int) -> Replicated:
    """No number for any model."""
    nothing = np.full((samples, num_models), np.nan)
    return Replicated(nothing[0], nothing, 0.025, 0, 0)


def replicated(
    outcomes: NDArray[Any], clusters: NDArray[np.int64], draws: ClusterDraws
) -> Replicated:
    """One culture's means; NaN for a model that has no outcome for each of its pairs.

    Args:
        outcomes: (B, S), a model's seeds averaged.
        clusters: (B,) labels.
        draws: of these clusters, the same for all models.
    """
    samples, num_models = len(draws.counts), outcomes.shape[1]
    if not len(outcomes):
        return nothing(samples, num_models)
    values = outcomes.mean(axis=0)
    there = ~np.isnan(values)
    replicates = np.full((samples, num_models), np.nan)
    replicates[:, there] = joint_means(outcomes[:, there], clusters, draws)
    tail = interval_tail([clusters])
    return Replicated(values, replicates, tail, len(outcomes), len(draws.labels))


def with_seeds(
    score: Replicated, seeds: Mapping[int, tuple[float, np.random.Generator]]
) -> Replicated:
    """The replicates with as much noise as only other seeds of the models would show.

    Args:
        seeds: model's place -> `statistics.seed_variance` of its outcomes, and its chance: the
            same for two cultures that one training serves.
    """
    replicates = score.replicates.copy()
    for column, (variance, rng) in seeds.items():
        replicates[:, column] += np.sqrt(variance) * rng.standard_normal(len(replicates))
    return replace(score, replicates=replicates)


def joined(total: Replicated | None, part: Replicated, how: np.ufunc) -> Replicated:
    """One culture's numbers put to the others' (`how`: added up, or the lower ones)."""
    if total is None:
        return part
    return Replicated(
        how(total.values, part.values),
        how(total.replicates, part.replicates),
        # That of one culture, the widest: right for the lowest of them; `shared` has the mean's.
        min(total.tail, part.tail),
        total.num_pairs + part.num_pairs,
        total.num_clusters + part.num_clusters,
    )


def shared(
    total: Replicated | None, number: int, clusters: Sequence[NDArray[np.int64]]
) -> Replicated:
    """A sum over cultures divided by `number`; a cluster that serves several counts once."""
    if total is None:
        raise ValueError("there is no culture to measure")
    num_clusters = len(np.unique(np.concatenate(clusters)))
    return replace(
        total,
        tail=interval_tail(clusters) if number > 1 else total.tail,
        values=total.values / number,
        replicates=total.replicates / number,
        num_clusters=num_clusters,
    )


def ranking(values: Sequence[float | None], *, mode: Literal["max", "min"]) -> list[int]:
    """Places of the values, the best first and those that are None last; ties as they stand."""
    sign = -1.0 if mode == "max" else 1.0
    # What rounding alone sets apart is tied.
    keys = [inf if value is None else round(sign * value, 12) for value in values]
    return sorted(range(len(keys)), key=keys.__getitem__)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
