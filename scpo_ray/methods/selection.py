"""Which pairs teach a culture's model something new, and how much each one counts."""

from typing import Literal

import torch
from torch import Tensor

from scpo_ray.methods.task import Selection
from scpo_ray.records import InputError


def select_pairs(
    chosen: Tensor,
    rejected: Tensor,
    *,
    filter_threshold: float | None,
    weighting: Literal["none", "agreement", "inverse"],
    weight_temperature: float | None,
) -> Selection:
    """What is kept of P pairs, and each pair's weight before its culture's weight.

    Args:
        chosen, rejected: (P,) the global model's rewards.
        filter_threshold: None keeps every pair.
        weight_temperature: of the agreement weights; the others have none.

    Raises: InputError if a reward is not finite or an inverse weight overflows: the model is at
    fault.
    """
    keep, weights = torch.ones(len(chosen), dtype=torch.bool), torch.ones(len(chosen))
    finite = chosen.isfinite() & rejected.isfinite()
    if not finite.all():
        raise InputError(
            "the global model gave rewards that are not finite",
            [f"in {int((~finite).sum())} of {len(finite)} training pairs"],
        )
    if filter_threshold is not None:
        keep = disagreement_mask(chosen, rejected, threshold=filter_threshold)
    if weighting == "agreement":
        if weight_temperature is None:
            raise ValueError("agreement weights need a temperature")
        weights = agreement_weights(chosen, rejected, temperature=weight_temperature)
    elif weighting == "inverse":
        weights = inverse_weights(chosen, rejected)
    return Selection(keep, weights)


def disagreement_mask(
    ref_chosen_rewards: Tensor, ref_rejected_rewards: Tensor, *, threshold: float
) -> Tensor:
    """Which pairs to train on: those whose chosen response the reference model doubts.

        keep = sigmoid(ref_chosen_rewards - ref_rejected_rewards) < threshold

    Args:
        ref_chosen_rewards, ref_rejected_rewards: (B,) in reward units.
        threshold: win probability in (0, 1] (tau in the paper).

    Returns: (B,) bool. A NaN is not kept.
    Raises: ValueError if the shapes differ or `threshold` is outside (0, 1].
    Source: SCPO, "Filtering"; docs/method.md.
    """
    _check_shapes(ref_chosen_rewards, ref_rejected_rewards)
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")
    margins = (ref_chosen_rewards - ref_rejected_rewards).double()
    return torch.sigmoid(margins) < threshold


def agreement_weights(
    ref_chosen_rewards: Tensor, ref_rejected_rewards: Tensor, *, temperature: float
) -> Tensor:
    """How much each pair counts: less, the more the reference model disagrees with it.

        w = min(exp((ref_chosen_rewards - ref_rejected_rewards) / temperature), 1)

    Args:
        ref_chosen_rewards, ref_rejected_rewards: (B,) in reward units.
        temperature: reward units, > 0; lower is sharper (beta in the paper).

    Returns: (B,) float32 in [0, 1]; 1 where the reference model agrees. NaN stays NaN.
    Raises: ValueError if the shapes differ or `temperature` is not positive.
    Source: SCPO, "Weighting"; docs/method.md.
    """
    _check_shapes(ref_chosen_rewards, ref_rejected_rewards)
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    margins = (ref_chosen_rewards - ref_rejected_rewards).float()
    # Clamp the margin, not the exponential: the same value, and exp cannot overflow.
    return (margins.clamp(max=0) / temperature).exp()


# exp of a larger margin leaves float32; a reference model that sure of the opposite is broken.
_LARGEST_INVERSE_MARGIN = 80.0


def inverse_weights(ref_chosen_rewards: Tensor, ref_rejected_rewards: Tensor) -> Tensor:
    """The paper's ablation: a pair counts more, the more the reference model disagrees with it.

        w = max(exp(ref_rejected_rewards - ref_chosen_rewards), 1)

    Args:
        ref_chosen_rewards, ref_rejected_rewards: (B,) in reward units.

    Returns: (B,) float32 >= 1. NaN stays NaN.
    Raises: ValueError if the shapes differ; InputError if a margin is so large that its weight
    overflows.
    Source: SCPO, ablations; docs/method.md.
    """
    _check_shapes(ref_chosen_rewards, ref_rejected_rewards)
    margins = (ref_rejected_rewards - ref_chosen_rewards).float()
    if (margins > _LARGEST_INVERSE_MARGIN).any():
        raise InputError(
            "inverse weights overflow: the global model is too sure",
            [
                f"a margin of {margins.max().item():.1f} reward units is above "
                f"{_LARGEST_INVERSE_MARGIN}"
            ],
        )
    return margins.clamp(min=0).exp()


def _check_shapes(ref_chosen_rewards: Tensor, ref_rejected_rewards: Tensor) -> None:
    if ref_chosen_rewards.shape != ref_rejected_rewards.shape:
        shapes = f"{tuple(ref_chosen_rewards.shape)} and {tuple(ref_rejected_rewards.shape)}"
        raise ValueError(f"chosen and rejected rewards must have one shape, got {shapes}")
