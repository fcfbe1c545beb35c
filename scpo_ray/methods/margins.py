"""How the global model's margins meet tau and beta: what a person reads to choose them. Pure."""

import numpy as np
import torch
from numpy.typing import NDArray

from scpo_ray.methods.selection import agreement_weights, disagreement_mask
from scpo_ray.results import MarginLook, WeightLook

THRESHOLDS = (0.5, 0.51, 0.52, 0.55, 0.6, 0.7, 0.8, 0.9)
KEPT_SHARES = (0.33, 0.5, 0.67)
TEMPERATURES = (0.1, 0.3, 0.6, 1.1, 2.0, 4.0)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

# Where a setting leaves next to nothing to choose: the paper keeps a half to a third of the pairs.
MOST_KEPT = 0.9
FEW_BETWEEN = 0.02
NEARLY_ALIKE = 0.98
NEARLY_NOTHING = 0.05


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
    margins = chosen.astype(np.float64) - rejected
    better, worse = torch.from_numpy(chosen), torch.from_numpy(rejected)
    kept = np.ones(len(margins), dtype=np.bool_)
    if threshold is not None:
        kept = disagreement_mask(better, worse, threshold=threshold).numpy()

    def weights(beta: float) -> NDArray[np.float64]:
        found = agreement_weights(better, worse, temperature=beta).double().numpy()
        return np.asarray(found[kept])

    thresholds = {*THRESHOLDS, *([] if threshold is None else [threshold])}
    temperatures = {*TEMPERATURES, *([] if temperature is None else [temperature])}
    certain = 1 / (1 + np.exp(-np.clip(margins, -700, 700)))
    sizes = np.abs(margins)
    look = MarginLook(
        quantiles={q: float(np.quantile(sizes, q)) for q in QUANTILES},
        kept={
            tau: float(disagreement_mask(better, worse, threshold=tau).float().mean())
            for tau in sorted(thresholds)
        },
        thresholds={share: float(np.quantile(certain, share)) for share in KEPT_SHARES},
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
    said = [*_about_threshold(look, threshold)]
    if temperature is not None and kept.any():
        wrong = kept & (margins < 0)
        said += _about_temperature(look, temperature, weights(temperature)[wrong[kept]])
    look.warnings.extend(said)
    return look


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
    third, half = look.thresholds[0.33], look.thresholds[0.5]
    if kept > MOST_KEPT:
        return [
            f"filter_threshold {threshold:g} keeps {100 * kept:.1f} % of the pairs: the global "
            f"model's margins are small (half of them below {look.quantiles[0.5]:.3g}), and the "
            f"filter does next to nothing; {third:.4g} would keep a third, {half:.4g} a half"
        ]
    if threshold > 0.5 and kept - wrong < FEW_BETWEEN:
        return [
            f"filter_threshold {threshold:g} keeps what the global model ranks wrong and "
            f"{100 * (kept - wrong):.1f} % of the pairs beside: its margins are large (half of "
            f"them above {look.quantiles[0.5]:.3g}), so the model learns from contradictions "
            "alone; a higher one keeps more"
        ]
    return []


def _about_temperature(
    look: MarginLook, temperature: float, of_wrong: NDArray[np.float64]
) -> list[str]:
    found = look.weights[temperature]
    if found.effective_pairs > NEARLY_ALIKE * look.num_kept:
        return [
            f"weight_temperature {temperature:g} gives the {look.num_kept} kept pairs a mean "
            f"weight of {found.mean:.2f}, nearly the same to all ({found.effective_pairs:.0f} "
            "effective pairs): it does next to nothing; one below the median margin, "
            f"{look.quantiles[0.5]:.3g}, would"
        ]
    if len(of_wrong) and of_wrong.mean() < NEARLY_NOTHING:
        return [
            f"weight_temperature {temperature:g} gives the pairs that the global model ranks wrong "
            f"a mean weight of {of_wrong.mean():.3f}: they are as good as left out, for its "
            f"margins are large (half of them above {look.quantiles[0.5]:.3g})"
        ]
    return []
