"""Accuracy by layer, intervals over resampled clusters, paired tests: numbers in, numbers out.

A *cluster* is what came into the data as one: a user with all their pairs, or a question where
no user is known. Its pairs resemble each other, so intervals resample whole clusters and tests
flip the sign of whole clusters. An *outcome* is 1 for a pair ranked right, 0 for one ranked wrong,
or a fraction. Outcomes are (B,) of one model or (B, K) of a method's K seeds: seeds are averaged,
and how much they differ is a second layer of chance in the interval and in the test.

**Intervals** are percentiles of a cluster bootstrap, taken further out than 2.5 % because few
clusters, and unequal ones, make the bootstrap too narrow; `interval_tail` says how far. **Tests**
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
from scipy.special import expit, logit, ndtr
from scipy.stats import norm, t

from scpo_ray.records import Difference, Estimate, Layer

# With more clusters than this the sign flips are drawn, not enumerated (2 to this power of them).
EXACT_CLUSTERS = 12
NUM_FLIPS = 10_000
# Correlation of two outcomes of one cluster that the small-sample correction supposes. Only the
# correction depends on it, and little: what the clusters really do is in the resamples.
CLUSTER_CORRELATION = 0.05
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


def noise_outcomes(ref_margins: NDArray[Any], margins: NDArray[Any]) -> NDArray[np.float64]:
    """(B,) how often the reference model would rank each pair right, were a model's change noise.

    Gaussian noise as large as the change of the margins (its root mean square) is added to the
    reference margins: a pair is then ranked right with probability Phi(ref_margin / size), so no
    draw is needed. Where nothing changed, the reference model's own outcomes.

    Args:
        ref_margins, margins: (B,) of the reference and of the changed model, in reward units.

    Raises: ValueError if the shapes differ or a margin is NaN or infinite.
    """
    size = float(np.sqrt(np.mean(_margins(margins, ref_margins) ** 2))) if len(margins) else 0.0
    if size == 0:
        return (ref_margins > 0).astype(np.float64)
    probabilities: NDArray[np.float64] = ndtr(ref_margins.astype(np.float64) / size)
    return probabilities


def accuracy(
    outcomes: NDArray[Any], clusters: NDArray[Any], *, samples: int, rng: np.random.Generator
) -> Estimate:
    """Mean outcome over pairs, with its 95 % interval from a cluster bootstrap.

    Each resample draws as many clusters as there are, with replacement, and divides the sum of
    their outcomes by the number of their pairs; the interval ends at the percentiles of
    `interval_tail`.

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
) -> Estimate:
    """Mean over cultures of each one's mean outcome: every culture counts alike.

    Where no cluster serves two cultures (users), clusters are resampled within each culture.
    Where one does (questions asked in several countries), all clusters are resampled together: a
    question drawn once is drawn for every culture it serves, so its shared difficulty stays in
    the interval. Resamples that leave a culture empty are left out. One culture's seeds are taken
    to be independent of another's: they are other trainings.

    Args:
        outcomes, clusters: per culture, (B_c,) or (B_c, K_c), and (B_c,); the same label is the
            same cluster. Interval ends stay within the range of the resamples' outcomes.
        samples: number of resamples.

    Returns: value None if any culture has no pair, for a mean over fewer cultures is another
        number; no interval if any culture has one cluster or half of the resamples fell out.
    Raises: as for `accuracy`.
    """
    sums = _cluster_sums([_seed_mean(columns) for columns in outcomes], clusters)
    seeds = _seed_variance(outcomes, clusters)
    low, high = _interval(sums, seeds, samples=samples, rng=rng)
    if low is not None and high is not None and seeds.value > 0:
        # The seeds' noise knows no bounds; a share has them.
        low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(_macro_value(sums), low, high, sums.num_pairs, len(sums.sizes))


def macro_difference(
    outcomes: Sequence[NDArray[Any]],
    rival_outcomes: Sequence[NDArray[Any]],
    clusters: Sequence[NDArray[Any]],
    *,
    samples: int,
    rng: np.random.Generator,
) -> Difference:
    """Mean over cultures of their paired differences, with interval, p-value and power.

    The interval is that of `macro_mean` over the differences. The p-value flips the sign of a
    whole cluster, in every culture that it serves, as in `paired_difference`. The seeds of the two
    are taken to be independent.

    Args, result and errors as for `macro_mean` and `paired_difference`.
    """
    differences = [
        _seed_mean(ours) - _seed_mean(theirs)
        for ours, theirs in zip(
            _same_lengths(outcomes, rival_outcomes), rival_outcomes, strict=True
        )
    ]
    sums = _cluster_sums(differences, clusters)
    seeds = _seed_variance(outcomes, clusters).plus(_seed_variance(rival_outcomes, clusters))
    value = _macro_value(sums)
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


def interval_tail(clusters: Sequence[NDArray[Any]]) -> float:
    """The share of resamples that a 95 % interval leaves out at each end; at most 0.025.

    A bootstrap of G clusters is too narrow: its variance is short by about (G - 1) / G, more if
    some clusters are large, and it knows nothing of the variance's own uncertainty. So the
    percentiles are those of a normal at t * sqrt(inflation): t with the degrees of freedom that
    the clusters' sizes leave (Satterthwaite), inflation the expected ratio of a variance without
    bias (each cluster's residual over sqrt(1 - its share of the pairs), CR2) to the bootstrap's.
    Both depend on the sizes alone, so all models on the same pairs share one tail.

    Args:
        clusters: per culture of a macro mean, (B_c,) labels of its pairs.

    Returns: 0.025 where a culture has fewer than two clusters; there is no interval then.
    Source: Hesterberg (2015), "What teachers should know about the bootstrap" (expanded
        percentiles); Bell and McCaffrey (2002) and Imbens and Kolesar (2016) for the correction.
    """
    freedom = _freedom(_cluster_sums([np.zeros(len(column)) for column in clusters], clusters))
    return 0.025 if freedom is None else freedom.tail


def seed_variance(outcomes: NDArray[Any], clusters: NDArray[Any]) -> float:
    """The variance of the mean over seeds that the choice of clusters does not explain.

    Args:
        outcomes: (B, K) of K seeds; with one seed nothing is known, and 0 returned.
        clusters: (B,) labels.
    """
    return _seed_variance([outcomes], [clusters]).value


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
    freedom = _freedom(_ClusterSums(np.zeros((len(sizes), 1)), sizes[:, None]))
    if freedom is None:
        return None
    variance = differing_share * (sizes * (1 + correlation * (sizes - 1))).sum() / sizes.sum() ** 2
    return min(1.0, _needed(freedom.degrees) * float(np.sqrt(variance)))


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


def percentile_intervals(replicates: NDArray[np.float64], tail: float) -> NDArray[np.float64]:
    """The interval of each number between two percentiles of its replicates.

    Args:
        replicates: (samples, M). A row that is NaN in every column is left out; a column that is
            NaN elsewhere has no interval.
        tail: share of the replicates left out at each end, from `interval_tail`.

    Returns: (2, M), low and high; NaN where a column has none or half of the rows fell out.
    """
    complete = replicates[~np.isnan(replicates).all(axis=1)]
    if 2 * len(complete) < len(replicates):
        return np.full((2, replicates.shape[1]), np.nan)
    intervals: NDArray[np.float64] = np.quantile(complete, [tail, 1 - tail], axis=0)
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

    @property
    def shares(self) -> NDArray[np.float64]:
        """(G,) how much of the macro mean each cluster is; they sum to 1."""
        shares: NDArray[np.float64] = (self.sizes / self.sizes.sum(axis=0)).mean(axis=1)
        return shares

    @property
    def parts(self) -> NDArray[np.float64]:
        """(G,) what each cluster adds to the macro mean."""
        parts: NDArray[np.float64] = (self.totals / self.sizes.sum(axis=0)).mean(axis=1)
        return parts


@dataclass(frozen=True)
class _Freedom:
    """How far a cluster bootstrap is to be trusted: `degrees` of freedom of its variance, and
    `inflation`, the factor that takes the bias out of it."""

    degrees: float
    inflation: float

    @property
    def tail(self) -> float:
        return float(norm.sf(t.ppf(0.975, self.degrees) * np.sqrt(self.inflation)))


@dataclass(frozen=True)
class _SeedVariance:
    """Variance of a mean over seeds that only other seeds would show, not other clusters.

    `squares`: the sum of each independent part's variance squared over its degrees of freedom.
    """

    value: float
    squares: float

    def plus(self, other: "_SeedVariance") -> "_SeedVariance":
        return _SeedVariance(self.value + other.value, self.squares + other.squares)


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


def _seed_mean(outcomes: NDArray[Any]) -> NDArray[np.float64]:
    """(B,) from (B,) or (B, K)."""
    values = _outcomes(outcomes)
    return values if values.ndim < 2 else values.mean(axis=1)


def _same_lengths(
    arrays: Sequence[NDArray[Any]], others: Sequence[NDArray[Any]]
) -> Sequence[NDArray[Any]]:
    shapes, other_shapes = [a.shape for a in arrays], [o.shape for o in others]
    if [s[:1] for s in shapes] != [o[:1] for o in other_shapes] or () in shapes:
        raise ValueError(f"outcomes and clusters must be (B,) alike, got {shapes}, {other_shapes}")
    return arrays


def _cluster_sums(
    outcomes: Sequence[NDArray[Any]], clusters: Sequence[NDArray[Any]]
) -> _ClusterSums:
    if not outcomes:
        return _ClusterSums(np.zeros((0, 0)), np.zeros((0, 0)))
    lengths = [len(outcome) for outcome in _same_lengths(outcomes, clusters)]
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
    sums: _ClusterSums, seeds: _SeedVariance, *, samples: int, rng: np.random.Generator
) -> tuple[float | None, float | None]:
    """The percentiles of the resampled macro means at the tail they call for, or None twice."""
    freedom = _freedom(sums)
    if freedom is None:
        return None, None
    if _is_shared(sums):
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
        freedom = _with_seeds(freedom, _bootstrap_variance(sums), seeds)
        replicates += np.sqrt(seeds.value) * rng.standard_normal(replicates.shape)
    low, high = percentile_intervals(replicates, freedom.tail)[:, 0]
    return (None, None) if np.isnan(low) else (float(low), float(high))


def _is_shared(sums: _ClusterSums) -> bool:
    return bool(((sums.sizes > 0).sum(axis=1) > 1).any())


def _bootstrap_variance(sums: _ClusterSums) -> float:
    """What the variance of the resampled macro means would be with endless resamples."""
    sizes = sums.sizes.sum(axis=0)
    residuals = (sums.totals - sums.totals.sum(axis=0) / sizes * sums.sizes) / sizes
    return float((residuals.mean(axis=1) ** 2).sum())


def _freedom(sums: _ClusterSums) -> _Freedom | None:
    """From the clusters' sizes alone; None if any culture has fewer than two clusters.

    With shares h and cluster errors of variance v the estimated variance is a quadratic form of
    the errors, sum of d (e - h sum(e))^2 with d = 1 / (1 - h); its mean and variance follow.
    """
    serves = sums.sizes > 0
    if serves.size == 0 or (serves.sum(axis=0) < 2).any():
        return None
    if _is_shared(sums):
        strata = [(sums.shares, sums.sizes.sum(axis=1))]
    else:
        columns = [sums.sizes[rows, column] for column, rows in enumerate(serves.T)]
        strata = [(sizes / sizes.sum(), sizes) for sizes in columns]
    expected = plain = spread = 0.0
    for h, sizes in strata:
        v = h**2 * (1 + CLUSTER_CORRELATION * (sizes - 1)) / sizes
        plain += float((v * (1 - 2 * h + (h**2).sum())).sum())
        d = 1 / (1 - h)
        a, q = d * h, float((d * h**2).sum())
        diagonal = d - 2 * a + q
        expected += float((v * diagonal).sum())
        whole, once = float(v.sum()), float((v * a).sum())
        everywhere = q**2 * whole**2 + 2 * float((v * a**2).sum()) * whole
        everywhere += 2 * once**2 - 4 * q * whole * once
        spread += float((v**2 * (diagonal**2 - (q - 2 * a) ** 2)).sum()) + everywhere
    # Where one cluster has nearly all pairs rounding eats the spread; there is one degree at least.
    most = sum(len(sizes) - 1 for _, sizes in strata)
    degrees = expected**2 / spread if spread > 0 else 1.0
    return _Freedom(min(max(degrees, 1.0), float(most)), expected / plain)


def _with_seeds(freedom: _Freedom, plain: float, seeds: _SeedVariance) -> _Freedom:
    """The seeds' variance as a further independent part (Welch and Satterthwaite)."""
    of_clusters = plain * freedom.inflation
    whole = of_clusters + seeds.value
    squares = of_clusters**2 / freedom.degrees + seeds.squares
    return _Freedom(whole**2 / squares, whole / (plain + seeds.value))


def _seed_variance(
    outcomes: Sequence[NDArray[Any]], clusters: Sequence[NDArray[Any]]
) -> _SeedVariance:
    """What the seeds' means differ by, less what the choice of clusters alone makes them differ.

    The second is in the bootstrap already: where one seed is better for some users and another
    for others, other users would have drawn another mean.
    """
    found = _SeedVariance(0.0, 0.0)
    for columns, labels in zip(_same_lengths(outcomes, clusters), clusters, strict=True):
        num_seeds = columns.shape[1] if columns.ndim == 2 else 1
        if num_seeds < 2 or not len(columns):
            continue
        values = columns.astype(np.float64)
        between = float(values.mean(axis=0).var(ddof=1))
        centred = values - values.mean(axis=0)
        centred -= centred.mean(axis=1, keepdims=True)
        _, codes = np.unique(labels, return_inverse=True)
        sizes = np.bincount(codes)
        if len(sizes) < 2:
            continue
        order = np.argsort(codes, kind="stable")
        totals = np.add.reduceat(centred[order], np.cumsum(sizes) - sizes, axis=0) / len(values)
        by_chance = float((totals**2 / (1 - sizes / len(values))[:, None]).sum()) / (num_seeds - 1)
        part = max(0.0, between - by_chance) / num_seeds / len(outcomes) ** 2
        found = found.plus(_SeedVariance(part, part**2 / (num_seeds - 1)))
    return found


def _detectable(sums: _ClusterSums, seeds: _SeedVariance) -> float | None:
    """The smallest macro difference that clusters and seeds which vary so much could show."""
    freedom = _freedom(sums)
    if freedom is None:
        return None
    plain = _bootstrap_variance(sums)
    if seeds.value > 0:
        freedom = _with_seeds(freedom, plain, seeds)
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
    sums: _ClusterSums, seeds: _SeedVariance, rng: np.random.Generator
) -> float | None:
    """Two-sided mid-p-value of the macro difference over its standard error, under random signs.

    The standard error is that of `interval_tail`, with the cultures as one: cluster g stands for
    its share of the macro mean. The seeds' variance widens the observed one, and more so where few
    seeds know it badly.
    """
    if len(sums.sizes) < 2:
        return None
    freedom = _freedom(sums)
    wider = 1.0
    if freedom is not None and seeds.value > 0:
        with_seeds = _with_seeds(freedom, _bootstrap_variance(sums), seeds)
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
