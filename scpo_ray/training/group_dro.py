"""Group DRO: cultures that a model serves badly come to count more, step by step.

Source: Sagawa et al., Distributionally Robust Neural Networks for Group Shifts (ICLR 2020),
algorithm 1; docs/method.md says where this differs.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Groups:
    """The culture of each of the plan's P pairs.

    Attributes:
        codes: (P,) int64, index into `names`; every group has a pair.
        step_size: how fast the weights follow the losses, > 0.
    """

    codes: NDArray[np.int64]
    names: tuple[str, ...]
    step_size: float

    @cached_property
    def rarities(self) -> NDArray[np.float64]:
        """(G,) pairs of all groups for one of this group: pairs come as often as there are."""
        counts = np.bincount(self.codes, minlength=len(self.names))
        if not counts.all():
            raise ValueError(f"every group must have a pair, got {counts.tolist()}")
        return np.asarray(len(self.codes) / counts, dtype=np.float64)

    def start(self) -> NDArray[np.float64]:
        """(G,) the weights before the first step, all alike."""
        return np.full(len(self.names), 1 / len(self.names))

    def pair_weights(self, group_weights: NDArray[np.float64]) -> NDArray[np.float32]:
        """(P,) what each pair counts, so that the mean over a step's pairs is, in expectation, the
        sum over groups of the group's weight times its mean loss."""
        weights = (group_weights * self.rarities)[self.codes]
        return np.asarray(weights, dtype=np.float32)

    def losses(
        self, rows: NDArray[np.int64], pair_losses: NDArray[np.float64], *, batch_size: int
    ) -> NDArray[np.float64]:
        """(G,) each group's mean loss as a step's pairs estimate it; those of workers add up.

        Args:
            rows: (B,) which of the plan's pairs.
            pair_losses: (B,) theirs.
            batch_size: pairs of the step, over all workers.
        """
        sums = np.bincount(self.codes[rows], pair_losses, minlength=len(self.names))
        return np.asarray(sums * self.rarities / batch_size, dtype=np.float64)


def follow_losses(
    group_weights: NDArray[np.float64], group_losses: NDArray[np.float64], *, step_size: float
) -> NDArray[np.float64]:
    """The weights after a step of exponentiated gradient ascent: the worst groups gain.

        q_g <- q_g exp(step_size * loss_g), made to sum to 1

    Args:
        group_weights, group_losses: (G,).

    Returns: (G,), summing to 1.
    Raises: ValueError if the shapes differ, `step_size` is not positive or a loss is not finite.
    """
    if group_weights.shape != group_losses.shape:
        shapes = f"{group_weights.shape} and {group_losses.shape}"
        raise ValueError(f"weights and losses must be (G,) alike, got {shapes}")
    if not step_size > 0:
        raise ValueError(f"step_size must be > 0, got {step_size}")
    if not np.isfinite(group_losses).all():
        raise ValueError(f"losses must be finite, got {group_losses.tolist()}")
    # Relative to the largest, no exponential overflows.
    raised = group_weights * np.exp(step_size * (group_losses - group_losses.max()))
    weights: NDArray[np.float64] = raised / raised.sum()
    return weights
