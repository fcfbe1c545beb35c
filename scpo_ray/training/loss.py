"""The weighted Bradley-Terry objective."""

from torch import Tensor
from torch.nn.functional import softplus


def weighted_bradley_terry_loss(
    rewards: Tensor, pairs: Tensor, weights: Tensor, *, normalizer: float
) -> Tensor:
    """One micro-batch's part of the step's loss; the parts of all micro-batches and ranks add up.

        sum of w * -log sigmoid(r+ - r-) over the micro-batch, divided by `normalizer`

    Args:
        rewards: (R,) of the micro-batch's responses, each once.
        pairs: (B, 2) indices into `rewards`: chosen, rejected.
        weights: (B,) how much each pair counts.
        normalizer: > 0; the number of pairs of the *global* batch (or the sum of their weights).

    Returns: a scalar in float32.
    Raises: ValueError if the shapes do not fit or `normalizer` is not positive.
    Source: SCPO, the weighted objective; docs/method.md.
    """
    if rewards.ndim != 1:
        raise ValueError(f"rewards must be (R,), got {tuple(rewards.shape)}")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or weights.shape != pairs.shape[:1]:
        shapes = f"{tuple(pairs.shape)} and {tuple(weights.shape)}"
        raise ValueError(f"pairs must be (B, 2) and weights (B,), got {shapes}")
    if not normalizer > 0:
        raise ValueError(f"normalizer must be > 0, got {normalizer}")
    return (weights * bradley_terry_losses(rewards, pairs)).sum() / normalizer


def bradley_terry_losses(rewards: Tensor, pairs: Tensor) -> Tensor:
    """(B,) each pair's -log sigmoid(r+ - r-) in float32; arguments as above."""
    margins = rewards.float()[pairs[:, 0]] - rewards.float()[pairs[:, 1]]
    # softplus(-x) is -log sigmoid(x) without overflow.
    return softplus(-margins)
