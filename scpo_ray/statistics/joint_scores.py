"""Several models measured on the same clusters: intervals, paired differences, who is best.

The best of many measured numbers is partly the luckiest, so the intervals of the others'
differences from it hold for all of them at once: how far the luckiest of equal models would seem
ahead is read off joint resamples, as in Hsu's comparisons with the best.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from scpo_ray.results import Difference, Estimate
from scpo_ray.statistics.cluster_variance import SeedVariance, macro_parts
from scpo_ray.statistics.intervals import LEVEL, NO_VARIANCE, Spread

# Cells of a block of resamples: bounds the memory.
BLOCK_CELLS = 2_000_000
# Degrees of freedom from which joint resamples say how far the best of equal models is ahead: with
# fewer they said too little of it in simulation.
MANY_DEGREES = 20
# A culture may be the lowest if this level's interval of it reaches below all others' upper ends.
CONTACT_LEVEL = 0.01

Seeds = Mapping[str, SeedVariance]
"""Training -> the variance that other seeds of it would show in a number."""
Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Measured:
    """A number for each of S models (or settings): the mean of one culture, or of several.

    Attributes:
        values: (S,), NaN where a model has none.
        parts: (G, S), what each cluster moves them by (`MacroParts`).
        spreads: (S,) what may lie between each and the truth; empty where nothing says.
        num_pairs, num_clusters: the test pairs behind each number.
    """

    values: NDArray[np.float64]
    parts: NDArray[np.float64]
    spreads: tuple[Spread, ...]
    num_pairs: int
    num_clusters: int

    def estimates(self) -> list[Estimate]:
        """(S) shares with their 95 % intervals."""
        return [self.estimate(place) for place in range(len(self.values))]

    def estimate(self, place: int) -> Estimate:
        """One model's share with its 95 % interval."""
        value = float(self.values[place])
        if np.isnan(value):
            return _estimate(None, None, (0, 0))
        ends = self.spreads[place].share_ends(value, LEVEL) if self.spreads else None
        return _estimate(value, ends, (self.num_pairs, self.num_clusters))

    def paired(self, place: int, other: int) -> Difference:
        """One model minus another, both named beforehand: with the p-value and the interval that
        `intervals.macro_difference` takes of their outcomes. No value where either has none."""
        # Two columns that are alike may differ by rounding.
        value = float(np.round(self.values[place] - self.values[other], 12)) + 0.0
        if np.isnan(value):
            return Difference(None, None, None, None, None, 0, 0)
        sizes = (self.num_pairs, self.num_clusters)
        if not self.spreads:
            return Difference(value, None, None, None, None, *sizes)
        ours, theirs = self.spreads[place], self.spreads[other]
        variance = float(((self.parts[:, place] - self.parts[:, other]) ** 2).sum())
        between = Spread(variance, ours.layout, ours.seeds.plus(theirs.seeds))
        ends, p_value = between.ends(value, LEVEL), between.p_value(value)
        return Difference(value, *ends, p_value, None, *sizes, between.detectable(LEVEL))

    def minus(self, rival: "Measured", column: int, *, level: float) -> list[Difference | None]:
        """(S) paired differences from a rival; without p-values. None where a number is missing.

        Args:
            rival, column: whose model it is, measured on the same clusters, and its place there.
            level: one minus the confidence of each interval, and the p-value of `detectable`.
        """
        # Two columns that are alike may differ by rounding.
        values = np.round(self.values - rival.values[column], 12) + 0.0
        if not self.spreads:
            return [self._difference(value, None, None) for value in values.tolist()]
        variances = ((self.parts - rival.parts[:, [column]]) ** 2).sum(axis=0)
        found = []
        for place, value in enumerate(values.tolist()):
            spread = self.spreads[place]
            seeds = spread.seeds.plus(rival.spreads[column].seeds)
            between = Spread(float(variances[place]), spread.layout, seeds)
            ends = None if np.isnan(value) else between.ends(value, level)
            found.append(self._difference(value, ends, between.detectable(level)))
        return found

    def difference(self, place: int, other: int) -> Difference | None:
        """One model minus another."""
        return self.minus(self, other, level=LEVEL)[place]

    def behind_best(
        self, mode: Mode, *, samples: int, rng: np.random.Generator
    ) -> list[Difference | None]:
        """(S) how far each model is behind the best of them (of ties, the first): None for the
        best and without a number. The 95 % intervals hold for all at once.

        Args:
            samples: joint resamples behind how far apart equal models would seem.
        """
        best = ranking(_numbers(self.values), mode=mode)[0]
        level = self.simultaneous_level(LEVEL, samples=samples, rng=rng)
        differences = self.minus(self, best, level=level)
        differences[best] = None
        return differences

    def simultaneous_level(self, level: float, *, samples: int, rng: np.random.Generator) -> float:
        """The level of each interval against the best that makes them hold together at `level`.

        Were all models equal, one of them would come out best by chance; the largest distance of
        the others from it, each over its own standard error, is drawn in joint resamples. That is
        the least favourable case: where one is truly ahead, fewer can be taken for the best. Which
        models go together is known from the clusters alone, hence `_shrunk`. Few clusters tell each
        standard error badly, too: there it is Bonferroni's over all pairs of models, for any two
        could have been these.
        """
        there = np.flatnonzero(~np.isnan(self.values))
        if len(there) < 3 or not self.spreads:
            return level  # Two models are one pair.
        if self.spreads[there[0]].layout.degrees < MANY_DEGREES:
            return 2 * level / (len(there) * (len(there) - 1))
        parts, apart = _shrunk(self.parts[:, there])
        apart += np.array([self.spreads[place].seeds.value for place in there])
        own = (parts**2).sum(axis=0) + apart
        errors: dict[int, NDArray[np.float64]] = {}
        largest = []
        for moved in _moved(parts, apart, samples=samples, rng=rng):
            winners = moved.argmax(axis=1)
            for best in np.unique(winners).tolist():
                if best not in errors:
                    square = own + own[best] - 2 * (parts.T @ parts[:, best])
                    square[best] = 0.0
                    # Models that are alike are as far apart as rounding says.
                    alike = square <= NO_VARIANCE
                    errors[best] = np.where(alike, inf, np.sqrt(np.abs(square)))
                rows = moved[winners == best]
                largest.append(((rows[:, [best]] - rows) / errors[best]).max(axis=1))
        critical = float(np.quantile(np.concatenate(largest), 1 - level))
        return min(level, 2 * float(ndtr(-critical)))

    def replicates(self, *, samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """(samples, S) what the numbers might have been with other clusters and seeds, jointly.

        NaN where nothing says how clusters differ.
        """
        if not self.spreads:
            return np.full((samples, len(self.values)), np.nan)
        seeds = np.array([spread.seeds.value for spread in self.spreads])
        moved = np.concatenate(list(_moved(self.parts, seeds, samples=samples, rng=rng)))
        replicates: NDArray[np.float64] = self.values + moved
        return replicates

    @property
    def tail(self) -> float:
        """The share of the replicates that a 95 % interval leaves out at each end: they are
        normal, and few clusters know their variance badly."""
        if not self.spreads:
            return LEVEL / 2
        degrees = min(min(spread.layout.degrees, spread.seeds.degrees) for spread in self.spreads)
        return float(ndtr(stdtrit(degrees, LEVEL / 2)))

    def _difference(
        self, value: float, ends: tuple[float, float] | None, detectable: float | None
    ) -> Difference | None:
        if np.isnan(value):
            return None
        low, high = ends or (None, None)
        sizes = (self.num_pairs, self.num_clusters)
        return Difference(value, low, high, None, None, *sizes, detectable)


def measured(
    outcomes: Sequence[NDArray[Any]],
    clusters: Sequence[NDArray[np.int64]],
    seeds: Sequence[Sequence[Seeds]],
) -> Measured:
    """Args: per culture, (B_c, S) a model's seeds averaged, NaN where it has none; (B_c,) labels;
    and (S) what other seeds would add to the culture's mean. Two cultures that one training
    serves are moved by its seeds at once.
    """
    found = macro_parts(outcomes, clusters)
    spreads = []
    if found.layout is not None:
        for place, parts in enumerate(found.parts.T):
            of_model = _together([of_culture[place] for of_culture in seeds])
            spreads.append(Spread.of(parts, found.layout, of_model))
    return Measured(found.values, found.parts, tuple(spreads), found.num_pairs, len(found.labels))


@dataclass(frozen=True)
class Lowest:
    """The lowest of several cultures' numbers, for each of S models.

    The lowest of several measured numbers lies below the lowest true one: chance picks it. Only
    cultures that may be the lowest by their 99 % intervals count; each is taken at an upper bound
    that all of them together exceed in half of cases, so the lowest of these is too high as often
    as too low. The interval's ends are the lowest of bounds that hold together.

    Source: Chernozhukov, Lee and Rosen (2013), "Intersection bounds: estimation and inference".
    """

    cultures: tuple[Measured, ...]

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """(S,) NaN where a model lacks a culture."""
        columns = np.stack([culture.values for culture in self.cultures])
        if not self._are_known:
            lowest: NDArray[np.float64] = columns.min(axis=0)
            return lowest
        return np.array(
            [
                np.nan if np.isnan(columns[:, place]).any() else self._ends(place, 0.5)[1]
                for place in range(columns.shape[1])
            ]
        )

    def estimates(self) -> list[Estimate]:
        """(S) as for `Measured`; no interval where a culture has one cluster."""
        return [
            _estimate(None, None, (0, 0))
            if value is None
            else _estimate(
                value,
                self._ends(place, 1 - LEVEL / 2) if self._are_known else None,
                self._sizes,
            )
            for place, value in enumerate(_numbers(self.values))
        ]

    def difference(self, place: int, other: int) -> Difference | None:
        """One model's lowest culture minus another's."""
        return self._between(place, other, self._paired(other, LEVEL / 2 / len(self.cultures)), 1)

    def behind_best(
        self, mode: Mode, *, samples: int, rng: np.random.Generator
    ) -> list[Difference | None]:
        """As for `Measured`."""
        best = ranking(_numbers(self.values), mode=mode)[0]
        part = LEVEL / 2 / len(self.cultures)
        # Simultaneous within each culture, and Bonferroni's over them.
        level = min(
            culture.simultaneous_level(part, samples=samples, rng=rng) for culture in self.cultures
        )
        paired = self._paired(best, level)
        number = len(self.values)
        return [
            None if place == best else self._between(place, best, paired, number)
            for place in range(number)
        ]

    def _paired(self, other: int, level: float) -> list[list[Difference | None]]:
        """Per culture, all models minus one."""
        return [culture.minus(culture, other, level=level) for culture in self.cultures]

    def _between(
        self,
        place: int,
        other: int,
        paired: Sequence[Sequence[Difference | None]],
        number: int,
    ) -> Difference | None:
        """A difference of two lowest lies between differences on single cultures, for a model's
        lowest culture bounds the other's; and between the two's own bounds. Half of what may go
        wrong is spent on either, over `number` models that are compared so at once.
        """
        value = float(self.values[place] - self.values[other])
        if np.isnan(value):
            return None
        sizes = self._sizes
        if not self._are_known:
            return Difference(value, None, None, None, None, *sizes)
        bounds = [difference for of in paired if (difference := of[place])]
        confidence = 1 - LEVEL / 8 / number
        ours, theirs = self._ends(place, confidence), self._ends(other, confidence)
        low = max(min(bounds[c].low or 0.0 for c in self._contact(place)), ours[0] - theirs[1])
        high = min(max(bounds[c].high or 0.0 for c in self._contact(other)), ours[1] - theirs[0])
        # The corrected numbers' difference is no bound, but must lie within its interval.
        return Difference(value, min(low, value), max(high, value), None, None, *sizes)

    def replicates(self, *, samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """As for `Measured`, around the corrected numbers."""
        drawn = [culture.replicates(samples=samples, rng=rng) for culture in self.cultures]
        lowest: NDArray[np.float64] = np.min(drawn, axis=0)
        return lowest - np.median(lowest, axis=0) + self.values

    @property
    def tail(self) -> float:
        return min(culture.tail for culture in self.cultures)

    @property
    def _sizes(self) -> tuple[int, int]:
        return (
            sum(culture.num_pairs for culture in self.cultures),
            sum(culture.num_clusters for culture in self.cultures),
        )

    @property
    def _are_known(self) -> bool:
        return all(culture.spreads for culture in self.cultures)

    def _contact(self, place: int) -> list[int]:
        """The cultures that may be a model's lowest."""
        ends = [
            culture.spreads[place].share_ends(float(culture.values[place]), CONTACT_LEVEL)
            for culture in self.cultures
        ]
        bound = min(high for _, high in ends)
        return [number for number, (low, _) in enumerate(ends) if low <= bound]

    def _ends(self, place: int, confidence: float) -> tuple[float, float]:
        """The lowest of the cultures' one-sided bounds that hold together at `confidence`."""
        contact = self._contact(place)
        level = 2 * (1 - confidence ** (1 / len(contact)))
        ends = [
            self.cultures[c].spreads[place].share_ends(float(self.cultures[c].values[place]), level)
            for c in contact
        ]
        return min(low for low, _ in ends), min(high for _, high in ends)


def ranking(values: Sequence[float | None], *, mode: Mode) -> list[int]:
    """Places of the values, the best first and those that are None last; ties as they stand."""
    sign = -1.0 if mode == "max" else 1.0
    # What rounding alone sets apart is tied.
    keys = [inf if value is None else round(sign * value, 12) for value in values]
    return sorted(range(len(keys)), key=keys.__getitem__)


def _shrunk(
    parts: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(G, S) parts and (S,) variances: some of what the clusters say of how models move together,
    and the rest as if each model moved by itself.

    Clusters that are few beside the models show more likeness among these than there is, by chance,
    and so fewer chances of a lucky best. The share that is taken away is Ledoit and Wolf's (2004),
    of what is left of the parts without the models' mean, which moves no difference.
    """
    num_clusters, num_models = parts.shape
    parts = parts - parts.mean(axis=1, keepdims=True)
    squares = (parts**2).sum(axis=0)
    # With the mean taken away, models that move by themselves keep (S - 1) / S of their variance.
    alone = squares * num_models / (num_models - 1)
    # Sums over all S x S covariances, from the smaller of the two products.
    product = parts @ parts.T if num_clusters < num_models else parts.T @ parts
    together = float((product**2).sum())
    target = float((1 - 2 / num_models) * (alone**2).sum() + (alone.sum() / num_models) ** 2)
    distance = together - 2 * float(squares @ alone) + target
    error = float(((parts**2).sum(axis=1) ** 2).sum()) - together / num_clusters
    share = min(1.0, max(0.0, error) / distance) if distance > NO_VARIANCE**2 else 1.0
    return parts * np.sqrt(1 - share), share * alone


def _moved(
    parts: NDArray[np.float64],
    variances: NDArray[np.float64],
    *,
    samples: int,
    rng: np.random.Generator,
) -> Iterator[NDArray[np.float64]]:
    """Blocks of (rows, S), `samples` rows over all: the models moved together, each cluster by a
    normal draw of its own, and each model by itself."""
    num_clusters, num_models = parts.shape
    errors = np.sqrt(variances)
    block = max(1, BLOCK_CELLS // max(num_clusters, num_models))
    for start in range(0, samples, block):
        rows = min(block, samples - start)
        moved = rng.standard_normal((rows, num_clusters)) @ parts
        if errors.any():
            moved += rng.standard_normal((rows, num_models)) * errors
        yield moved


def _together(of_cultures: Sequence[Seeds]) -> SeedVariance:
    """Of the mean over the cultures: one training moves all of its own at once."""
    trainings: dict[str, SeedVariance] = {}
    for seeds in of_cultures:
        for training, variance in seeds.items():
            before = trainings.get(training)
            trainings[training] = before.with_same(variance) if before else variance
    whole = SeedVariance(0.0, 0.0)
    for variance in trainings.values():
        whole = whole.plus(variance)
    return whole.over(len(of_cultures)) if of_cultures else whole


def _estimate(
    value: float | None, ends: tuple[float, float] | None, sizes: tuple[int, int]
) -> Estimate:
    low, high = ends or (None, None)
    return Estimate(value, low, high, *sizes)


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]
