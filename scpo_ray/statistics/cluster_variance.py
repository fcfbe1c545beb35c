"""How much a mean over clusters and seeds varies, and with how many degrees of freedom.

The theory behind `intervals`: each cluster's outcomes added up, the variance without bias of their
mean (CR2), and what the clusters' sizes and the number of seeds leave of its degrees of freedom.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Correlation of two outcomes of one cluster that the degrees of freedom suppose, and the intervals
# where no cluster differs from another. What the clusters really do is in the variance.
CLUSTER_CORRELATION = 0.05


@dataclass(frozen=True)
class SeedVariance:
    """Variance of a mean over seeds that only other seeds would show, not other clusters.

    `squares`: the sum of each independent part's variance squared over its degrees of freedom.
    """

    value: float
    squares: float

    @property
    def degrees(self) -> float:
        """Of freedom; infinite where there is nothing to know."""
        return self.value**2 / self.squares if self.squares > 0 else float("inf")

    def plus(self, other: "SeedVariance") -> "SeedVariance":
        """That of the sum, or difference, of two independent means."""
        return SeedVariance(self.value + other.value, self.squares + other.squares)

    def with_same(self, other: "SeedVariance") -> "SeedVariance":
        """That of the sum of two means that the same trainings move alike."""
        if not (self.value and other.value):
            return self.plus(other)
        value = (np.sqrt(self.value) + np.sqrt(other.value)) ** 2
        degrees = min(self.degrees, other.degrees)
        return SeedVariance(float(value), float(value**2 / degrees))

    def over(self, number: int) -> "SeedVariance":
        """That of the mean divided by `number`."""
        return SeedVariance(self.value / number**2, self.squares / number**4)


@dataclass(frozen=True)
class Layout:
    """What the clusters' sizes alone say of a macro mean: the same for all models on these pairs.

    Attributes:
        degrees: of freedom of its variance (Satterthwaite).
        thinness: 1 / the number of independent pairs that are worth as much as these, were two
            pairs of a cluster correlated by `CLUSTER_CORRELATION` (Kish).
        factor: what the variance of the cultures with several clusters is multiplied by, for those
            with one; it is theirs in proportion.
        concentration: the squares of the clusters' expected variances, added up, over their sum
            squared: 1 / their number were all alike.
    """

    degrees: float
    thinness: float
    factor: float
    concentration: float


@dataclass(frozen=True)
class MacroParts:
    """The macro means of S models on the same pairs, and what each cluster moves them by.

    Attributes:
        values: (S,), NaN where a model lacks an outcome or a culture has no pair.
        parts: (G, S). The squares of a column add up to the mean's variance over other clusters,
            without bias: a cluster's residual over sqrt(1 - its share of the pairs), CR2. The
            difference of two columns is the parts of the two models' difference.
        labels: (G,) the clusters, sorted.
        layout: None where no culture has two clusters; the parts are NaN then.
        num_pairs: over all cultures.
    """

    values: NDArray[np.float64]
    parts: NDArray[np.float64]
    labels: NDArray[Any]
    layout: Layout | None
    num_pairs: int

    @property
    def variances(self) -> NDArray[np.float64]:
        """(S,)"""
        summed: NDArray[np.float64] = (self.parts**2).sum(axis=0)
        return summed


def cluster_layout(sizes: NDArray[np.float64]) -> Layout | None:
    """How far the variance of these clusters' macro mean is to be trusted.

    With shares h and cluster errors of variance v the estimated variance is a quadratic form of
    the errors, sum of d (e - h sum(e))^2 with d = 1 / (1 - h); its mean and variance follow. A
    culture with one cluster does not say how its clusters differ: it takes the variance that the
    others' clusters have, for its size. How much that is hangs on how alike the pairs of a cluster
    are; it grows or falls with their correlation all the way, so it is the larger of what
    independent and wholly alike pairs say.

    Args:
        sizes: (G, C) pairs of each cluster in each culture.

    Returns: None where no culture has two clusters, or one has no pair.
    Source: Bell and McCaffrey (2002), Imbens and Kolesar (2016); Kish (1965) for `thinness`.
    """
    serves = sizes > 0
    per_culture = serves.sum(axis=0)
    if serves.size == 0 or (per_culture == 0).any() or (per_culture < 2).all():
        return None
    columns = [sizes[rows, column] for column, rows in enumerate(serves.T)]
    thinness, known, alone = 0.0, np.zeros(2), np.zeros(2)
    strata = []
    for column in columns:
        h = column / column.sum()
        v = h**2 * (1 + CLUSTER_CORRELATION * (column - 1)) / column
        thinness += float(v.sum())
        independent_and_alike = float((h**2 / column).sum()), float((h**2).sum())
        if len(column) < 2:
            alone += independent_and_alike
        else:
            strata.append((h, v))
            known += independent_and_alike
    if (serves.sum(axis=1) > 1).any():
        h, whole_sizes = (sizes / sizes.sum(axis=0)).mean(axis=1), sizes.sum(axis=1)
        v = h**2 * (1 + CLUSTER_CORRELATION * (whole_sizes - 1)) / whole_sizes
        strata, thinness = [(h, v)], float(v.sum()) * len(columns) ** 2
    expected = spread = 0.0
    for h, v in strata:
        d = 1 / (1 - h)
        a, q = d * h, float((d * h**2).sum())
        diagonal = d - 2 * a + q
        expected += float((v * diagonal).sum())
        whole, once = float(v.sum()), float((v * a).sum())
        everywhere = q**2 * whole**2 + 2 * float((v * a**2).sum()) * whole
        everywhere += 2 * once**2 - 4 * q * whole * once
        spread += float((v**2 * (diagonal**2 - (q - 2 * a) ** 2)).sum()) + everywhere
    # Where one cluster has nearly all pairs rounding eats the spread; one degree is left.
    most = sum(len(h) - 1 for h, _ in strata)
    degrees = expected**2 / spread if spread > 0 else 1.0
    variances = np.concatenate([v for _, v in strata])
    return Layout(
        degrees=min(max(degrees, 1.0), float(most)),
        thinness=thinness / len(columns) ** 2,
        factor=1 + float((alone / known).max()),
        concentration=float((variances**2).sum() / variances.sum() ** 2),
    )


def macro_parts(outcomes: Sequence[NDArray[Any]], clusters: Sequence[NDArray[Any]]) -> MacroParts:
    """Args: per culture, (B_c, S) outcomes and (B_c,) labels; the same label is the same cluster.

    A model with a NaN has none of the numbers. Where no cluster serves two cultures (users), each
    culture's clusters are taken to vary by themselves. Where one does (questions asked in several
    countries), a cluster moves all its cultures at once, and its parts there are added.

    Raises: ValueError if shapes differ or an outcome is infinite.
    """
    if not outcomes:
        return MacroParts(np.full(1, np.nan), np.empty((0, 1)), np.empty(0), None, 0)
    lengths = [len(outcome) for outcome in same_lengths(outcomes, clusters)]
    labels, codes = np.unique(np.concatenate(list(clusters)), return_inverse=True)
    num_models, num_cultures = outcomes[0].shape[1], len(outcomes)
    if not all(lengths):
        nothing = np.full((len(labels), num_models), np.nan)
        return MacroParts(np.full(num_models, np.nan), nothing, labels, None, sum(lengths))
    by_culture = np.split(codes, np.cumsum(lengths)[:-1])
    sizes = np.stack([np.bincount(column, minlength=len(labels)) for column in by_culture], axis=1)
    layout = cluster_layout(sizes.astype(np.float64))
    shares = sizes / sizes.sum(axis=0)
    are_shared = bool(((sizes > 0).sum(axis=1) > 1).any())
    means = np.empty((num_cultures, num_models))
    parts = np.full((len(labels), num_models), 0.0 if layout else np.nan)
    for place, (outcome, column) in enumerate(zip(outcomes, by_culture, strict=True)):
        columns = outcome.astype(np.float64)
        if np.isinf(columns).any():
            raise ValueError(f"outcomes must be finite, got {columns[np.isinf(columns)][0]}")
        means[place] = columns.mean(axis=0)
        if layout is None:
            continue
        # Before the pairs are added up: a sum of what is 0 but for rounding stays small.
        residuals, own = _added_up(columns - means[place], column)
        residuals /= len(column) * num_cultures
        # A culture's only cluster has no residual, and its share of 1 leaves nothing to divide by.
        if not are_shared and len(own) > 1:
            residuals /= np.sqrt(1 - shares[own, place])[:, None]
        parts[own] += residuals
    if layout is not None:
        if are_shared:
            parts /= np.sqrt(1 - shares.mean(axis=1))[:, None]
        parts *= np.sqrt(layout.factor)
    return MacroParts(means.mean(axis=0), parts, labels, layout, sum(lengths))


def _added_up(
    columns: NDArray[np.float64], codes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(G_c, S) sums of (B, S) over each code that is there, and (G_c,) the codes."""
    order = np.argsort(codes, kind="stable")
    own, starts = np.unique(codes[order], return_index=True)
    return np.add.reduceat(columns[order], starts, axis=0), own


def macro_seed_variance(
    outcomes: Sequence[NDArray[Any]],
    clusters: Sequence[NDArray[Any]],
    *,
    one_training: bool = False,
) -> SeedVariance:
    """What the seeds' means differ by, less what the choice of clusters alone makes them differ.

    The second is in the clusters' variance already: where one seed is better for some users and
    another for others, other users would have drawn another mean.

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
        totals = _added_up(centred, codes)[0] / len(values)
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
