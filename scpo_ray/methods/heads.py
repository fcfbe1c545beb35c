"""Score heads of cultures, learned together from all cultures' pairs on frozen features.

A head is a vector; a text's reward is its features times the head. What is learned of a culture's
head is its change from the global model's. C cultures with P_c pairs each and D features.

Sources: shared_offset is the regularised multi-task learning of Evgeniou and Pontil (KDD 2004) on
the Bradley-Terry loss; lore is LoRe (Bose et al. 2025, arXiv 2504.14439). docs/method.md.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from scpo_ray.settings.methods import LoreConfig, SharedOffsetConfig

_GRADIENT_TOLERANCE = 1e-9
_CHANGE_TOLERANCE = 1e-14


@dataclass(frozen=True)
class TaughtPairs:
    """One culture's training pairs: (P_c, D) features of chosen minus rejected, and (P_c,) the
    global model's margins, both float64."""

    differences: Tensor
    ref_margins: Tensor


@dataclass(frozen=True)
class Heads:
    """What was learned.

    Attributes:
        changes: (C, D) float64, each culture's head minus the global model's.
        loss: the objective at the end, penalties included.
        slope: the gradient's largest entry there; 0 at a minimum.
        num_evaluations: passes over all pairs.
    """

    changes: NDArray[np.float64]
    loss: float
    slope: float
    num_evaluations: int


def shared_offset_heads(cultures: Sequence[TaughtPairs], config: SharedOffsetConfig) -> Heads:
    """A head for all cultures, and an offset from it for each.

        min over u, v_1 .. v_C of  mean over c of (mean over pairs of c of -log sigmoid(m))
            + shared_ridge |u|^2 / 2 + offset_ridge * mean over c of |v_c|^2 / 2
        m = ref_margin + x (u + v_c),  x the scaled features of chosen minus rejected

    The objective is convex: there is one answer, wherever the solver begins.

    Returns: `changes` are u + v_c.
    Raises: ValueError as `check_pairs`.
    """
    scale, num_features = check_pairs(cultures)
    shared = torch.zeros(num_features, dtype=torch.float64, requires_grad=True)
    offsets = torch.zeros(len(cultures), num_features, dtype=torch.float64, requires_grad=True)

    def heads() -> Tensor:
        return shared + offsets

    def objective() -> Tensor:
        penalty = config.shared_ridge * shared.square().sum()
        penalty = penalty + config.offset_ridge * offsets.square().sum(dim=1).mean()
        return _mean_loss(cultures, heads() / scale) + penalty / 2

    return _solved([shared, offsets], objective, heads, scale, config.max_iterations)


def low_rank_heads(cultures: Sequence[TaughtPairs], config: LoreConfig, *, seed: int) -> Heads:
    """A few shared heads, and for each culture its mixture of them.

        min over V, a of  mean over c of (mean over pairs of c of -log sigmoid(m))
            + ridge * sum over b of |V_b|^2 / 2
        m = ref_margin + x (sum over b of softmax(a_c)_b V_b)

    Not convex: `seed` decides where the solver begins.

    Returns: `changes` are the mixtures.
    Raises: ValueError as `check_pairs`, or if the rank exceeds the number of cultures.
    """
    scale, num_features = check_pairs(cultures)
    rank = rank_of(config, len(cultures))
    draw = torch.Generator().manual_seed(seed)
    basis = torch.randn(rank, num_features, generator=draw, dtype=torch.float64)
    basis = (basis / math.sqrt(num_features)).requires_grad_()
    logits = torch.randn(len(cultures), rank, generator=draw, dtype=torch.float64).requires_grad_()

    def heads() -> Tensor:
        return logits.softmax(dim=1) @ basis

    def objective() -> Tensor:
        penalty = config.ridge * basis.square().sum()
        return _mean_loss(cultures, heads() / scale) + penalty / 2

    return _solved([basis, logits], objective, heads, scale, config.max_iterations)


def rank_of(config: LoreConfig, num_cultures: int) -> int:
    """How many heads are mixed. Raises: ValueError if more than there are cultures."""
    if config.rank is None:
        return max(2, math.ceil(num_cultures / 2))
    if config.rank > num_cultures:
        raise ValueError(f"rank must be at most the {num_cultures} cultures, got {config.rank}")
    return config.rank


def check_pairs(cultures: Sequence[TaughtPairs]) -> tuple[float, int]:
    """The root mean square length of all pairs' features, and their number D.

    Raises: ValueError if there are fewer than two cultures, one has no pair, the shapes differ,
    a number is not finite, or no pair's features differ.
    """
    if len(cultures) < 2:
        raise ValueError(f"heads need at least 2 cultures, got {len(cultures)}")
    shapes = [(tuple(c.differences.shape), tuple(c.ref_margins.shape)) for c in cultures]
    num_features = shapes[0][0][-1]
    for differences, margins in shapes:
        if differences != (*margins, num_features) or len(margins) != 1 or not margins[0]:
            raise ValueError(f"pairs must be (P_c, D) and (P_c,), P_c > 0, got {shapes}")
    if not all(t.isfinite().all() for c in cultures for t in (c.differences, c.ref_margins)):
        raise ValueError("features and margins must be finite")
    squares = sum(float(c.differences.square().sum()) for c in cultures)
    if not squares:
        raise ValueError("no pair's chosen and rejected response differ in their features")
    return math.sqrt(squares / sum(len(c.ref_margins) for c in cultures)), num_features


def _mean_loss(cultures: Sequence[TaughtPairs], heads: Tensor) -> Tensor:
    """The mean over cultures of each one's mean Bradley-Terry loss."""
    losses = [
        softplus(-(c.ref_margins + c.differences @ head)).mean()
        for c, head in zip(cultures, heads, strict=True)
    ]
    return torch.stack(losses).mean()


def _solved(
    parameters: Sequence[Tensor],
    objective: Callable[[], Tensor],
    heads: Callable[[], Tensor],
    scale: float,
    max_iterations: int,
) -> Heads:
    """L-BFGS over all pairs at once: nothing to tune, and the same to the bit every time."""
    solver = torch.optim.LBFGS(
        parameters,
        max_iter=max_iterations,
        tolerance_grad=_GRADIENT_TOLERANCE,
        tolerance_change=_CHANGE_TOLERANCE,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    num_evaluations = 0

    def evaluate() -> Tensor:
        nonlocal num_evaluations
        num_evaluations += 1
        solver.zero_grad()
        loss = objective()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(evaluate)  # type: ignore[no-untyped-call]
    loss = evaluate()
    slope = max(float(p.grad.abs().max()) for p in parameters if p.grad is not None)
    changes: NDArray[np.float64] = (heads().detach() / scale).numpy()
    return Heads(changes, loss.item(), slope, num_evaluations)
