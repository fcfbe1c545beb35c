"""What each pair of a step counts: the same from first to last, or as a method sees fit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scpo_ray.records import Worker


class PairWeights(Protocol):
    """Asked what a step's pairs count before it, told their losses after it, on every worker."""

    @property
    def follows_losses(self) -> bool:
        """Whether `after_step` wants the losses; where not, they are not gathered."""

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(B,) what each of the plan's pairs `rows` counts in the coming step."""

    def after_step(
        self,
        rows: NDArray[np.int64],
        losses: NDArray[np.float64],
        *,
        batch_size: int,
        worker: Worker,
    ) -> None:
        """Takes note of a step that was made.

        Args:
            rows: (B,) this worker's pairs of the step; losses: (B,) theirs, before any weight.
            batch_size: pairs of the step over all workers.
        """

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up what a checkpoint kept; without one, an empty state changes nothing."""

    def shown(self) -> dict[str, float]:
        """Numbers for the training curve, by name."""


@dataclass(frozen=True)
class FixedWeights:
    """(P,) weights that no step changes."""

    weights: NDArray[np.float32]
    follows_losses: bool = False

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.weights[rows]

    def after_step(
        self,
        rows: NDArray[np.int64],
        losses: NDArray[np.float64],
        *,
        batch_size: int,
        worker: Worker,
    ) -> None:
        raise ValueError("fixed weights follow no losses")

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        if state:
            raise ValueError(f"fixed weights have no state, got {sorted(state)}")

    def shown(self) -> dict[str, float]:
        return {}
