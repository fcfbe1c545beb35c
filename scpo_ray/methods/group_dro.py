"""Group DRO: cultures that a model serves badly come to count more, step by step.

Source: Sagawa et al., Distributionally Robust Neural Networks for Group Shifts (ICLR 2020),
algorithm 1; docs/method.md says where this differs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from scpo_ray.methods.ways import check_several_cultures, select_every_pair
from scpo_ray.records import Worker
from scpo_ray.settings.methods import Method, Style
from scpo_ray.settings.naming import safe_name
from scpo_ray.settings.section import Section
from scpo_ray.workers import total_array


class Settings(Section):
    step_size: float = Field(0.01, gt=0)
    """How fast the cultures' weights follow their losses (eta_q in the paper)."""


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

    def pair_weights(
        self, group_weights: NDArray[np.float64], rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """(B,) what each of the pairs `rows` counts, so that the mean over a step's pairs is, in
        expectation, the sum over groups of the group's weight times its mean loss."""
        weights = (group_weights * self.rarities)[self.codes[rows]]
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


class GroupWeights:
    """Pair weights that follow the groups' losses, alike on every worker.

    `weights`: (P,) what the plan's pairs count besides.
    """

    follows_losses = True

    def __init__(self, weights: NDArray[np.float32], groups: Groups) -> None:
        self.weights = weights
        self.groups = groups
        self.group_weights = groups.start()

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.weights[rows] * self.groups.pair_weights(self.group_weights, rows)

    def after_step(
        self,
        rows: NDArray[np.int64],
        losses: NDArray[np.float64],
        *,
        batch_size: int,
        worker: Worker,
    ) -> None:
        weighted = self.weights[rows] * losses
        found = total_array(self.groups.losses(rows, weighted, batch_size=batch_size), worker)
        step_size = self.groups.step_size
        self.group_weights = follow_losses(self.group_weights, found, step_size=step_size)

    def state(self) -> dict[str, Any]:
        return {"group_weights": self.group_weights.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        if state:
            self.group_weights = np.array(state["group_weights"], dtype=np.float64)

    def shown(self) -> dict[str, float]:
        named = zip(self.groups.names, self.group_weights.tolist(), strict=True)
        return {f"group_weight/{safe_name(name)}": weight for name, weight in named}


def culture_weights(prepared: Any) -> GroupWeights:
    """The cultures that the plan's pairs come from, all alike before the first step."""
    pairs = prepared.kept_pairs
    present, codes = np.unique(pairs.culture_codes, return_inverse=True)
    names = tuple(pairs.cultures[code] for code in present)
    step_size = prepared.task.settings.step_size
    return GroupWeights(prepared.weights, Groups(codes.astype(np.int64), names, step_size))


def tell(weights: Any) -> tuple[str, ...]:
    """What each culture counts at the end, the heaviest first."""
    named = zip(weights.groups.names, weights.group_weights.tolist(), strict=True)
    ordered = sorted(named, key=lambda each: -each[1])
    shown = ", ".join(f"{name} {100 * weight:.1f} %" for name, weight in ordered)
    return (f"What each culture counts at the end: {shown}.",)


def fit(prepared: Any, context: Any) -> Any:
    """The network, by the plan, the cultures that it serves badly counting more."""
    from scpo_ray.methods.network import train_network

    return train_network(pair_weights=culture_weights, tell=tell)(prepared, context)


METHODS = Method(
    name="group_dro",
    about="one model for all cultures, the worst of which counts most",
    version=1,
    settings=Settings,
    check=check_several_cultures,
    select=select_every_pair,
    fit=fit,
    style=Style("#7a4fbf", "#b79af0", "X", "--"),
    pools=True,
)
