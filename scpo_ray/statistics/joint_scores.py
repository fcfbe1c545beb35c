"""Several models measured in the same resamples: intervals, paired differences, who is best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scpo_ray.records import Difference, Estimate
from scpo_ray.statistics.cluster_variance import Freedom, SeedVariance, cluster_freedom
from scpo_ray.statistics.intervals import (
    ClusterDraws,
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

    Attributes:
        values: (S,), NaN where a model has none.
        replicates: (samples, S), with the seeds' noise.
        freedom: what the clusters leave; None where there is no interval.
        seeds: (S) training -> the variance that other seeds of it would show in the number.
        num_pairs, num_clusters: the test pairs behind each number.
    """

    values: NDArray[np.float64]
    replicates: NDArray[np.float64]
    freedom: Freedom | None
    seeds: tuple[Mapping[str, SeedVariance], ...]
    num_pairs: int
    num_clusters: int

    @property
    def tails(self) -> NDArray[np.float64]:
        """(S,) the share of the replicates that an interval leaves out at each end."""
        return self._tails(self.replicates, [_whole(parts) for parts in self.seeds])

    def estimates(self) -> list[Estimate]:
        """(S) numbers with their 95 % intervals."""
        intervals = percentile_intervals(self.replicates, self.tails)
        # The seeds' noise knows no bounds; a share has them.
        rows = zip(self.values, *np.clip(intervals, 0, 1), strict=True)
        return [
            Estimate(_number(value), _number(low), _number(high), *self._sizes(value))
            for value, low, high in rows
        ]

    def minus(self, rival: "Replicated", column: int) -> list[Difference | None]:
        """(S) paired differences from a rival; without p-values. None where a number is missing.

        Args:
            rival, column: whose model it is, measured in the same resamples, and its place there.
        """
        values = self.values - rival.values[column]
        replicates = self.replicates - rival.replicates[:, [column]]
        theirs = _whole(rival.seeds[column])
        seeds = [_whole(parts).plus(theirs) for parts in self.seeds]
        intervals = percentile_intervals(replicates, self._tails(replicates, seeds))
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
        differences = self.minus(self, best)
        differences[best] = None
        return [
            Behind(found, bool(not np.isnan(value) and (found is None or within_noise(found))))
            for value, found in zip(self.values, differences, strict=True)
        ]

    def _tails(
        self, replicates: NDArray[np.float64], seeds: Sequence[SeedVariance]
    ) -> NDArray[np.float64]:
        if self.freedom is None:
            return np.full(len(seeds), 0.025)
        tails = np.full(len(seeds), self.freedom.tail)
        for column, part in enumerate(seeds):
            known = replicates[:, column][~np.isnan(replicates[:, column])]
            if part.value > 0 and len(known):
                # What the seeds' noise does not explain is the clusters'.
                plain = max(0.0, float(known.var()) - part.value)
                tails[column] = self.freedom.with_seeds(plain, part).tail
        return tails

    def _sizes(self, value: float) -> tuple[int, int]:
        return (0, 0) if np.isnan(value) else (self.num_pairs, self.num_clusters)


def nothing(samples: int, num_models: int) -> Replicated:
    """No number for any model."""
    nothing = np.full((samples, num_models), np.nan)
    return Replicated(nothing[0], nothing, None, ({},) * num_models, 0, 0)


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
    freedom, seeds = cluster_freedom([clusters]), ({},) * num_models
    return Replicated(values, replicates, freedom, seeds, len(outcomes), len(draws.labels))


@dataclass(frozen=True)
class SeedNoise:
    """What other seeds of one model would add to its number on one culture.

    `training`: names what the seeds are seeds of; two cultures that one model serves have the same
    one. `rng`: the same for the same training.
    """

    training: str
    variance: SeedVariance
    rng: np.random.Generator


def with_seeds(score: Replicated, noise: Mapping[int, SeedNoise]) -> Replicated:
    """The replicates with as much noise as only other seeds of the models would show.

    Args:
        noise: model's place -> its own; a model with one seed has none.
    """
    replicates, seeds = score.replicates.copy(), list(score.seeds)
    for column, of in noise.items():
        replicates[:, column] += np.sqrt(of.variance.value) * of.rng.standard_normal(
            len(replicates)
        )
        seeds[column] = {of.training: of.variance}
    return replace(score, replicates=replicates, seeds=tuple(seeds))


def added(total: Replicated | None, part: Replicated) -> Replicated:
    """One culture's numbers added to the others'; `shared` makes a mean of the sum."""
    if total is None:
        return part
    seeds = []
    for ours, theirs in zip(total.seeds, part.seeds, strict=True):
        both = dict(ours)
        for training, variance in theirs.items():
            both[training] = both[training].with_same(variance) if training in both else variance
        seeds.append(both)
    return _joined(total, part, np.add, seeds)


def lowest(total: Replicated | None, part: Replicated) -> Replicated:
    """The lower of one culture's numbers and the others'; of their seeds, those that vary most."""
    if total is None:
        return part
    both = zip(total.seeds, part.seeds, strict=True)
    seeds = [max(each, key=lambda parts: _whole(parts).value) for each in both]
    return _joined(total, part, np.minimum, seeds)


def shared(
    total: Replicated | None, number: int, clusters: Sequence[NDArray[np.int64]]
) -> Replicated:
    """A sum over cultures divided by `number`; a cluster that serves several counts once."""
    if total is None:
        raise ValueError("there is no culture to measure")
    num_clusters = len(np.unique(np.concatenate(clusters)))
    return replace(
        total,
        freedom=cluster_freedom(clusters) if number > 1 else total.freedom,
        seeds=tuple({t: v.over(number) for t, v in parts.items()} for parts in total.seeds),
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


def _joined(
    total: Replicated,
    part: Replicated,
    how: np.ufunc,
    seeds: Sequence[Mapping[str, SeedVariance]],
) -> Replicated:
    known = [score.freedom for score in (total, part) if score.freedom is not None]
    return Replicated(
        how(total.values, part.values),
        how(total.replicates, part.replicates),
        # The widest of them: right for the lowest culture; `shared` has the mean's.
        min(known, key=lambda freedom: freedom.tail, default=None),
        tuple(seeds),
        total.num_pairs + part.num_pairs,
        total.num_clusters + part.num_clusters,
    )


def _whole(seeds: Mapping[str, SeedVariance]) -> SeedVariance:
    """Of independent trainings together."""
    whole = SeedVariance(0.0, 0.0)
    for part in seeds.values():
        whole = whole.plus(part)
    return whole


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
