"""How much a mean over clusters and seeds varies, and with how many degrees of freedom.

The theory behind `statistics`: each cluster's outcomes added up, the variance of a cluster
bootstrap and its bias, and what the clusters' sizes and the number of seeds leave of its degrees
of freedom.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

# Correlation of two outcomes of one cluster that the small-sample correction supposes. Only the
# correction depends on it, and little: what the clusters really do is in the resamples.
CLUSTER_CORRELATION = 0.05


@dataclass(frozen=True)
class SeedVariance:
    """Variance of a mean over seeds that only other seeds would show, not other clusters.

    `squares`: the sum of each independent part's variance squared over its degrees of freedom.
    """

    value: float
    squares: float

    def plus(self, other: "SeedVariance") -> "SeedVariance":
        """That of the sum, or difference, of two independent means."""
        return SeedVariance(self.value + other.value, self.squares + other.squares)

    def with_same(self, other: "SeedVariance") -> "SeedVariance":
        """That of the sum of two means that the same trainings move alike."""
        if not (self.value and other.value):
            return self.plus(other)
        value = (np.sqrt(self.value) + np.sqrt(other.value)) ** 2
        degrees = min(part.value**2 / part.squares for part in (self, other))
        return SeedVariance(float(value), float(value**2 / degrees))

    def over(self, number: int) -> "SeedVariance":
        """That of the mean divided by `number`."""
        return SeedVariance(self.value / number**2, self.squares / number**4)


@dataclass(frozen=True)
class Freedom:
    """How far a cluster bootstrap is to be trusted: `degrees` of freedom of its variance, and
    `inflation`, the factor that takes the bias out of it."""

    degrees: float
    inflation: float

    @property
    def tail(self) -> float:
        """The share of resamples that a 95 % interval leaves out at each end."""
        return float(norm.sf(t.ppf(0.975, self.degrees) * np.sqrt(self.inflation)))

    def with_seeds(self, plain: float, seeds: SeedVariance) -> "Freedom":
        """The seeds' variance as a further independent part (Welch and Satterthwaite).

        Args:
            plain: the variance of the cluster bootstrap alone (`ClusterSums.bootstrap_variance`).
        """
        of_clusters = plain * self.inflation
        whole = of_clusters + seeds.value
        squares = of_clusters**2 / self.degrees + seeds.squares
        return Freedom(whole**2 / squares, whole / (plain + seeds.value))


@dataclass(frozen=True)
class ClusterSums:
    """Outcomes added up: row per cluster, column per culture. Both (G, C) float64."""

    totals: NDArray[np.float64]
    sizes: NDArray[np.float64]

    @property
    def num_pairs(self) -> int:
        return int(self.sizes.sum())

    @property
    def macro_mean(self) -> float | None:
        """None without cultures, or where one has no pair."""
        sizes = self.sizes.sum(axis=0)
        if sizes.size == 0 or (sizes == 0).any():
            return None
        return float((self.totals.sum(axis=0) / sizes).mean())

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

    @property
    def are_shared(self) -> bool:
        """Whether a cluster serves two cultures."""
        return bool(((self.sizes > 0).sum(axis=1) > 1).any())

    @property
    def bootstrap_variance(self) -> float:
        """What the variance of the resampled macro means would be with endless resamples."""
        sizes = self.sizes.sum(axis=0)
        residuals = (self.totals - self.totals.sum(axis=0) / sizes * self.sizes) / sizes
        return float((residuals.mean(axis=1) ** 2).sum())

    @property
    def freedom(self) -> Freedom | None:
        """From the clusters' sizes alone; None if any culture has fewer than two clusters.

        With shares h and cluster errors of variance v the estimated variance is a quadratic form
        of the errors, sum of d (e - h sum(e))^2 with d = 1 / (1 - h); its mean and variance follow.
        """
        serves = self.sizes > 0
        if serves.size == 0 or (serves.sum(axis=0) < 2).any():
            return None
        if self.are_shared:
            strata = [(self.shares, self.sizes.sum(axis=1))]
        else:
            columns = [self.sizes[rows, column] for column, rows in enumerate(serves.T)]
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
        # Where one cluster has nearly all pairs rounding eats the spread; one degree is left.
        most = sum(len(sizes) - 1 for _, sizes in strata)
        degrees = expected**2 / spread if spread > 0 else 1.0
        return Freedom(min(max(degrees, 1.0), float(most)), expected / plain)


def cluster_sums(outcomes: Sequence[NDArray[Any]], clusters: Sequence[NDArray[Any]]) -> ClusterSums:
    """Args: per culture, (B_c,) outcomes and labels; the same label is the same cluster.

    Raises: ValueError if shapes differ or an outcome is NaN or infinite.
    """
    if not outcomes:
        return ClusterSums(np.zeros((0, 0)), np.zeros((0, 0)))
    lengths = [len(outcome) for outcome in same_lengths(outcomes, clusters)]
    labels, codes = np.unique(np.concatenate(list(clusters)), return_inverse=True)
    shape = (len(labels), len(lengths))
    cells = codes * len(lengths) + np.repeat(np.arange(len(lengths)), lengths)
    values = np.concatenate([_checked(outcome) for outcome in outcomes])
    totals = np.bincount(cells, weights=values, minlength=shape[0] * shape[1])
    sizes = np.bincount(cells, minlength=shape[0] * shape[1])
    return ClusterSums(
        totals.reshape(shape).astype(np.float64), sizes.reshape(shape).astype(np.float64)
    )


def cluster_freedom(clusters: Sequence[NDArray[Any]]) -> Freedom | None:
    """How far into the tails a 95 % interval of these clusters goes, whatever the outcomes.

    A bootstrap of G clusters is too narrow: its variance is short by about (G - 1) / G, more if
    some clusters are large, and it knows nothing of the variance's own uncertainty. So the
    percentiles are those of a normal at t * sqrt(inflation): t with the degrees of freedom that
    the clusters' sizes leave (Satterthwaite), inflation the expected ratio of a variance without
    bias (each cluster's residual over sqrt(1 - its share of the pairs), CR2) to the bootstrap's.
    Both depend on the sizes alone, so all models on the same pairs share them, but for their
    seeds (`Freedom.with_seeds`).

    Args:
        clusters: per culture of a macro mean, (B_c,) labels of its pairs.

    Returns: None where a culture has fewer than two clusters; there is no interval then.
    Source: Hesterberg (2015), "What teachers should know about the bootstrap" (expanded
        percentiles); Bell and McCaffrey (2002) and Imbens and Kolesar (2016) for the correction.
    """
    return cluster_sums([np.zeros(len(column)) for column in clusters], clusters).freedom


def macro_seed_variance(
    outcomes: Sequence[NDArray[Any]],
    clusters: Sequence[NDArray[Any]],
    *,
    one_training: bool = False,
) -> SeedVariance:
    """What the seeds' means differ by, less what the choice of clusters alone makes them differ.

    The second is in the bootstrap already: where one seed is better for some users and another
    for others, other users would have drawn another mean.

    Args:
        outcomes, clusters: per culture of a macro mean, (B_c, K_c) of K_c seeds and (B_c,) labels.
            A culture with one seed, (B_c, 1) or (B_c,), adds nothing: of it nothing is known.
        one_training: a seed's model is the same for all cultures and moves all of them at once;
            else the cultures' seeds are independent.
    Raises: ValueError if shapes differ.
    """
    found = SeedVariance(0.0, 0.0)
    for columns, labels in zip(same_lengths(outcomes, clusters), clusters, strict=True):
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
        variance = SeedVariance(part, part**2 / (num_seeds - 1))
        found = found.with_same(variance) if one_training else found.plus(variance)
    return found


def seed_mean(outcomes: NDArray[Any]) -> NDArray[np.float64]:
    """(B,) from (B,) or (B, K) of K seeds. Raises: ValueError if one is NaN or infinite."""
    values = _checked(outcomes)
    return values if values.ndim < 2 else values.mean(axis=1)


def same_lengths(
    arrays: Sequence[NDArray[Any]], others: Sequence[NDArray[Any]]
) -> Sequence[NDArray[Any]]:
    """The arrays, each as long as its other. Raises: ValueError where they are not."""
    shapes, other_shapes = [a.shape for a in arrays], [o.shape for o in others]
    if [s[:1] for s in shapes] != [o[:1] for o in other_shapes] or () in shapes:
        raise ValueError(f"outcomes and clusters must be (B,) alike, got {shapes}, {other_shapes}")
    return arrays


def _checked(outcomes: NDArray[Any]) -> NDArray[np.float64]:
    values = outcomes.astype(np.float64)
    if not np.isfinite(values).all():
        first = int(np.argmin(np.isfinite(values)))
        raise ValueError(f"outcomes must be finite, got {values[first]} at {first}")
    return values
