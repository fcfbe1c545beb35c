"""A culture that comes later: a mixture of heads learned from the others, by a few of its answers.

Source: the few-shot step of LoRe, Bose et al. 2025, arXiv 2504.14439; docs/method.md.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field

from scpo_ray.methods.lore import Settings as LoreSettings
from scpo_ray.methods.lore import rank_of, shared_heads
from scpo_ray.methods.ways import check_several_cultures
from scpo_ray.records import InputError
from scpo_ray.settings.methods import Method, Style

if TYPE_CHECKING:
    from torch import Tensor

    from scpo_ray.methods.heads import Heads, TaughtPairs


class Settings(LoreSettings):
    num_answers: int = Field(20, ge=1, le=1_000_000)
    """Training prompts of the run's culture whose pairs are known, drawn by the run's seed; fewer
    are among more. The other cultures' are all known."""


def mixed_heads(
    cultures: Sequence["TaughtPairs"], config: Settings, *, target: int, seed: int
) -> "Heads":
    """The target's mixture of the others' shared heads, which stay as they are.

        min over a of  mean over the target's pairs of -log sigmoid(m)
        m = ref_margin + x (sum over b of softmax(a)_b V_b)

    Args:
        cultures: of C cultures. target: which of them is the new one.

    Returns: `changes` (C, D): the target's mixture in its row, 0 in the others'.
    Raises: ValueError as `low_rank_heads`, of the others.
    """
    import numpy as np
    import torch

    from scpo_ray.methods.heads import Heads, mean_loss, solved

    others = [pairs for place, pairs in enumerate(cultures) if place != target]
    shared = shared_heads(others, config, seed=seed)
    basis = torch.from_numpy(shared.changes)
    logits = torch.zeros(1, len(basis), dtype=torch.float64, requires_grad=True)

    def head() -> "Tensor":
        return logits.softmax(dim=1) @ basis

    def objective() -> "Tensor":
        return mean_loss([cultures[target]], head())

    found = solved([logits], objective, head, 1.0, config.max_iterations)
    changes = np.zeros((len(cultures), basis.shape[1]))
    changes[target] = found.changes[0]
    passes = shared.num_evaluations + found.num_evaluations
    return Heads(changes, found.loss, max(shared.slope, found.slope), passes)


def check(task: Any) -> None:
    """Raises: InputError if the run is not of one culture, or there are too few others."""
    check_several_cultures(task)
    if len(task.trained_cultures) != 1:
        raise InputError(
            f"method = lore_few: one culture is new, got {task.trained_cultures}",
            ["give one culture in culture_weights, or compare over space.culture"],
        )
    num_others = len(task.data.cultures) - 1
    if num_others < 2:
        raise InputError(
            f"method = lore_few: learns from the other cultures, and there is {num_others}",
            ["name three or more in data.cultures"],
        )
    try:
        rank_of(task.settings, num_others)
    except ValueError as error:
        raise InputError(f"methods.lore_few: {error}") from None


def select(task: Any) -> Any:
    """All pairs of the other cultures, and those of a few prompts of the run's own."""
    import numpy as np
    import torch

    from scpo_ray.methods.task import Selection
    from scpo_ray.statistics.intervals import stream

    pairs, [culture] = task.train_pairs, task.trained_cultures
    mine = pairs.culture_codes == pairs.cultures.index(culture)
    prompts = np.unique(pairs.interactions[mine])
    order = stream(task.config.seed, "answers", culture).permutation(len(prompts))
    known = prompts[order[: task.settings.num_answers]]
    keep = ~mine | np.isin(pairs.interactions, known)
    return Selection(torch.from_numpy(keep), torch.ones(len(pairs)))


def fit(prepared: Any, context: Any) -> Any:
    """The shared heads, the culture's mixture of them; the run's culture's one is saved."""
    from dataclasses import replace

    import numpy as np

    from scpo_ray.methods.heads import fit_heads

    task = replace(prepared.task, train_pairs=prepared.kept_pairs)
    pairs, [culture] = task.train_pairs, task.trained_cultures
    present = np.unique(pairs.culture_codes).tolist()
    learn = partial(
        mixed_heads,
        config=task.settings,
        target=present.index(pairs.cultures.index(culture)),
        seed=task.config.seed,
    )
    return fit_heads(replace(prepared, task=task), context, learn)


METHODS = Method(
    name="lore_few",
    about="a culture that comes later: a few of its answers mix the heads that others share",
    version=1,
    settings=Settings,
    check=check,
    select=select,
    fit=fit,
    style=Style("#7d2f5d", "#d98bb8", "H", "--"),
    trains=False,
    needs_global_model=True,
    learns_from_all=True,
)
