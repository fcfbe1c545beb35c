"""The weighted objective of a step, and Bradley-Terry's loss of a pair."""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import softplus

Losses = Callable[[Tensor], Tensor]
"""From (B,) margins, chosen minus rejected, to (B,) losses."""


def bradley_terry_losses(margins: Tensor) -> Tensor:
    """(B,) -log sigmoid of (B,) margins, without overflow."""
    return softplus(-margins)


def labelled_losses(margins: Tensor, shares: Tensor | None, *, losses: Losses) -> Tensor:
    """(B,) losses of pairs whose labels say how many people preferred `chosen`.

        share * losses(margin) + (1 - share) * losses(-margin)

    With Bradley-Terry's losses that is the binary cross-entropy of sigmoid(margin) and the share.

    Args:
        margins: (B,) chosen minus rejected.
        shares: (B,) of those who preferred either response, those for `chosen`, in [0, 1]; None:
            1 for every pair, to the bit the plain losses.

    Raises: ValueError if the shapes differ.
    Source: docs/method.md, "Soft labels".
    """
    if shares is None:
        return losses(margins)
    if shares.shape != margins.shape:
        shapes = f"{tuple(margins.shape)} and {tuple(shares.shape)}"
        raise ValueError(f"margins and shares must be (B,) alike, got {shapes}")
    return shares * losses(margins) + (1 - shares) * losses(-margins)


def pair_margins(rewards: Tensor, pairs: Tensor) -> Tensor:
    """(B,) chosen minus rejected in float32.

    Args:
        rewards: (R,) of the micro-batch's responses, each once.
        pairs: (B, 2) indices into `rewards`: chosen, rejected.

    Raises: ValueError if the shapes do not fit.
    """
    if rewards.ndim != 1:
        raise ValueError(f"rewards must be (R,), got {tuple(rewards.shape)}")
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs must be (B, 2), got {tuple(pairs.shape)}")
    rewards = rewards.float()
    return rewards[pairs[:, 0]] - rewards[pairs[:, 1]]


def weighted_loss(losses: Tensor, weights: Tensor, *, normalizer: float) -> Tensor:
    """One micro-batch's part of the step's loss; the parts of all micro-batches and ranks add up.

        sum of w * loss over the micro-batch, divided by `normalizer`

    Args:
        losses: (B,) of pairs; weights: (B,) how much each counts.
        normalizer: > 0; the number of pairs of the *global* batch (or the sum of their weights).

    Returns: a scalar in float32.
    Raises: ValueError if the shapes differ or `normalizer` is not positive.
    Source: SCPO, the weighted objective; docs/method.md.
    """
    if losses.ndim != 1 or weights.shape != losses.shape:
        shapes = f"{tuple(losses.shape)} and {tuple(weights.shape)}"
        raise ValueError(f"losses and weights must be (B,) alike, got {shapes}")
    if not normalizer > 0:
        raise ValueError(f"normalizer must be > 0, got {normalizer}")
    return (weights * losses).sum() / normalizer
