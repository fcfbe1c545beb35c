"""Intervals over resampled clusters, paired tests, Holm, power, seeds: numbers in, numbers out.

A *cluster* is what came into the data as one: a user with all their pairs, or a question where
no user is known. Its pairs resemble each other, so intervals resample whole clusters and tests
flip the sign of whole clusters. An *outcome* is 1 for a pair ranked right, 0 for one ranked wrong,
or a fraction. Outcomes are (B,) of one model or (B, K) of a method's K seeds: seeds are averaged,
and how much they differ is a second layer of chance in the interval and in the test.

**Intervals** are percentiles of a cluster bootstrap, taken further out than 2.5 % because few
clusters, and unequal ones, make the bootstrap too narrow; `cluster_freedom` says how far. **Tests**
flip signs and compare the difference over its standard error. How often both are right is measured
by benchmarks/interval_coverage.py; docs/method.md has the table.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from scpo_ray.records import Difference, Estimate
from scpo_ray.statistics.cluster_variance import (
    ClusterSums,
    SeedVariance,
    cluster_sums,
    macro_seed_variance,
    same_lengths,
    seed_mean,
)

# With more clusters than this the sign flips are drawn, not enumerated (2 to this power of them).
EXACT_CLUSTERS = 12
NUM_FLIPS = 10_000
POWER = 0.8
# Cells of a block of resamples: stays in the cache, and bounds the memory.
BLOCK_CELLS = 200_000


def stream(seed: int, *names: str) -> np.random.Generator:
    """The stream of chance that belongs to `names` under `seed`.

    Each use of chance has its own, so that one more culture, layer or control leaves the draws of
    the others alone.
    """
    digest = hashlib.sha256(json.dumps(names).encode()).digest()
    words = np.frombuffer(digest, dtype="<u4").tolist()
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))


def accuracy(
    outcomes: NDArray[Any], clusters: NDArray[Any], *, samples: int, rng: np.random.Generator
) -> Estimate:
    """Mean outcome over pairs, with its 95 % interval from a cluster bootstrap.

    Each resample draws as many clusters as there are, with replacement, and divides the sum of
    their outcomes by the number of their pairs; the interval ends at the percentiles of
    `cluster_freedom`.

    Args:
        outcomes: (B,) or (B, K), bool or fractions in [0, 1].
        clusters: (B,) labels, integers or text.
        samples: number of resamples.

    Returns: value None without pairs; no interval with one cluster.
    Raises: ValueError if shapes differ or an outcome is NaN or infinite.
    """
    return macro_mean([outcomes], [clusters], samples=samples, rng=rng)


def paired_difference(
    outcomes: NDArray[Any],
    rival_outcomes: NDArray[Any],
    clusters: NDArray[Any],
    *,
    samples: int,
    rng: np.random.Generator,
) -> Difference:
    """Mean of `outcomes - rival_outcomes` on the same pairs: interval, p-value, power.

    The interval is that of `accuracy`. The p-value is two-sided: were the two models alike, every
    cluster's summed difference could as well have the other sign. What is compared is the
    difference over its standard error, which tells apart signs that give the same difference, and
    signs that are just as extreme count half (mid-p): with few clusters a plain count of them
    would call a difference at 5 % in 1 to 3 % of cases. All signs are tried where 12 clusters or
    fewer differ, 10,000 random ones where more do.

    Args and errors as for `accuracy`; the two may have different numbers of seeds.
    Returns: value None without pairs; no interval and no p-value with one cluster; p-value 1
        where no cluster differs or the mean difference is 0; `p_holm` None.
    """
    return macro_difference([outcomes], [rival_outcomes], [clusters], samples=samples, rng=rng)


def macro_mean(
    outcomes: Sequence[NDArray[Any]],
    clusters: Sequence[NDArray[Any]],
    *,
    samples: int,
    rng: np.random.Generator,
    one_training: bool = False,
) -> Estimate:
    """Mean over cultures of each one's mean outcome: every culture counts alike.

    Where no cluster serves two cultures (users), clusters are resampled within each culture.
    Where one does (questions asked in several countries), all clusters are resampled together: a
    question drawn once is drawn for every culture it serves, so its shared difficulty stays in
    the interval. Resamples that leave a culture empty are left out.

    Args:
        outcomes, clusters: per culture, (B_c,) or (B_c, K_c), and (B_c,); the same label is the
            same cluster. Interval ends stay within the range of the resamples' outcomes.
        samples: number of resamples.
        one_training: a seed's model is the same for all cultures; else one culture's seeds are
            independent of another's, for they are other trainings.

    Returns: value None if any culture has no pair, for a mean over fewer cultures is another
        number; no interval if any culture has one cluster or half of the resamples fell out.
    Raises: as for `accuracy`.
    """
    sums = cluster_sums([seed_mean(columns) for columns in outcomes], clusters)
    seeds = macro_seed_variance(outcomes, clusters, one_training=one_training)
    low, high = _interval(sums, seeds, samples=samples, rng=rng)
    if low is not None and high is not None and seeds.value > 0:
        # The seeds' noise knows no bounds; a share has them.
        low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(sums.macro_mean, low, high, sums.num_pairs, len(sums.sizes))


def macro_difference(
    outcomes: Sequence[NDArray[Any]],
    rival_outcomes: Sequence[NDArray[Any]],
    clusters: Sequence[NDArray[Any]],
    *,
    samples: int,
    rng: np.random.Generator,
    one_training: bool = False,
    rival_one_training: bool = False,
) -> Difference:
    """Mean over cultures of their paired differences, with interval, p-value and power.

    The interval is that of `macro_mean` over the differences. The p-value flips the sign of a
    whole cluster, in every culture that it serves, as in `paired_difference`. The seeds of the two
    are taken to be independent.

    Args, result and errors as for `macro_mean` and `paired_difference`.
    """
    differences = [
        seed_mean(ours) - seed_mean(theirs)
        for ours, theirs in zip(same_lengths(outcomes, rival_outcomes), rival_outcomes, strict=True)
    ]
    sums = cluster_sums(differences, clusters)
    seeds = macro_seed_variance(outcomes, clusters, one_training=one_training).plus(
        macro_seed_variance(rival_outcomes, clusters, one_training=rival_one_training)
    )
    value = sums.macro_mean
    low, high = _interval(sums, seeds, samples=samples, rng=rng)
    return Difference(
        value,
        low,
        high,
        None if value is None else _sign_flip_p_value(sums, seeds, rng),
        None,
        sums.num_pairs,
        len(sums.sizes),
        _detectable(sums, seeds),
    )


def detectable_difference(
    cluster_sizes: NDArray[Any], *, differing_share: float, correlation: float
) -> float | None:
    """The smallest paired difference that a test set could show, before any model is there.

    In 80 % of test sets like this one a difference of this size would have p <= 0.05.

    Args:
        cluster_sizes: (G,) pairs of each user (or question).
        differing_share: share of the pairs that one model ranks right and the other wrong.
        correlation: of two pairs of one cluster in which model is right.

    Returns: accuracy, in [0, 1]; None with fewer than two clusters.
    """
    sizes = np.asarray(cluster_sizes, dtype=np.float64)
    sizes = sizes[sizes > 0]
    freedom = ClusterSums(np.zeros((len(sizes), 1)), sizes[:, None]).freedom
    if freedom is None:
        return None
    variance = differing_share * (sizes * (1 + correlation * (sizes - 1))).sum() / sizes.sum() ** 2
    return min(1.0, _needed(freedom.degrees) * float(np.sqrt(variance)))


def basic_interval(found: Estimate | Difference) -> tuple[float | None, float | None]:
    """The basic bootstrap interval of the same resamples: the reported one, reversed at the value.

    It takes how far the resamples lie from the value for how far the value lies from the truth:
    2 * value - high to 2 * value - low. Offered beside the reported interval, not in its place: it
    errs on the side where the resamples are skewed, holds the truth less often, and a share's may
    leave [0, 1] (docs/method.md).

    Returns: low and high; None twice where there is no interval.
    Source: Davison and Hinkley (1997), "Bootstrap Methods and their Application", 2.4.
    """
    if found.value is None or found.low is None or found.high is None:
        return None, None
    return 2 * found.value - found.high, 2 * found.value - found.low


def within_noise(difference: Difference) -> bool:
    """Whether the interval contains 0 (or there is no interval to tell)."""
    low, high = difference.low, difference.high
    return low is None or high is None or not (low > 0 or high < 0)


@dataclass(frozen=True)
class ClusterDraws:
    """One culture's clusters drawn anew, once for every model that is measured on them.

    `labels`: (G,) the clusters, sorted; `counts`: (samples, G), how often each was drawn.
    """

    labels: NDArray[Any]
    counts: NDArray[np.uint16]


def draw_clusters(
    clusters: Sequence[NDArray[Any]], *, samples: int, rng: np.random.Generator
) -> list[ClusterDraws]:
    """The resamples of `macro_mean`, to be shared by many models: per culture, its draws.

    Where no cluster serves two cultures each culture's are drawn by themselves; where one does
    all are drawn together, as in `macro_mean`, which draws the same with the same `rng`.

    Args:
        clusters: per culture, (B_c,) labels of its pairs; the same label is the same cluster.
        samples: number of resamples.

    Returns: per culture, (samples, G_c) counts, 2 bytes each: at most 2 * samples for each pair.
    """
    if not clusters:
        return []
    labels, codes = np.unique(np.concatenate(list(clusters)), return_inverse=True)
    ends = np.cumsum([len(column) for column in clusters])
    members = [np.unique(column) for column in np.split(codes, ends[:-1])]
    if sum(len(column) for column in members) > len(labels):
        together = _drawn(len(labels), samples=samples, rng=rng)
        return [ClusterDraws(labels[column], together[:, column]) for column in members]
    return [
        ClusterDraws(labels[column], _drawn(len(column), samples=samples, rng=rng))
        for column in members
    ]


def joint_means(
    outcomes: NDArray[Any], clusters: NDArray[Any], draws: ClusterDraws
) -> NDArray[np.float64]:
    """Every model's mean outcome on one culture, in the same resamples: a joint bootstrap.

    Because all models share the draws, the difference of two columns is a paired replicate and
    the best column of a row is the choice that this resample would have made.

    Args:
        outcomes: (B, M) of M models, bool or fractions in [0, 1].
        clusters: (B,) labels.
        draws: of these clusters, from `draw_clusters`.

    Returns: (samples, M); a row is NaN where its resample holds none of the culture's pairs, and
        every row with fewer than two clusters, for one says nothing of how clusters differ.
    Raises: ValueError if the shapes differ, an outcome is NaN or infinite, or the draws are of
        other clusters.
    """
    if outcomes.ndim != 2 or clusters.shape != outcomes.shape[:1]:
        shapes = f"{outcomes.shape} and {clusters.shape}"
        raise ValueError(f"outcomes and clusters must be (B, M) and (B,), got {shapes}")
    values = outcomes.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"outcomes must be finite, got {values[~np.isfinite(values)][0]}")
    labels, sizes = np.unique(clusters, return_counts=True)
    if not np.array_equal(labels, draws.labels):
        raise ValueError(f"draws are of {len(draws.labels)} clusters, not of these {len(labels)}")
    samples, num_models = len(draws.counts), values.shape[1]
    if len(labels) < 2:
        return np.full((samples, num_models), np.nan)
    order = np.argsort(clusters, kind="stable")
    totals = np.add.reduceat(values[order], np.cumsum(sizes) - sizes, axis=0)
    means = np.empty((samples, num_models))
    block = max(1, BLOCK_CELLS // len(labels))
    for start in range(0, samples, block):
        # As floats, and a block at a time: only these are multiplied by BLAS.
        counts = draws.counts[start : start + block].astype(np.float64)
        drawn_sizes = (counts @ sizes)[:, None]
        np.divide(
            counts @ totals,
            drawn_sizes,
            out=means[start : start + block],
            where=drawn_sizes > 0,
        )
        means[start : start + block][drawn_sizes[:, 0] == 0] = np.nan
    return means


def percentile_intervals(
    replicates: NDArray[np.float64], tails: float | NDArray[np.float64]
) -> NDArray[np.float64]:
    """The interval of each number between two percentiles of its replicates.

    Args:
        replicates: (samples, M). A row that is NaN in every column is left out; a column that is
            NaN elsewhere has no interval.
        tails: share of the replicates left out at each end (`Freedom.tail`), for all or (M,).

    Returns: (2, M), low and high; NaN where a column has none or half of the rows fell out.
    """
    num_models = replicates.shape[1]
    intervals = np.full((2, num_models), np.nan)
    complete = replicates[~np.isnan(replicates).all(axis=1)]
    if 2 * len(complete) < len(replicates):
        return intervals
    tails = np.broadcast_to(tails, num_models)
    for tail in np.unique(tails):
        alike = tails == tail
        intervals[:, alike] = np.quantile(complete[:, alike], [tail, 1 - tail], axis=0)
    return intervals


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


def _interval(
    sums: ClusterSums, seeds: SeedVariance, *, samples: int, rng: np.random.Generator
) -> tuple[float | None, float | None]:
    """The percentiles of the resampled macro means at the tail they call for, or None twice."""
    freedom = sums.freedom
    if freedom is None:
        return None, None
    if sums.are_shared:
        means = _resampled_means(sums.totals, sums.sizes, samples=samples, rng=rng)
    else:
        columns = [
            _resampled_means(
                sums.totals[rows][:, [column]],
                sums.sizes[rows][:, [column]],
                samples=samples,
                rng=rng,
            )
            for column, rows in enumerate((sums.sizes > 0).T)
        ]
        means = np.hstack(columns)
    replicates = means.mean(axis=1, keepdims=True)
    if seeds.value > 0:
        freedom = freedom.with_seeds(sums.bootstrap_variance, seeds)
        replicates += np.sqrt(seeds.value) * rng.standard_normal(replicates.shape)
    low, high = percentile_intervals(replicates, freedom.tail)[:, 0]
    return (None, None) if np.isnan(low) else (float(low), float(high))


def _detectable(sums: ClusterSums, seeds: SeedVariance) -> float | None:
    """The smallest macro difference that clusters and seeds which vary so much could show."""
    freedom = sums.freedom
    if freedom is None:
        return None
    plain = sums.bootstrap_variance
    if seeds.value > 0:
        freedom = freedom.with_seeds(plain, seeds)
    variance = (plain + seeds.value) * freedom.inflation
    # Models that never differ, or alike for everyone, say nothing of what another one could show.
    return _needed(freedom.degrees) * float(np.sqrt(variance)) if variance > 1e-20 else None


def _needed(degrees: float) -> float:
    """Standard errors that a difference must be for p <= 0.05 in 80 % of cases."""
    return float(t.ppf(0.975, degrees) + t.ppf(POWER, degrees))


def _resampled_means(
    totals: NDArray[np.float64],
    sizes: NDArray[np.float64],
    *,
    samples: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """(samples, C) mean outcome per culture with the clusters drawn anew; NaN where empty."""
    both = np.hstack([totals, sizes])
    blocks = _count_blocks(len(totals), samples=samples, rng=rng)
    sums = np.concatenate([counts @ both for counts in blocks])
    total, size = np.hsplit(sums, 2)
    means: NDArray[np.float64] = np.divide(
        total, size, out=np.full_like(total, np.nan), where=size > 0
    )
    return means


def _drawn(num_clusters: int, *, samples: int, rng: np.random.Generator) -> NDArray[np.uint16]:
    """(samples, G) how often each cluster is drawn; no cluster comes up 65,536 times."""
    if num_clusters == 0:
        return np.zeros((samples, 0), dtype=np.uint16)
    blocks = _count_blocks(num_clusters, samples=samples, rng=rng)
    return np.concatenate([counts.astype(np.uint16) for counts in blocks])


def _count_blocks(
    num_clusters: int, *, samples: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """(rows, G) how often each cluster is drawn in each resample; `samples` rows over all."""
    block = max(1, BLOCK_CELLS // num_clusters)
    for start in range(0, samples, block):
        rows = min(block, samples - start)
        drawn = rng.integers(num_clusters, size=(rows, num_clusters))
        drawn += num_clusters * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)


def _sign_flip_p_value(
    sums: ClusterSums, seeds: SeedVariance, rng: np.random.Generator
) -> float | None:
    """Two-sided mid-p-value of the macro difference over its standard error, under random signs.

    The standard error is that of `cluster_freedom`, with the cultures as one: cluster g stands for
    its share of the macro mean. The seeds' variance widens the observed one, and more so where few
    seeds know it badly.
    """
    if len(sums.sizes) < 2:
        return None
    freedom = sums.freedom
    wider = 1.0
    if freedom is not None and seeds.value > 0:
        with_seeds = freedom.with_seeds(sums.bootstrap_variance, seeds)
        quantiles = t.ppf(0.975, [freedom.degrees, with_seeds.degrees])
        wider = max(1.0, float(quantiles[1] / quantiles[0])) ** 2
    parts, shares = sums.parts, sums.shares
    moves = parts != 0
    moving = parts[moves]
    observed = moving.sum()
    # A difference that only rounding sets apart from 0 is 0.
    if abs(observed) <= 1e-12 * np.abs(moving).sum():
        return 1.0
    inverse = 1 / (1 - shares)
    square = float((inverse * parts**2).sum())
    leaning = moving * (shares * inverse)[moves]
    both = np.stack([moving, leaning], axis=1)
    whole = both.sum(axis=0)[:, None]
    own = float((inverse * shares**2).sum())

    def extremes(flips: NDArray[Any]) -> tuple[int, int]:
        """How many rows (1 flips a cluster) are further from 0 than was observed, and as far."""
        differences, leanings = whole - 2 * (flips @ both).T
        variances = square - 2 * differences * leanings
        variances += own * differences**2
        # Multiplied out: a variance may be 0. What rounding sets apart is as far.
        excess = differences**2 * (variance + seeds.value) * wider - observed**2 * variances
        bound = 1e-9 * observed**2 * square
        return int((excess > bound).sum()), int((np.abs(excess) <= bound).sum())

    variance = square - 2 * observed * leaning.sum() + own * observed**2
    if moving.size <= EXACT_CLUSTERS:
        further, as_far = extremes(np.arange(2**moving.size)[:, None] >> np.arange(moving.size) & 1)
        return float((further + as_far / 2) / 2**moving.size)
    further, as_far = 0, 1
    block = max(1, BLOCK_CELLS // moving.size)
    for start in range(0, NUM_FLIPS, block):
        rows = min(block, NUM_FLIPS - start)
        packed = rng.bytes(rows * (-(-moving.size // 8)))
        bits = np.unpackbits(np.frombuffer(packed, np.uint8).reshape(rows, -1), axis=1)
        counts = extremes(bits[:, : moving.size])
        further, as_far = further + counts[0], as_far + counts[1]
    return (further + as_far / 2) / (NUM_FLIPS + 1)
