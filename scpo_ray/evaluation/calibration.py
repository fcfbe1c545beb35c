"""How far a win probability can be taken at its word, and a temperature that mends it.

A model that gives a pair the margin m says that `chosen` wins with probability sigmoid(m / T).
Which of the two is called chosen is the data's word, so what is judged is the side that the model
is for: its confidence max(p, 1 - p), and whether that side was preferred.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from scpo_ray.evaluation.distributions import MAX_TEMPERATURE, MIN_TEMPERATURE
from scpo_ray.records import Pairs, PreferenceData, joined
from scpo_ray.results import Calibration, Difference, Estimate
from scpo_ray.statistics.cluster_variance import macro_parts
from scpo_ray.statistics.intervals import (
    LEVEL,
    accuracy,
    paired_difference,
    standard_errors,
    stream,
    with_holm,
)

NUM_BINS = 10
"""Of equal numbers of pairs; fewer where a bin would hold fewer than `MIN_BIN_PAIRS`."""
MIN_BIN_PAIRS = 10
MIN_FITTED_PAIRS = 200
"""Training pairs that a culture's temperature may be fitted on, however few its test pairs are."""

RIVALS = {"model": "global", "model_fitted": "global_fitted"}
"""What a model's win probabilities are compared with: the global model's, by the same rule."""

FittedOn = Literal["dev", "train", "saved"]


def fit_win_temperature(margins: NDArray[Any]) -> float | None:
    """The temperature at which sigmoid(margin / T) gives the preferences the highest likelihood.

    The loss is convex in 1 / T, so there is one answer; it is between 0.001 and 1,000, the highest
    where the margins say less than nothing of what was preferred.

    Args:
        margins: (B,) chosen minus rejected, reward units.

    Returns: reward units; None without pairs.
    Raises: ValueError if a margin is NaN or infinite.
    """
    values = margins.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"margins must be finite, got {values[~np.isfinite(values)][0]}")
    if not len(values):
        return None

    def surplus(inverse: float) -> float:
        """The slope of the loss by 1 / T, with its sign turned."""
        return float((values * expit(-values * inverse)).mean())

    lowest, highest = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if surplus(lowest) <= 0:
        return MAX_TEMPERATURE
    if surplus(highest) >= 0:
        return MIN_TEMPERATURE
    # A fifth of a second to import, which most commands do without.
    from scipy.optimize import brentq

    return 1 / float(brentq(surplus, lowest, highest, xtol=1e-12, rtol=1e-10))


def fitting_pairs(data: PreferenceData, *, seed: int) -> Pairs:
    """The pairs that each culture's temperature is fitted on: its dev users', where it has any.

    Else some of its training users', at most as many as the culture has test pairs (or
    `MIN_FITTED_PAIRS`), drawn by `seed`: scoring them then costs no more than the test pairs do.
    """
    drawn = []
    for code, culture in enumerate(data.cultures):
        if has_dev(data, code):
            continue
        mine = np.flatnonzero(data.train.culture_codes == code)
        most = max(MIN_FITTED_PAIRS, int((data.test.culture_codes == code).sum()))
        order = stream(seed, "temperature", culture).permutation(len(mine))
        drawn.append(np.sort(mine[order[:most]]))
    if not drawn:
        return data.dev
    return joined([data.dev, data.train.take(np.concatenate(drawn))])


def has_dev(data: PreferenceData, code: int) -> bool:
    """Whether the culture has users (or questions) held out for choices."""
    return bool((data.dev.culture_codes == code).any())


def fitted_temperatures(fitting: Pairs, rewards: NDArray[np.float32]) -> dict[str, float]:
    """Culture -> its temperature, of every culture with a pair.

    Args: rewards: (T,) of the pairs' texts at least.
    """
    margins = rewards[fitting.chosen] - rewards[fitting.rejected]
    found = {
        culture: fit_win_temperature(margins[fitting.culture_codes == code])
        for code, culture in enumerate(fitting.cultures)
    }
    return {culture: t for culture, t in found.items() if t is not None}


def evaluate_calibration(
    data: PreferenceData,
    rewards: NDArray[np.float32],
    ref_rewards: NDArray[np.float32] | None,
    *,
    saved: Mapping[str, float] | None,
    seed: int,
) -> dict[str, Calibration]:
    """Culture -> how its test pairs' win probabilities are calibrated, before and after fitting.

    Predictors: "model" and "global" at temperature 1, "model_fitted" and "global_fitted" at the
    culture's own; the global model's where there is one, a fitted one where the culture has a
    temperature.

    Args:
        rewards, ref_rewards: (T,) of the texts of test pairs and of `fitting_pairs` at least.
        saved: culture -> the model's own temperature, which then takes the fitted one's place.
        seed: of which pairs fit.

    Returns: an entry for every culture of the data; `p_holm` is corrected over them.
    """
    fitting = fitting_pairs(data, seed=seed)
    temperatures = fitted_temperatures(fitting, rewards) if saved is None else saved
    models: dict[str, tuple[NDArray[np.float32], Mapping[str, float] | None]] = {
        "model": (rewards, None),
        "model_fitted": (rewards, temperatures),
    }
    if ref_rewards is not None:
        models["global"] = (ref_rewards, None)
        models["global_fitted"] = (ref_rewards, fitted_temperatures(fitting, ref_rewards))
    found = {}
    for code, culture in enumerate(data.cultures):
        pairs = data.test.take(data.test.culture_codes == code)
        margins, used = {}, {}
        for name, (values, by_culture) in models.items():
            temperature = 1.0 if by_culture is None else by_culture.get(culture)
            if temperature is None:
                continue
            difference = values[pairs.chosen].astype(np.float64) - values[pairs.rejected]
            margins[name] = difference / temperature
            if by_culture is not None:
                used[name] = temperature
        found[culture] = _calibration(
            margins,
            pairs.cluster_codes,
            vote_shares(pairs) if data.scores_are_votes else None,
            used,
            _fitted_on(data, code) if saved is None else "saved",
        )
    return _corrected(found)


def _fitted_on(data: PreferenceData, code: int) -> FittedOn:
    return "dev" if has_dev(data, code) else "train"


def vote_shares(pairs: Pairs) -> NDArray[np.float64]:
    """(P,) of those who preferred either response, the share for `chosen`."""
    chosen = pairs.chosen_scores.astype(np.float64)
    return np.asarray(chosen / (chosen + pairs.rejected_scores))


def confidence(margins: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(B,) the probability of the side that the model is for, and whether people were for it too;
    a half where it is for neither."""
    return expit(np.abs(margins)), (np.sign(margins) + 1) / 2


def bins_of(confidences: NDArray[np.float64]) -> NDArray[np.int64]:
    """(B,) which bin each pair is in: equal numbers in each, but equal confidences are together."""
    num_bins = max(1, min(NUM_BINS, len(confidences) // MIN_BIN_PAIRS))
    edges = np.unique(np.quantile(confidences, np.arange(1, num_bins) / num_bins))
    return np.asarray(np.searchsorted(edges, confidences, side="right"), dtype=np.int64)


def calibration_error(margins: NDArray[np.float64]) -> float | None:
    """The expected calibration error: the mean, over equal-mass bins of the confidence, of the
    distance between a bin's confidence and its accuracy. Chance alone puts it above 0.

    Returns: None without pairs.
    """
    if not len(margins):
        return None
    confidences, right = confidence(margins)
    gaps = np.bincount(bins_of(confidences), right - confidences)
    return float(np.abs(gaps).sum() / len(margins))


def debiased_calibration_error(margins: NDArray[np.float64], clusters: NDArray[Any]) -> Estimate:
    """The root mean square calibration error over equal-mass bins, less what chance makes of it.

    A bin's gap between accuracy and confidence is off by chance, and its square too large by the
    gap's variance: that of whole clusters (CR2) is taken off. The interval is of the mean square,
    by t, and the root of it; all are cut at 0. The variance of the mean square is that of its
    derivative, and at least what it is where nothing is off, for near a gap of 0 the derivative
    vanishes. The upper end is no lower than that of the mean gap: no such error is below it.

    Args:
        margins: (B,); clusters: (B,) labels.

    Returns: in probability; no interval with one cluster.
    Source: Kumar, Liang and Ma (2019), "Verified uncertainty calibration", with clusters; how often
        the interval holds: benchmarks/calibration_error.py.
    """
    labels, codes = np.unique(clusters, return_inverse=True)
    if not len(margins):
        return Estimate(None, None, None, 0, 0)
    confidences, right = confidence(margins)
    shares, gaps, covariance, by_chance = _bin_gaps(confidences, right, codes)
    square = float(shares @ (gaps**2 - covariance.diagonal()))
    steps = standard_errors(clusters, level=LEVEL)
    mean_gap = overconfidence(confidences, right, clusters)
    if steps is None or mean_gap.low is None or mean_gap.high is None:
        return Estimate(_root(square), None, None, len(margins), len(labels))
    # Users who happen to be alike do not make pairs that are drawn one by one any surer.
    np.fill_diagonal(covariance, np.maximum(covariance.diagonal(), by_chance))
    slopes = 2 * shares * gaps
    nothing_off = 2 * float(shares @ covariance**2 @ shares)
    half = steps * sqrt(max(float(slopes @ covariance @ slopes), nothing_off))
    high = max(_root(max(square, 0.0) + half), -mean_gap.low, mean_gap.high)
    return Estimate(_root(square), _root(square - half), high, len(margins), len(labels))


def _bin_gaps(
    confidences: NDArray[np.float64], right: NDArray[np.float64], codes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], ...]:
    """Of K bins: (K,) shares of the pairs, (K,) gaps, their (K, K) covariance over clusters, and
    (K,) the variances that they would have were the pairs calibrated and independent."""
    bins = bins_of(confidences)
    numbers = np.unique(bins)
    shares, gaps, by_chance, alone = np.zeros((4, len(numbers)))
    parts = np.zeros((int(codes.max()) + 1, len(numbers)))
    for place, number in enumerate(numbers):
        mine = bins == number
        residuals, own = right[mine] - confidences[mine], confidences[mine]
        shares[place], gaps[place] = mine.mean(), residuals.mean()
        by_chance[place] = (own * (1 - own)).sum() / mine.sum() ** 2
        within = macro_parts([residuals[:, None]], [codes[mine]])
        if within.layout is None:
            # One person's pairs do not say how people differ.
            alone[place] = by_chance[place]
        else:
            parts[within.labels, place] = within.parts[:, 0]
    return shares, gaps, parts.T @ parts + np.diag(alone), by_chance


def overconfidence(
    confidences: NDArray[np.float64], right: NDArray[np.float64], clusters: NDArray[Any]
) -> Difference:
    """Mean confidence minus accuracy.

    Where the model was right about all pairs, or about none, how its confidences vary does not say
    how often it may be otherwise: then the interval is at least that of one confidence for all.
    """
    found = paired_difference(confidences, right, clusters)
    if not len(right) or found.low is None or found.high is None or (right != right[0]).any():
        return found
    alike = paired_difference(np.full_like(confidences, confidences.mean()), right, clusters)
    widths = [(of.high or 0.0) - (of.low or 0.0) for of in (found, alike)]
    return found if widths[0] >= widths[1] else alike


def _root(square: float) -> float:
    return min(1.0, sqrt(max(0.0, square)))


def _calibration(
    margins: Mapping[str, NDArray[np.float64]],
    clusters: NDArray[np.int64],
    shares: NDArray[np.float64] | None,
    temperatures: dict[str, float],
    fitted_on: FittedOn,
) -> Calibration:
    brier = {name: expit(-values) ** 2 for name, values in margins.items()}
    distances: dict[str, Estimate] = {}
    if shares is not None:
        for name, values in margins.items():
            distances[name] = accuracy(np.abs(expit(values) - shares), clusters)
    return Calibration(
        temperatures=temperatures,
        fitted_on=fitted_on,
        brier={name: accuracy(values, clusters) for name, values in brier.items()},
        brier_minus_global={
            name: paired_difference(brier[name], brier[rival], clusters)
            for name, rival in RIVALS.items()
            if name in brier and rival in brier
        },
        error={name: calibration_error(values) for name, values in margins.items()},
        error_debiased={
            name: debiased_calibration_error(values, clusters) for name, values in margins.items()
        },
        overconfidence={
            name: overconfidence(*confidence(values), clusters) for name, values in margins.items()
        },
        vote_distance=distances,
    )


def _corrected(found: dict[str, Calibration]) -> dict[str, Calibration]:
    """With Holm's correction over the cultures, for each predictor."""
    differences: dict[str, dict[str, Difference]] = {culture: {} for culture in found}
    for predictor in RIVALS:
        there = [c for c in found if predictor in found[c].brier_minus_global]
        corrected = with_holm([found[c].brier_minus_global[predictor] for c in there])
        for culture, difference in zip(there, corrected, strict=True):
            differences[culture][predictor] = difference
    return {c: replace(of, brier_minus_global=differences[c]) for c, of in found.items()}
