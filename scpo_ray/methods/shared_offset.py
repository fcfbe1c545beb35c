"""A score head for all cultures and an offset for each, learned together on frozen features.

Source: the regularised multi-task learning of Evgeniou and Pontil (KDD 2004) on the Bradley-Terry
loss; docs/method.md.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field

from scpo_ray.methods.ways import check_several_cultures, select_every_pair
from scpo_ray.settings.methods import Method, Style
from scpo_ray.settings.section import Section

if TYPE_CHECKING:
    from torch import Tensor

    from scpo_ray.methods.heads import Heads, TaughtPairs


class Settings(Section):
    shared_ridge: float = Field(1e-4, gt=0)
    """Penalty on what all cultures share, as half of it times the squared length, in units of the
    loss; pairs' features are scaled to a mean squared length of 1."""

    offset_ridge: float = Field(1e-4, gt=0)
    """The same for what a culture has of its own: higher keeps the cultures closer together."""

    max_iterations: int = Field(1_000, ge=1, le=1_000_000)
    """Iterations of the solver at most; it ends before where the gradient vanishes."""


def shared_offset_heads(cultures: Sequence["TaughtPairs"], config: Settings) -> "Heads":
    """A head for all cultures, and an offset from it for each.

        min over u, v_1 .. v_C of  mean over c of (mean over pairs of c of -log sigmoid(m))
            + shared_ridge |u|^2 / 2 + offset_ridge * mean over c of |v_c|^2 / 2
        m = ref_margin + x (u + v_c),  x the scaled features of chosen minus rejected

    The objective is convex: there is one answer, wherever the solver begins.

    Returns: `changes` are u + v_c.
    Raises: ValueError as `check_pairs`.
    """
    import torch

    from scpo_ray.methods.heads import check_pairs, mean_loss, solved

    scale, num_features = check_pairs(cultures)
    shared = torch.zeros(num_features, dtype=torch.float64, requires_grad=True)
    offsets = torch.zeros(len(cultures), num_features, dtype=torch.float64, requires_grad=True)

    def heads() -> "Tensor":
        return shared + offsets

    def objective() -> "Tensor":
        penalty = config.shared_ridge * shared.square().sum()
        penalty = penalty + config.offset_ridge * offsets.square().sum(dim=1).mean()
        return mean_loss(cultures, heads() / scale) + penalty / 2

    return solved([shared, offsets], objective, heads, scale, config.max_iterations)


def fit(prepared: Any, context: Any) -> Any:
    """Heads of all cultures; the run's culture's one is saved as a model."""
    from scpo_ray.methods.heads import fit_heads

    return fit_heads(prepared, context, partial(shared_offset_heads, config=prepared.task.settings))


METHODS = Method(
    name="shared_offset",
    about="a score head for all cultures and an offset for each, on frozen features",
    version=1,
    settings=Settings,
    check=check_several_cultures,
    select=select_every_pair,
    fit=fit,
    style=Style("#5f7a00", "#b3cf52", "<", ":"),
    trains=False,
    needs_global_model=True,
    learns_from_all=True,
)
