"""SCPO and the paper's ablations: points of two choices, which pairs and how much each counts.

Source: SCPO (arXiv 2606.18606), "Filtering" and "Weighting"; docs/method.md.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from scpo_ray.methods.ways import select_every_pair, train
from scpo_ray.settings.methods import Method, Style

Weighting = Literal["none", "agreement", "inverse"]


def _selecting(*, filters: bool, weighting: Weighting) -> Callable[[Any], Any]:
    def select(task: Any) -> Any:
        from scpo_ray.methods.choosing import chosen_selection
        from scpo_ray.methods.selection import select_pairs

        # What was chosen for "auto", or else what is set.
        found = chosen_selection(task, filters=filters, weighting=weighting)
        values = found or task.config.selection
        chosen, rejected = task.ref_pair_rewards
        selection = select_pairs(
            chosen,
            rejected,
            filter_threshold=values.filter_threshold if filters else None,
            weighting=weighting,
            weight_temperature=values.weight_temperature,
        )
        return replace(selection, chosen=found)

    return select


def keep_global_model(prepared: Any, context: Any) -> Any:
    """No training: the rewards are the global model's, which are known."""
    from scpo_ray.methods.task import Fitted
    from scpo_ray.training.loop import nothing_trained

    rewards = prepared.task.ref_rewards
    return Fitted(lambda texts: rewards[texts], nothing_trained(), makes_model=False)


METHODS = (
    Method(
        name="global",
        about="the global model itself, not trained",
        version=1,
        select=select_every_pair,
        fit=keep_global_model,
        style=Style("#6b7281", "#a3abb6", "s", ":"),
        is_rival=False,
        trains=False,
    ),
    Method(
        name="finetune",
        about="training on all of the culture's pairs, each counting the same",
        version=1,
        select=select_every_pair,
        fit=train,
        style=Style("#0072b3", "#5cb3f0", "o", "-"),
        is_rival=False,
    ),
    Method(
        name="filter",
        about="training on the pairs that the global model doubts (F)",
        version=1,
        select=_selecting(filters=True, weighting="none"),
        fit=train,
        style=Style("#a57c00", "#e2b93b", "^", "--"),
        is_rival=False,
        needs_global_model=True,
    ),
    Method(
        name="weight",
        about="training on all pairs, each counting less the more the global model disagrees (W)",
        version=1,
        select=_selecting(filters=False, weighting="agreement"),
        fit=train,
        style=Style("#008f68", "#3fcaa0", "v", "-."),
        is_rival=False,
        needs_global_model=True,
    ),
    Method(
        name="inverse",
        about="the paper's ablation: each pair counts more, the more the global model disagrees",
        version=1,
        select=_selecting(filters=False, weighting="inverse"),
        fit=train,
        style=Style("#b0568b", "#e59ac5", "D", "--"),
        is_rival=False,
        needs_global_model=True,
    ),
    Method(
        name="scpo",
        about="the paper's method: the filter and the weights together (F + W)",
        version=1,
        select=_selecting(filters=True, weighting="agreement"),
        fit=train,
        style=Style("#cf4a00", "#ff8b44", "P", "-"),
        is_rival=False,
        needs_global_model=True,
    ),
)
