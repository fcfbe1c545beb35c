"""LoRe: a few shared score heads, and for each culture its mixture of them, on frozen features.

Source: Bose et al. 2025, arXiv 2504.14439; docs/method.md says where this differs.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field

from scpo_ray.methods.ways import check_several_cultures, select_every_pair
from scpo_ray.records import InputError
from scpo_ray.settings.methods import Method, Style
from scpo_ray.settings.section import Section

if TYPE_CHECKING:
    from torch import Tensor

    from scpo_ray.methods.heads import Heads, TaughtPairs


class Settings(Section):
    rank: int | None = Field(None, ge=1)
    """Shared heads of which each culture is a mixture, at most as many as there are cultures;
    null: one for every two cultures, at least 2."""

    ridge: float = Field(1e-5, gt=0)
    """Penalty on each shared head's distance from the global model's, as for shared_offset."""

    max_iterations: int = Field(1_000, ge=1, le=1_000_000)
    """Iterations of the solver at most; it ends before where the gradient vanishes."""


def low_rank_heads(cultures: Sequence["TaughtPairs"], config: Settings, *, seed: int) -> "Heads":
    """A few shared heads, and for each culture its mixture of them.

        min over V, a of  mean over c of (mean over pairs of c of -log sigmoid(m))
            + ridge * sum over b of |V_b|^2 / 2
        m = ref_margin + x (sum over b of softmax(a_c)_b V_b)

    Not convex: `seed` decides where the solver begins.

    Returns: `changes` are the mixtures.
    Raises: ValueError as `check_pairs`, or if the rank exceeds the number of cultures.
    """
    return _learned(cultures, config, seed=seed, wants_shared=False)


def shared_heads(cultures: Sequence["TaughtPairs"], config: Settings, *, seed: int) -> "Heads":
    """As `low_rank_heads`, but `changes` are the (rank, D) shared heads themselves, V."""
    return _learned(cultures, config, seed=seed, wants_shared=True)


def _learned(
    cultures: Sequence["TaughtPairs"], config: Settings, *, seed: int, wants_shared: bool
) -> "Heads":
    import torch

    from scpo_ray.methods.heads import check_pairs, mean_loss, solved

    scale, num_features = check_pairs(cultures)
    rank = rank_of(config, len(cultures))
    draw = torch.Generator().manual_seed(seed)
    basis = torch.randn(rank, num_features, generator=draw, dtype=torch.float64)
    basis = (basis / math.sqrt(num_features)).requires_grad_()
    logits = torch.randn(len(cultures), rank, generator=draw, dtype=torch.float64).requires_grad_()

    def heads() -> "Tensor":
        return logits.softmax(dim=1) @ basis

    def objective() -> "Tensor":
        penalty = config.ridge * basis.square().sum()
        return mean_loss(cultures, heads() / scale) + penalty / 2

    found = (lambda: basis) if wants_shared else heads
    return solved([basis, logits], objective, found, scale, config.max_iterations)


def rank_of(config: Settings, num_cultures: int) -> int:
    """How many heads are mixed. Raises: ValueError if more than there are cultures."""
    if config.rank is None:
        return max(2, math.ceil(num_cultures / 2))
    if config.rank > num_cultures:
        raise ValueError(f"rank must be at most the {num_cultures} cultures, got {config.rank}")
    return config.rank


def check(task: Any) -> None:
    """Raises: InputError if there are too few cultures, or fewer than heads are asked for."""
    check_several_cultures(task)
    try:
        rank_of(task.settings, len(task.data.cultures))
    except ValueError as error:
        raise InputError(f"methods.lore: {error}") from None


def fit(prepared: Any, context: Any) -> Any:
    """Heads of all cultures; the run's culture's one is saved as a model."""
    from scpo_ray.methods.heads import fit_heads

    task = prepared.task
    learn = partial(low_rank_heads, config=task.settings, seed=task.config.seed)
    return fit_heads(prepared, context, learn)


METHODS = Method(
    name="lore",
    about="a few shared score heads, mixed for each culture, on frozen features",
    version=1,
    settings=Settings,
    check=check,
    select=select_every_pair,
    fit=fit,
    style=Style("#a63d4f", "#ee8c9b", ">", "-."),
    trains=False,
    needs_global_model=True,
    learns_from_all=True,
)
