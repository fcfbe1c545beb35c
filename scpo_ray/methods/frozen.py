"""From the frozen network's features to a culture's score head, and back into the network."""

import logging

import numpy as np
import torch
from numpy.typing import NDArray

from scpo_ray.methods.heads import Heads, TaughtPairs, low_rank_heads, shared_offset_heads
from scpo_ray.models.reading import score_head
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.records import InputError, Pairs
from scpo_ray.settings.methods import METHODS, MethodName, RivalsConfig

log = logging.getLogger(__name__)

_STEEP = 1e-5
"""A slope of the objective, whose value is near 0.7, above which it could still fall."""
_LINEAR_TOLERANCE = 1e-3


def learn_heads(
    method: MethodName,
    pairs: Pairs,
    features: NDArray[np.float32],
    ref_rewards: NDArray[np.float32],
    config: RivalsConfig,
    *,
    seed: int,
) -> tuple[dict[str, NDArray[np.float64]], Heads]:
    """Culture -> (D,) its head minus the global model's, of every culture with a pair.

    Args:
        pairs: the training pairs of all cultures to learn from.
        features: (T, D); ref_rewards: (T,).

    Raises: InputError if the features say nothing or the settings do not fit the cultures.
    """
    codes = np.unique(pairs.culture_codes)
    cultures = []
    for code in codes:
        mine = pairs.take(pairs.culture_codes == code)
        differences = features[mine.chosen].astype(np.float64) - features[mine.rejected]
        margins = ref_rewards[mine.chosen].astype(np.float64) - ref_rewards[mine.rejected]
        cultures.append(TaughtPairs(torch.from_numpy(differences), torch.from_numpy(margins)))
    try:
        if METHODS[method].heads == "offset":
            heads = shared_offset_heads(cultures, config.shared_offset)
        else:
            heads = low_rank_heads(cultures, config.lore, seed=seed)
    except ValueError as error:
        raise InputError(f"method = {method}: no heads can be learned", [str(error)]) from None
    log.info(
        "heads of %d cultures from %d pairs: loss %.4f after %d passes",
        *(len(cultures), len(pairs), heads.loss, heads.num_evaluations),
    )
    if heads.slope > _STEEP:
        log.warning(
            "%s: the loss could still fall (slope %.1e); raise rivals.%s.max_iterations",
            *(method, heads.slope, method),
        )
    return {pairs.cultures[code]: heads.changes[row] for row, code in enumerate(codes)}, heads


@torch.no_grad()
def change_head(
    model: RewardModel,
    change: NDArray[np.float64],
    features: NDArray[np.float32],
    ref_rewards: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Adds to the model's own head; the (T,) rewards that it then gives.

    Args:
        change: (D,).
        features, ref_rewards: (T, D) and (T,) of the model as it is.

    Raises: InputError if the rewards are not the head's product with the features, as in a model
        that computes more behind its head.
    """
    _, head = score_head(model.network)
    weight = head.weight[0].double().cpu().numpy()
    bias = 0.0 if head.bias is None else float(head.bias[0])
    error = float(np.abs(features @ weight + bias - ref_rewards).max(initial=0.0))
    if error > _LINEAR_TOLERANCE * max(1.0, float(np.abs(ref_rewards).max(initial=0.0))):
        raise InputError(
            "the global model's rewards are not linear in its features: heads cannot be learned",
            [f"rewards differ by up to {error:.3g} from what the last layer gives"],
        )
    head.weight += torch.from_numpy(change).to(head.weight)[None]
    return np.asarray(ref_rewards + features @ change, dtype=np.float32)
