"""Intervals over clusters and seeds, paired tests, Holm, power: numbers in, numbers out.

A *cluster* is what came into the data as one: a user with all their pairs, or a question where
no user is known. Its pairs resemble each other, so how far a mean may lie from the truth is read
off how far whole clusters lie apart. An *outcome* is 1 for a pair ranked right, 0 for one ranked
wrong, or a fraction. Outcomes are (B,) of one model or (B, K) of a method's K seeds: seeds are
averaged, and how much they differ is a second layer of chance.

One procedure gives a difference its interval and its p-value: the variance without bias (CR2) and
t with the degrees of freedom that the clusters leave, as `cluster_variance` has them; an interval
excludes 0 where p <= 0.05 and nowhere else. The interval of a share is the same, as a score
interval: it leans away from 0 and 100 %, and does not shrink to a point there. Words and colours
come from `verdict` alone. How often all this is right is measured by
benchmarks/interval_coverage.py; docs/method.md has the table.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, exp, inf, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from scpo_ray.results import Difference, Estimate, Standing, Verdict
from scpo_ray.statistics.cluster_variance import (
    Layout,
    MacroParts,
    SeedVariance,
    cluster_layout,
    macro_parts,
    macro_seed_variance,
    same_lengths,
    seed_mean,
)

LEVEL = 0.05
"""One minus the confidence of every interval."""
POWER = 0.8
# A variance that is only rounding: no cluster differs from another.
NO_VARIANCE = 1e-20
# Outcomes that vary by no more than this share of what 0s and 1s of their mean would are as good as
# equal: that a few pairs are alike to a third of a percent does not say that the others are.
NEARLY_EQUAL = 1e-3
# The same for differences, which are small by nature: a standard deviation of 0.1 points.
NEARLY_EQUAL_DIFFERENCES = 1e-6
# Below this a p-value is said to be this.
SMALLEST_P = 1e-12


def stream(seed: int, *names: str) -> np.random.Generator:
    """The stream of chance that belongs to `names` under `seed`.

    Each use of chance has its own, so that one more culture, layer or control leaves the draws of
    the others alone.
    """
    digest = hashlib.sha256(json.dumps(names).encode()).digest()
    words = np.frombuffer(digest, dtype="<u4").tolist()
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))


@dataclass(frozen=True)
class Spread:
    """What may lie between a number and the truth: other clusters, and other seeds.

    `variance`: over other clusters; `layout`: what their sizes say of it; `excess`: the relative
    variance of that variance which is due to a few clusters far off, as among users who are nearly
    all at 100 %. Shares alone heed it (`share_ends`), so a share's is made by `of`.
    """

    variance: float
    layout: Layout
    seeds: SeedVariance
    excess: float = 0.0

    @classmethod
    def of(cls, parts: NDArray[np.float64], layout: Layout, seeds: SeedVariance) -> "Spread":
        """Args: (G,) what each cluster moves the number by (`MacroParts`).

        Normal parts' fourth powers add up to three times the squares of their variances; what goes
        beyond makes the variance surer than it is.
        """
        squares = parts**2
        variance = float(squares.sum())
        if variance <= NO_VARIANCE:
            return cls(variance, layout, seeds)
        fourth = float((squares**2).sum()) / variance**2
        return cls(variance, layout, seeds, max(0.0, fourth - 3 * layout.concentration))

    def ends(self, value: float, level: float) -> tuple[float, float]:
        """The interval of a difference, in [-1, 1].

        Where hardly any cluster differs from another the variance says nothing: of n independent
        pairs that all gave the same, up to t^2 / (n + t^2) of all pairs may be others (the score
        interval of a share that was never seen). It is never narrower for that.
        """
        step = _step(self.layout.degrees, level)
        seeds = self._seeds_square(level)
        below = above = step**2 * self.variance
        if self._is_alike:
            unseen = _unseen(step**2 * self.layout.thinness)
            below = max(below, (unseen * (1 + value)) ** 2)
            above = max(above, (unseen * (1 - value)) ** 2)
        return max(-1.0, value - sqrt(below + seeds)), min(1.0, value + sqrt(above + seeds))

    def share_ends(self, value: float, level: float) -> tuple[float, float]:
        """The interval of a share, in [0, 1]: Wilson's, with as many pairs as would have this
        variance were they independent, and t for the normal. Of its degrees of freedom only those
        count that clusters far off leave: near 0 and 1 it holds more often so, where a difference
        only gets wider (benchmarks/interval_coverage.py, benchmarks/README.md). Of outcomes that
        are nearly equal the variance says as little as in `ends`."""
        seeds = self._seeds_square(level)
        spread = value * (1 - value)
        low = high = value
        varies = self.variance > NO_VARIANCE and spread > 0
        if varies:
            step = _step(max(1.0, 2 / (2 / self.layout.degrees + self.excess)), level)
            a = (step**2 * self.variance + seeds) / spread
            middle = (value + a / 2) / (1 + a)
            half = sqrt(a * spread + a**2 / 4) / (1 + a)
            low, high = middle - half, middle + half
        if not varies or self.variance <= NEARLY_EQUAL * spread * self.layout.thinness:
            unseen = _unseen(_step(self.layout.degrees, level) ** 2 * self.layout.thinness)
            low = min(low, value - sqrt((unseen * value) ** 2 + seeds))
            high = max(high, value + sqrt((unseen * (1 - value)) ** 2 + seeds))
        # Rounding alone must not leave the range, nor the value the interval.
        return max(0.0, min(low, value)), min(1.0, max(high, value))

    def p_value(self, value: float) -> float:
        """Two-sided: the level whose interval of a difference ends at 0."""
        # A difference that only rounding sets apart from 0 is 0.
        if abs(value) <= 1e-12:
            return 1.0
        if self.seeds.value <= NO_VARIANCE:
            square = value**2 / self.variance if self.variance > NO_VARIANCE else inf
            if self._is_alike:
                square = min(square, abs(value) / self.layout.thinness)
            return float(max(SMALLEST_P, 2 * stdtr(self.layout.degrees, -sqrt(square))))

        def excess(log_level: float) -> float:
            """How far the interval reaches beyond 0."""
            low, high = self.ends(value, exp(log_level))
            return -low if value > 0 else high

        if excess(log(SMALLEST_P)) < 0:
            return SMALLEST_P
        # A fifth of a second to import, which most commands do without.
        from scipy.optimize import brentq

        return exp(float(brentq(excess, log(SMALLEST_P), -1e-12, xtol=1e-9)))

    def detectable(self, level: float) -> float | None:
        """The smallest difference with p <= `level` in 80 % of cases; None where it is above 1, and
        where models never differ, or alike for everyone: that says nothing of what another could
        show."""
        square = 0.0
        for variance, degrees in (
            (0.0 if self._is_alike else self.variance, self.layout.degrees),
            (self.seeds.value, self.seeds.degrees),
        ):
            if variance > NO_VARIANCE:
                square += _needed(degrees, level) ** 2 * variance
        return sqrt(square) if 0 < square <= 1 else None

    @property
    def _is_alike(self) -> bool:
        """Whether a difference is as good as the same for all pairs."""
        alike = NEARLY_EQUAL_DIFFERENCES * self.layout.thinness
        return self.variance <= max(NO_VARIANCE, alike)

    def _seeds_square(self, level: float) -> float:
        """The seeds' half-width squared: by itself, for few seeds know their variance badly, and
        an average of the two kinds of degrees of freedom would hide it."""
        if self.seeds.value <= NO_VARIANCE:
            return 0.0
        return _step(self.seeds.degrees, level) ** 2 * self.seeds.value


def accuracy(outcomes: NDArray[Any], clusters: NDArray[Any]) -> Estimate:
    """Mean outcome over pairs, with its 95 % interval.

    Args:
        outcomes: (B,) or (B, K), bool or fractions in [0, 1].
        clusters: (B,) labels, integers or text.

    Returns: value None without pairs; no interval with one cluster.
    Raises: ValueError if shapes differ or an outcome is NaN or infinite.
    """
    return macro_mean([outcomes], [clusters])


def paired_difference(
    outcomes: NDArray[Any], rival_outcomes: NDArray[Any], clusters: NDArray[Any]
) -> Difference:
    """Mean of `outcomes - rival_outcomes` on the same pairs: interval, p-value, power.

    Args and errors as for `accuracy`; the two may have different numbers of seeds.
    Returns: value None without pairs; no interval and no p-value with one cluster; p-value 1
        where the mean difference is 0; `p_holm` None.
    """
    return macro_difference([outcomes], [rival_outcomes], [clusters])


def macro_mean(
    outcomes: Sequence[NDArray[Any]],
    clusters: Sequence[NDArray[Any]],
    *,
    one_training: bool = False,
) -> Estimate:
    """Mean over cultures of each one's mean outcome: every culture counts alike.

    Where no cluster serves two cultures (users), each culture's vary by themselves. Where one does
    (questions asked in several countries), a question moves all of them at once. A culture with
    one cluster takes the variance of the others' clusters (`cluster_layout`).

    Args:
        outcomes, clusters: per culture, (B_c,) or (B_c, K_c), and (B_c,); the same label is the
            same cluster.
        one_training: a seed's model is the same for all cultures; else one culture's seeds are
            independent of another's, for they are other trainings.

    Returns: value None if any culture has no pair, for a mean over fewer cultures is another
        number; no interval if no culture has two clusters.
    Raises: as for `accuracy`.
    """
    columns = [_column(seed_mean(of)) for of in same_lengths(outcomes, clusters)]
    found = macro_parts(columns, clusters)
    value = _value(found)
    seeds = macro_seed_variance(outcomes, clusters, one_training=one_training)
    if value is None or found.layout is None:
        return Estimate(value, None, None, found.num_pairs, len(found.labels))
    spread = Spread.of(found.parts[:, 0], found.layout, seeds)
    low, high = spread.share_ends(value, LEVEL)
    return Estimate(value, low, high, found.num_pairs, len(found.labels))


def macro_difference(
    outcomes: Sequence[NDArray[Any]],
    rival_outcomes: Sequence[NDArray[Any]],
    clusters: Sequence[NDArray[Any]],
    *,
    one_training: bool = False,
    rival_one_training: bool = False,
) -> Difference:
    """Mean over cultures of their paired differences, with interval, p-value and power.

    The seeds of the two are taken to be independent.

    Args, result and errors as for `macro_mean` and `paired_difference`.
    """
    differences = [
        _column(seed_mean(ours) - seed_mean(theirs))
        for ours, theirs in zip(same_lengths(outcomes, rival_outcomes), rival_outcomes, strict=True)
    ]
    found = macro_parts(differences, clusters)
    value = _value(found)
    seeds = macro_seed_variance(outcomes, clusters, one_training=one_training).plus(
        macro_seed_variance(rival_outcomes, clusters, one_training=rival_one_training)
    )
    sizes = (found.num_pairs, len(found.labels))
    if value is None or found.layout is None:
        return Difference(value, None, None, None, None, *sizes)
    spread = Spread(float(found.variances[0]), found.layout, seeds)
    return Difference(
        value,
        *spread.ends(value, LEVEL),
        spread.p_value(value),
        None,
        *sizes,
        spread.detectable(LEVEL),
    )


def standard_errors(clusters: NDArray[Any], *, level: float) -> float | None:
    """How many of them a mean's t-interval reaches to either side; None with fewer than two
    clusters.

    Args:
        clusters: (B,) labels of the pairs.
        level: one minus the confidence.
    """
    sizes = np.unique(clusters, return_counts=True)[1]
    layout = cluster_layout(sizes[:, None].astype(np.float64))
    return None if layout is None else _step(layout.degrees, level)


def verdict(found: Difference | None) -> Verdict:
    """What a difference shows: the one place that words, colours and stars come from.

    "better" and "worse" where the 95 % interval lies on one side of 0, "not distinguishable" where
    it holds 0, "unknown" where there is no interval.
    """
    if found is None or found.low is None or found.high is None:
        return "unknown"
    if found.low > 0:
        return "better"
    return "worse" if found.high < 0 else "not distinguishable"


def standing(reached: Estimate | None, minus_best: Difference | None) -> Standing:
    """How one of several that were ranked stands to the best of them.

    "best" is the one without a difference from it; another is "behind" only if its interval, which
    holds for all of them at once (`joint_scores`), excludes 0.
    """
    if minus_best is None:
        known = reached is not None and reached.value is not None
        return "best" if known else "unknown"
    found = verdict(minus_best)
    return found if found in ("not distinguishable", "unknown") else "behind"


def reversed_difference(found: Difference) -> Difference:
    """The same comparison from the other side: the rival minus this model."""
    value, low, high = found.value, found.low, found.high
    return replace(
        found,
        value=None if value is None else 0.0 - value,
        low=None if high is None else 0.0 - high,
        high=None if low is None else 0.0 - low,
    )


def clusters_needed(found: Difference, effect: float) -> int | None:
    """Users (or questions) with which a difference of `effect` would show in 80 % of cases.

    What is detectable falls with the square root of their number. Seeds, which more users do not
    make surer, count as if it did: with several seeds more users than these may be needed.

    Args:
        effect: accuracy, in (0, 1].

    Returns: None where nothing says how users differ (`Difference.detectable`).
    Raises: ValueError if `effect` is not in (0, 1].
    """
    if not 0 < effect <= 1:
        raise ValueError(f"effect must be in (0, 1], got {effect}")
    if found.detectable is None:
        return None
    # Rounding must not ask for one more.
    return ceil(round(found.num_clusters * (found.detectable / effect) ** 2, 9))


def detectable_difference(
    cluster_sizes: NDArray[Any], *, differing_share: float, correlation: float
) -> float | None:
    """The smallest paired difference that a test set could show, before any model is there.

    In 80 % of test sets like this one a difference of this size would have p <= 0.05.

    Args:
        cluster_sizes: (G,) pairs of each user (or question).
        differing_share: share of the pairs that one model ranks right and the other wrong.
        correlation: of two pairs of one cluster in which model is right.

    Returns: accuracy, in (0, 1]; None with fewer than two clusters, or where no difference is
        large enough.
    """
    sizes = np.asarray(cluster_sizes, dtype=np.float64)
    sizes = sizes[sizes > 0]
    layout = cluster_layout(sizes[:, None])
    if layout is None:
        return None
    variance = differing_share * (sizes * (1 + correlation * (sizes - 1))).sum() / sizes.sum() ** 2
    needed = _needed(layout.degrees, LEVEL) * float(np.sqrt(variance))
    return needed if needed <= 1 else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction over the tests that have a p-value; None stays None.

    Raises: ValueError if a p-value is outside [0, 1] or NaN.
    Source: Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(known):
        if not 0 <= p <= 1:
            raise ValueError(f"a p-value must be in [0, 1], got {p}")
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        corrected[index] = highest
    return corrected


def with_holm(differences: Sequence[Difference]) -> list[Difference]:
    """The differences with `p_holm` set, corrected over all of them."""
    corrected = holm([difference.p_value for difference in differences])
    return [replace(d, p_holm=p) for d, p in zip(differences, corrected, strict=True)]


def _column(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[:, None]


def _value(found: MacroParts) -> float | None:
    value = float(found.values[0])
    return None if np.isnan(value) else value


def _unseen(square: float) -> float:
    """The share of pairs that may be unlike all that were seen; `square`: t^2 / n."""
    return square / (1 + square)


def _step(degrees: float, level: float) -> float:
    """How many standard errors away from the value an interval ends."""
    return float(-stdtrit(degrees, level / 2))


def _needed(degrees: float, level: float) -> float:
    """Standard errors that a difference must be for p <= `level` in 80 % of cases."""
    return _step(degrees, level) + float(stdtrit(degrees, POWER))
