"""How the global model's margins meet tau and beta: what a person reads to choose them. Pure."""

import numpy as np
import torch
from numpy.typing import NDArray

from scpo_ray.methods.selection import agreement_weights, disagreement_mask
from scpo_ray.results import MarginLook, WeightLook
from scpo_ray.settings.shown import threshold_text, threshold_texts

THRESHOLDS = (0.5, 0.51, 0.52, 0.55, 0.6, 0.7, 0.8, 0.9)
KEPT_SHARES = (0.33, 0.5, 0.67)
TEMPERATURES = (0.1, 0.3, 0.6, 1.1, 2.0, 4.0)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

# Where a setting leaves next to nothing to choose: the paper keeps a half to a third of the pairs.
MOST_KEPT = 0.9
FEW_BETWEEN = 0.02
NEARLY_ALIKE = 0.98
NEARLY_NOTHING = 0.05
# A tau that keeps a share further from the one that is asked for keeps another one.
NEAR_SHARE = 0.05
ALL_ALIKE = (
    "the global model's margins are all 0: no filter_threshold and no weight_temperature tells "
    "its pairs apart"
)


def look_at_margins(
    chosen: NDArray[np.float32],
    rejected: NDArray[np.float32],
    *,
    threshold: float | None,
    temperature: float | None,
) -> MarginLook:
    """What tau and beta would do to one culture's training pairs, and whether the set ones do it.

    Args:
        chosen, rejected: (P,) the global model's rewards, P > 0.
        threshold: the tau that is set; None: no filter, or one that is yet to be chosen.
        temperature: the beta that is set; None: yet to be chosen.

    Returns: `weights` are over the pairs that the set tau keeps.
    Raises: ValueError if there is no pair.
    """
    if not len(chosen):
        raise ValueError("there must be a pair to look at")
    # Subtracted as the filter does it, or a tau between two of them would keep other pairs.
    margins = (chosen - rejected).astype(np.float64)
    better, worse = torch.from_numpy(chosen), torch.from_numpy(rejected)
    kept = np.ones(len(margins), dtype=np.bool_)
    if threshold is not None:
        kept = disagreement_mask(better, worse, threshold=threshold).numpy()

    def weights(beta: float) -> NDArray[np.float64]:
        found = agreement_weights(better, worse, temperature=beta).double().numpy()
        return np.asarray(found[kept])

    thresholds = {*THRESHOLDS, *([] if threshold is None else [threshold])}
    temperatures = {*TEMPERATURES, *([] if temperature is None else [temperature])}
    certain = torch.sigmoid(torch.from_numpy(margins)).numpy()
    sizes = np.abs(margins)
    look = MarginLook(
        quantiles={q: float(np.quantile(sizes, q)) for q in QUANTILES},
        kept={
            tau: float(disagreement_mask(better, worse, threshold=tau).float().mean())
            for tau in sorted(thresholds)
        },
        thresholds={share: _threshold(certain, share) for share in KEPT_SHARES},
        num_kept=int(kept.sum()),
        weights={
            beta: WeightLook(
                mean=float(weights(beta).mean()) if kept.any() else 0.0,
                effective_pairs=effective_pairs(weights(beta)),
            )
            for beta in sorted(temperatures)
        },
        warnings=[],
    )
    if not sizes.any():
        look.warnings.append(ALL_ALIKE)
        return look
    look.warnings.extend(_about_threshold(look, threshold))
    if temperature is not None and kept.any():
        wrong = kept & (margins < 0)
        counts = weights(temperature)[wrong[kept]]
        look.warnings.extend(_about_temperature(look, temperature, counts, sizes[wrong]))
    return look


def _threshold(certain: NDArray[np.float64], share: float) -> float | None:
    """The tau below which `share` of the (P,) win probabilities are; None where margins are equal,
    or too large for a probability below 1, so that none is near."""
    tau = float(np.quantile(certain, share))
    kept = float((certain < tau).mean())
    is_near = abs(kept - share) <= max(NEAR_SHARE, 1 / len(certain))
    return tau if 0 < tau < 1 and is_near else None


def effective_pairs(weights: NDArray[np.float64]) -> float:
    """Kish's number of pairs: (sum of w)^2 / sum of w^2, how many equal ones would say as much.

    Returns: 0 without a weight above 0.
    """
    squares = float(weights @ weights)
    return float(weights.sum()) ** 2 / squares if squares else 0.0


def _about_threshold(look: MarginLook, threshold: float | None) -> list[str]:
    if threshold is None:
        return []
    kept, wrong = look.kept[threshold], look.kept[0.5]
    set_one = threshold_text(threshold)
    if kept > MOST_KEPT:
        return [
            f"filter_threshold {set_one} keeps {100 * kept:.1f} % of the pairs: the global "
            f"model's margins are small (half of them below {look.quantiles[0.5]:.3g}), and the "
            f"filter does next to nothing; {_better_thresholds(look)}"
        ]
    if threshold > 0.5 and kept - wrong < FEW_BETWEEN:
        more = "no other below 1 keeps more"
        if any(tau is not None and tau > threshold for tau in look.thresholds.values()):
            more = "a higher one keeps more"
        return [
            f"filter_threshold {set_one} keeps what the global model ranks wrong and "
            f"{100 * (kept - wrong):.1f} % of the pairs beside: its margins are large (half of "
            f"them above {look.quantiles[0.5]:.3g}), so the model learns from contradictions "
            f"alone; {more}"
        ]
    return []


def _better_thresholds(look: MarginLook) -> str:
    names = {"a third": look.thresholds[0.33], "a half": look.thresholds[0.5]}
    found = {name: tau for name, tau in names.items() if tau is not None}
    if not found:
        return "none keeps a third or a half, since many margins are equal"
    texts = threshold_texts(list(found.values()), digits=4)
    said = [f"{text} keeps {name}" for text, name in zip(texts, found, strict=True)]
    return ", ".join(said)


def _about_temperature(
    look: MarginLook,
    temperature: float,
    of_wrong: NDArray[np.float64],
    sizes_of_wrong: NDArray[np.float64],
) -> list[str]:
    """`of_wrong`, `sizes_of_wrong`: weights and sizes of the margins of the kept pairs that the
    global model ranks wrong, which alone are weighted."""
    found = look.weights[temperature]
    if found.effective_pairs > NEARLY_ALIKE * look.num_kept:
        better = "so does any: the global model ranks none of them wrong"
        if len(sizes_of_wrong):
            typical = float(np.median(sizes_of_wrong))
            better = f"one below the median margin of those ranked wrong, {typical:.3g}, does more"
        return [
            f"weight_temperature {temperature:g} gives the {look.num_kept} kept pairs a mean "
            f"weight of {found.mean:.2f}, nearly the same to all ({found.effective_pairs:.0f} "
            f"effective pairs): it does next to nothing; {better}"
        ]
    if len(of_wrong) and of_wrong.mean() < NEARLY_NOTHING:
        return [
            f"weight_temperature {temperature:g} gives the pairs that the global model ranks wrong "
            f"a mean weight of {of_wrong.mean():.3f}: they are as good as left out, for its "
            f"margins are large (half of them above {look.quantiles[0.5]:.3g})"
        ]
    return []
