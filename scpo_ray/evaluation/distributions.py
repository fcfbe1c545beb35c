"""Answer shares of reward models and of countries, and how near they come: arrays in, arrays out.

G distributions over at most K options are (G, K) arrays; `valid` says which cells hold an option.
A missing distribution is a row of NaN: it stays missing through every function here.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr, softmax

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3


def option_shares(
    rewards: NDArray[Any], valid: NDArray[np.bool_], *, temperature: float
) -> NDArray[np.float64]:
    """softmax(rewards / temperature) over each row's valid options; 0 in the other cells.

    Args:
        rewards: (G, K) reward units; what stands in cells that are not valid is not read.
        valid: (G, K).
        temperature: reward units, > 0.

    Returns: (G, K), rows sum to 1; NaN where a row has no valid option.
    Raises: ValueError if the shapes differ, a valid reward is NaN or infinite, or `temperature`
        is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    scaled = _valid_rewards(rewards, valid) / temperature
    empty = ~valid.any(axis=1)
    scaled[empty] = 0
    shares: NDArray[np.float64] = softmax(scaled, axis=1)
    shares[empty] = np.nan
    return shares


def renormalised(shares: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Shares over the valid options alone, summing to 1.

    Args:
        shares: (G, K), 0 or more.
        valid: (G, K).

    Returns: (G, K), 0 where not valid. Missing (a row of NaN): rows whose valid shares are all
        zero, hold a NaN, an infinity or a negative number, or are fewer than two, for there is
        nothing to tell apart.
    Raises: ValueError if the shapes differ.
    """
    _check_shapes(shares, valid)
    kept = np.where(valid, shares, 0.0).astype(np.float64)
    totals = kept.sum(axis=1, keepdims=True)
    broken = ~np.isfinite(totals) | (totals <= 0) | (kept < 0).any(axis=1, keepdims=True)
    broken |= valid.sum(axis=1, keepdims=True) < 2
    return np.where(broken, np.nan, kept / np.where(broken, 1.0, totals))


def js_distances(
    shares: NDArray[Any], other_shares: NDArray[Any], *, base: float
) -> NDArray[np.float64]:
    """The Jensen-Shannon distance of each row to the other array's row.

        sqrt((KL(p, m) + KL(q, m)) / 2),  m = (p + q) / 2,  logarithms to `base`

    as `scipy.spatial.distance.jensenshannon` has it, except that rounding cannot make it NaN.

    Args:
        shares, other_shares: (G, K); each row is made to sum to 1.
        base: > 1; with 2 the largest distance is 1, with e it is sqrt(ln 2), 0.833.

    Returns: (G,) float64; NaN where either row is missing: all zero, or with a NaN, an infinity
        or a negative number.
    Raises: ValueError if the shapes differ or `base` is not above 1.
    """
    if base <= 1:
        raise ValueError(f"base must be > 1, got {base}")
    _check_shapes(shares, other_shares)
    p, q = _as_distributions(shares), _as_distributions(other_shares)
    middle = (p + q) / 2
    divergences = (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=1) / (2 * np.log(base))
    # Of two equal rows rounding can leave a sum below 0, and its root would be NaN: missing.
    distances: NDArray[np.float64] = np.sqrt(np.maximum(divergences, 0.0))
    return distances


def similarities(
    shares: NDArray[Any], other_shares: NDArray[Any], *, base: float
) -> NDArray[np.float64]:
    """(G,) 1 - Jensen-Shannon distance; as `js_distances`, 1 for equal rows."""
    return 1 - js_distances(shares, other_shares, base=base)


def fit_temperature(
    rewards: NDArray[Any], shares: NDArray[Any], valid: NDArray[np.bool_]
) -> float | None:
    """The temperature whose shares give the people's answers the highest likelihood.

    The cross-entropy of softmax(rewards / T) is convex in 1 / T, so there is one answer; it is
    between 0.001 and 1,000, the highest where the rewards say less than nothing of the answers.

    Args:
        rewards: (G, K) reward units.
        shares: (G, K) people's; rows that are missing are left out.
        valid: (G, K).

    Returns: reward units; None where no row is left.
    Raises: ValueError as `option_shares`.
    """
    targets = renormalised(shares, valid)
    known = np.isfinite(targets).all(axis=1)
    scores = _valid_rewards(rewards, valid)[known]
    finite = np.where(valid[known], scores, 0.0)
    if not len(finite):
        return None
    aimed = float((targets[known] * finite).sum())

    def surplus(inverse: float) -> float:
        """The slope of the cross-entropy: the rewards expected, minus those of the answers."""
        return float((softmax(scores * inverse, axis=1) * finite).sum()) - aimed

    lowest, highest = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if surplus(lowest) >= 0:
        return MAX_TEMPERATURE
    if surplus(highest) <= 0:
        return MIN_TEMPERATURE
    # A fifth of a second to import, which most commands do without.
    from scipy.optimize import brentq

    return 1 / float(brentq(surplus, lowest, highest, xtol=1e-12, rtol=1e-10))


def _valid_rewards(rewards: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(G, K) float64, -inf where not valid."""
    _check_shapes(rewards, valid)
    broken = valid & ~np.isfinite(rewards)
    if broken.any():
        raise ValueError(f"rewards must be finite, got {rewards[broken][0]}")
    return np.where(valid, rewards, -np.inf).astype(np.float64)


def _as_distributions(shares: NDArray[Any]) -> NDArray[np.float64]:
    return renormalised(shares, np.ones(shares.shape, np.bool_))


def _check_shapes(array: NDArray[Any], other: NDArray[Any]) -> None:
    if array.shape != other.shape or array.ndim != 2:
        raise ValueError(f"must be (G, K) alike, got {array.shape} and {other.shape}")
