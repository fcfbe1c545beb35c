"""Accuracy by layer, intervals over resampled clusters, paired tests: numbers in, numbers out.

A *cluster* is what came into the data as one: a user with all their pairs, or a question where
no user is known. Its pairs resemble each other, so intervals resample whole clusters and tests
flip the sign of whole clusters. An *outcome* is 1 for a pair ranked right, 0 for one ranked wrong,
or a fraction where several models (seeds) are averaged.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from scpo_ray.records import Difference, Estimate, Layer

# With more clusters than this the sign flips are drawn, not enumerated (2 to this power of them).
EXACT_CLUSTERS = 12
NUM_FLIPS = 10_000
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


def ranked_right(chosen_rewards: NDArray[Any], rejected_rewards: NDArray[Any]) -> NDArray[np.bool_]:
    """(B,) whether each pair is ranked right: chosen strictly above rejected; a tie is wrong.

    Raises: ValueError if the shapes differ or a reward is NaN or infinite.
    """
    return _margins(chosen_rewards, rejected_rewards) > 0


def win_probabilities(
    chosen_rewards: NDArray[Any], rejected_rewards: NDArray[Any]
) -> NDArray[np.float64]:
    """(B,) sigmoid(chosen - rejected): the chance the model gives `chosen` of winning.

    Raises: ValueError if the shapes differ or a reward is NaN or infinite.
    """
    probabilities: NDArray[np.float64] = expit(_margins(chosen_rewards, rejected_rewards))
    return probabilities


def layer_masks(
    ref_chosen_rewards: NDArray[Any],
    ref_rejected_rewards: NDArray[Any],
    *,
    distinctive_threshold: float,
) -> dict[Layer, NDArray[np.bool_]]:
    """Which pairs each layer holds: `distinctive` and `agreed` part `all` between them.

    Distinctive: the reference model's win probability is at or below the threshold. "At" matters
    for one value: two equal reference rewards at the threshold 0.5. The reference model does not
    rank such a pair right, so it is distinctive, and the reference model's accuracy is exactly 0
    on `distinctive` and 1 on `agreed`.

    Args:
        ref_chosen_rewards, ref_rejected_rewards: (B,) in reward units.
        distinctive_threshold: a probability in (0, 1]; 0.5 in the paper.

    Returns: layer -> (B,) mask.
    Raises: ValueError if the shapes differ, a reward is NaN or infinite, or the threshold is
        outside (0, 1].
    Source: SCPO, "Evaluation"; the tie is ours.
    """
    if not 0 < distinctive_threshold <= 1:
        raise ValueError(f"distinctive_threshold must be in (0, 1], got {distinctive_threshold}")
    margins = _margins(ref_chosen_rewards, ref_rejected_rewards)
    # Margins against the threshold's logit: a sigmoid rounds the smallest margins to 0.5.
    distinctive = margins <= logit(distinctive_threshold)
    return {
        "all": np.ones(len(margins), dtype=np.bool_),
        "distinctive": distinctive,
        "agreed": ~distinctive,
    }


def accuracy(
    outcomes: NDArray[Any], clusters: NDArray[Any], *, samples: int, rng: np.random.Generator
) -> Estimate:
    """Mean outcome over pairs, with the 95 % percentile interval of a cluster bootstrap.

    Each resample draws as many clusters as there are, with replacement, and divides the sum of
    their outcomes by the number of their pairs. Few clusters make it too narrow: at a nominal
    95 % it held the truth in 88 % of 2,000 simulated cultures with 8 users, 90 % with 13 and
    93 % with 40 (2 to 30 correlated pairs each; benchmarks/interval_coverage.py).

    Args:
        outcomes: (B,) bool, or fractions in [0, 1].
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
    """Mean of `outcomes - rival_outcomes` on the same pairs, its interval and its p-value.

    The interval is that of `accuracy`. The p-value is two-sided: were the two models alike, every
    cluster's summed difference could as well have the other sign. All signs are tried where 12
    clusters or fewer differ, 10,000 random ones (+1 correction) where more do. At p <= 0.05 it
    gave 2 to 4 % false alarms in the simulated cultures of `accuracy`. Its smallest value with G
    clusters is 2 / 2**G: with 8 users 0.008, which Holm's correction over seven such cultures
    lifts to 0.055, so few users cannot carry a claim for one culture of many.

    Args and errors as for `accuracy`, both outcomes (B,).
    Returns: value None without pairs; no interval and no p-value with one cluster; p-value 1
        where no cluster differs; `p_holm` None.
    """
    return macro_difference([outcomes], [rival_outcomes], [clusters], samples=samples, rng=rng)


def macro_mean(
    outcomes: Sequence[NDArray[Any]],
    clusters: Sequence[NDArray[Any]],
    *,
    samples: int,
    rng: np.random.Generator,
) -> Estimate:
    """Mean over cultures of each one's mean outcome: every culture counts alike.

    Where no cluster serves two cultures (users), clusters are resampled within each culture.
    Where one does (questions asked in several countries), all clusters are resampled together: a
    question drawn once is drawn for every culture it serves, so its shared difficulty stays in
    the interval. Resamples that leave a culture empty are left out. With 7 cultures of 10 users,
    simulated as for `accuracy`, the nominal 95 % held the truth in 92 % of 1,500 draws.

    Args:
        outcomes, clusters: per culture, (B_c,) each; the same label is the same cluster.
        samples: number of resamples.

    Returns: value None if any culture has no pair, for a mean over fewer cultures is another
        number; no interval if any culture has one cluster or half of the resamples fell out.
    Raises: as for `accuracy`.
    """
    sums = _cluster_sums(outcomes, clusters)
    low, high = _interval(sums, samples=samples, rng=rng)
    return Estimate(_macro_value(sums), low, high, sums.num_pairs, len(sums.sizes))


def macro_difference(
    outcomes: Sequence[NDArray[Any]],
    rival_outcomes: Sequence[NDArray[Any]],
    clusters: Sequence[NDArray[Any]],
    *,
    samples: int,
    rng: np.random.Generator,
) -> Difference:
    """Mean over cultures of their paired differences, with interval and p-value.

    The interval is that of `macro_mean` over the differences. The p-value flips the sign of a
    whole cluster, in every culture that it serves, as in `paired_difference`.

    Args, result and errors as for `macro_mean` and `paired_difference`.
    """
    differences = [
        _outcomes(ours) - _outcomes(theirs)
        for ours, theirs in zip(_same_shapes(outcomes, rival_outcomes), rival_outcomes, strict=True)
    ]
    sums = _cluster_sums(differences, clusters)
    value = _macro_value(sums)
    low, high = _interval(sums, samples=samples, rng=rng)
    p_value = None
    if value is not None:
        shares = (sums.totals / sums.sizes.sum(axis=0)).mean(axis=1)
        p_value = _sign_flip_p_value(shares, rng)
    return Difference(value, low, high, p_value, None, sums.num_pairs, len(sums.sizes))


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


def percentile_intervals(replicates: NDArray[np.float64]) -> NDArray[np.float64]:
    """The 95 % percentile interval of each number, from its replicates.

    Args:
        replicates: (samples, M). A row that is NaN in every column is left out; a column that is
            NaN elsewhere has no interval.

    Returns: (2, M), low and high; NaN where a column has none or half of the rows fell out.
    """
    complete = replicates[~np.isnan(replicates).all(axis=1)]
    if 2 * len(complete) < len(replicates):
        return np.full((2, replicates.shape[1]), np.nan)
    intervals: NDArray[np.float64] = np.quantile(complete, [0.025, 0.975], axis=0)
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


@dataclass(frozen=True)
class _ClusterSums:
    """Outcomes added up: row per cluster, column per culture. Both (G, C) float64."""

    totals: NDArray[np.float64]
    sizes: NDArray[np.float64]

    @property
    def num_pairs(self) -> int:
        return int(self.sizes.sum())


def _margins(chosen_rewards: NDArray[Any], rejected_rewards: NDArray[Any]) -> NDArray[np.float64]:
    if chosen_rewards.shape != rejected_rewards.shape or chosen_rewards.ndim != 1:
        shapes = f"{chosen_rewards.shape} and {rejected_rewards.shape}"
        raise ValueError(f"chosen and rejected rewards must be (B,) and alike, got {shapes}")
    broken = ~(np.isfinite(chosen_rewards) & np.isfinite(rejected_rewards))
    if broken.any():
        first = int(np.argmax(broken))
        raise ValueError(
            f"rewards must be finite, got {int(broken.sum())} pairs that are not, the first at "
            f"{first}: {chosen_rewards[first]} and {rejected_rewards[first]}"
        )
    return chosen_rewards.astype(np.float64) - rejected_rewards.astype(np.float64)


def _outcomes(outcomes: NDArray[Any]) -> NDArray[np.float64]:
    values = outcomes.astype(np.float64)
    if not np.isfinite(values).all():
        first = int(np.argmin(np.isfinite(values)))
        raise ValueError(f"outcomes must be finite, got {values[first]} at {first}")
    return values


def _same_shapes(
    arrays: Sequence[NDArray[Any]], others: Sequence[NDArray[Any]]
) -> Sequence[NDArray[Any]]:
    shapes, other_shapes = [a.shape for a in arrays], [o.shape for o in others]
    if shapes != other_shapes or any(len(shape) != 1 for shape in shapes):
        raise ValueError(f"outcomes and clusters must be (B,) alike, got {shapes}, {other_shapes}")
    return arrays


def _cluster_sums(
    outcomes: Sequence[NDArray[Any]], clusters: Sequence[NDArray[Any]]
) -> _ClusterSums:
    if not outcomes:
        return _ClusterSums(np.zeros((0, 0)), np.zeros((0, 0)))
    lengths = [len(outcome) for outcome in _same_shapes(outcomes, clusters)]
    labels, codes = np.unique(np.concatenate(list(clusters)), return_inverse=True)
    shape = (len(labels), len(lengths))
    cells = codes * len(lengths) + np.repeat(np.arange(len(lengths)), lengths)
    values = np.concatenate([_outcomes(outcome) for outcome in outcomes])
    totals = np.bincount(cells, weights=values, minlength=shape[0] * shape[1])
    sizes = np.bincount(cells, minlength=shape[0] * shape[1])
    return _ClusterSums(
        totals.reshape(shape).astype(np.float64), sizes.reshape(shape).astype(np.float64)
    )


def _macro_value(sums: _ClusterSums) -> float | None:
    sizes = sums.sizes.sum(axis=0)
    if sizes.size == 0 or (sizes == 0).any():
        return None
    return float((sums.totals.sum(axis=0) / sizes).mean())


def _interval(
    sums: _ClusterSums, *, samples: int, rng: np.random.Generator
) -> tuple[float | None, float | None]:
    """The 2.5 and 97.5 percentiles of the resampled macro means, or None twice."""
    serves = sums.sizes > 0
    if serves.size == 0 or (serves.sum(axis=0) < 2).any():
        return None, None
    if (serves.sum(axis=1) > 1).any():
        means = _resampled_means(sums.totals, sums.sizes, samples=samples, rng=rng)
    else:
        columns = [
            _resampled_means(
                sums.totals[rows][:, [column]],
                sums.sizes[rows][:, [column]],
                samples=samples,
                rng=rng,
            )
            for column, rows in enumerate(serves.T)
        ]
        means = np.hstack(columns)
    low, high = percentile_intervals(means.mean(axis=1, keepdims=True))[:, 0]
    return (None, None) if np.isnan(low) else (float(low), float(high))


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


def _sign_flip_p_value(differences: NDArray[np.float64], rng: np.random.Generator) -> float | None:
    """Two-sided p-value of the sum of the clusters' differences under random signs."""
    if len(differences) < 2:
        return None
    moving = differences[differences != 0]
    if not moving.size:
        return 1.0
    # A sum that only rounding sets apart from the observed one counts as equal to it.
    bound = abs(moving.sum()) - 1e-12 * np.abs(moving).sum()
    if moving.size <= EXACT_CLUSTERS:
        flips = np.arange(2**moving.size)[:, None] >> np.arange(moving.size) & 1
        return float(np.mean(np.abs(2 * (flips @ moving) - moving.sum()) >= bound))
    as_extreme = 0
    block = max(1, BLOCK_CELLS // moving.size)
    for start in range(0, NUM_FLIPS, block):
        rows = min(block, NUM_FLIPS - start)
        packed = rng.bytes(rows * (-(-moving.size // 8)))
        bits = np.unpackbits(np.frombuffer(packed, np.uint8).reshape(rows, -1), axis=1)
        flipped = 2 * (bits[:, : moving.size] @ moving) - moving.sum()
        as_extreme += int(np.count_nonzero(np.abs(flipped) >= bound))
    return (as_extreme + 1) / (NUM_FLIPS + 1)
