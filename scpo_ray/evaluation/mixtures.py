"""What a response is worth to a mixture of cultures, from each culture's own reward. Pure.

A mixture has a weight a_c for each of C cultures, not negative and of sum 1. Of a response with
rewards r_c, standardised z_c (see `scales`) and, of two responses, margins over temperatures T_c:

    linear   sum_c a_c z_c: the standard deviations it lies above each culture's usual response
    people   sum_c a_c F_c(r_c): the share of a population with shares a_c for whom it beats a
             reference response; of K candidates, for whom it beats another one (`people_shares`)
    worst    min_c z_c: what the least satisfied culture has of it
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from scipy.stats import t


def linear(standardised: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """(N,) weighted means of (C, N) standardised rewards, or of probabilities: "people"."""
    return np.asarray(np.asarray(weights, np.float64) @ np.asarray(standardised, np.float64))


def worst(standardised: ArrayLike) -> NDArray[np.float64]:
    """(N,) lowest of (C, N) standardised rewards."""
    return np.asarray(np.asarray(standardised, np.float64).min(axis=0))


def people_shares(
    rewards: ArrayLike, temperatures: ArrayLike, weights: ArrayLike
) -> NDArray[np.float64]:
    """(K,) share of a population that prefers each of K candidates to another one of them.

        mean over j != i of sum_c a_c sigmoid((r_ci - r_cj) / T_c)

    Args:
        rewards: (C, K), K >= 2, in reward units.
        temperatures: (C,) reward units, > 0.
        weights: (C,), sum 1.

    Raises: ValueError for fewer than two candidates.
    """
    values = np.asarray(rewards, np.float64)
    num_candidates = values.shape[1]
    if num_candidates < 2:
        raise ValueError(f"shares are of 2 candidates or more, got {num_candidates}")
    margins = values[:, :, None] - values[:, None, :]
    preferred = expit(margins / np.asarray(temperatures, np.float64)[:, None, None])
    # Against itself each has one half.
    against_others = (preferred.sum(axis=2) - 0.5) / (num_candidates - 1)
    return linear(against_others, weights)


def interval_over_models(
    values: Sequence[Sequence[float]], weights: Sequence[float]
) -> tuple[float, float] | None:
    """95 % interval of sum_c a_c (mean of culture c's models), by Student's t.

    Args:
        values: of each culture, what each of its models (of several seeds, say) says.
        weights: a_c, above 0.

    Returns: None where a culture has one model: nothing is known of another one.
    Source: Welch and Satterthwaite for the degrees of freedom of several cultures.
    """
    if any(len(of) < 2 for of in values):
        return None
    parts = [
        weight**2 * float(np.var(of, ddof=1)) / len(of)
        for of, weight in zip(values, weights, strict=True)
    ]
    variance = sum(parts)
    mean = sum(w * float(np.mean(of)) for of, w in zip(values, weights, strict=True))
    if variance == 0:
        return mean, mean
    freedom = variance**2 / sum(
        part**2 / (len(of) - 1) for of, part in zip(values, parts, strict=True)
    )
    half = float(t.ppf(0.975, freedom)) * variance**0.5
    return mean - half, mean + half
