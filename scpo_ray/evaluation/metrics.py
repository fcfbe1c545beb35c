"""What a pair's outcome is, which layer it is in, what noise would do: arrays in and out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr

from scpo_ray.records import Layer


def ranked_right(chosen_rewards: NDArray[Any], rejected_rewards: NDArray[Any]) -> NDArray[np.bool_]:
    """(B,) whether each pair is ranked right: chosen strictly above rejected; a tie is wrong.

    Raises: ValueError if the shapes differ or a reward is NaN or infinite.
    """
    return _margins(chosen_rewards, rejected_rewards) > 0


def win_probabilities(
    chosen_rewards: NDArray[Any], rejected_rewards: NDArray[Any]
) -> NDArray[np.float64]:
    """(B,) sigmoid(chosen - rejected): the chance the model gives `chosen` of winning.

    Raises: ValueError if the shapes differ or a reward is NaN or infinite.
    """
    probabilities: NDArray[np.float64] = expit(_margins(chosen_rewards, rejected_rewards))
    return probabilities


def layer_masks(
    ref_chosen_rewards: NDArray[Any],
    ref_rejected_rewards: NDArray[Any],
    *,
    distinctive_threshold: float,
) -> dict[Layer, NDArray[np.bool_]]:
    """Which pairs each layer holds: `distinctive` and `agreed` part `all` between them.

    Distinctive: the reference model's win probability is at or below the threshold. "At" matters
    for one value: two equal reference rewards at the threshold 0.5. The reference model does not
    rank such a pair right, so it is distinctive, and the reference model's accuracy is exactly 0
    on `distinctive` and 1 on `agreed`.

    Args:
        ref_chosen_rewards, ref_rejected_rewards: (B,) in reward units.
        distinctive_threshold: a probability in (0, 1]; 0.5 in the paper.

    Returns: layer -> (B,) mask.
    Raises: ValueError if the shapes differ, a reward is NaN or infinite, or the threshold is
        outside (0, 1].
    Source: SCPO, "Evaluation"; the tie is ours.
    """
    if not 0 < distinctive_threshold <= 1:
        raise ValueError(f"distinctive_threshold must be in (0, 1], got {distinctive_threshold}")
    margins = _margins(ref_chosen_rewards, ref_rejected_rewards)
    # Margins against the threshold's logit: a sigmoid rounds the smallest margins to 0.5.
    distinctive = margins <= logit(distinctive_threshold)
    return {
        "all": np.ones(len(margins), dtype=np.bool_),
        "distinctive": distinctive,
        "agreed": ~distinctive,
    }


def margin_scale(ref_margins: NDArray[Any], margins: NDArray[Any]) -> float | None:
    """How many times as large a model's margins are as the reference model's, by least squares.

    Above 1 the model is the surer of what the reference model says too, below 1 the less; that
    alone ranks no pair otherwise. Not below 0: a model that says the opposite keeps nothing.

    Args:
        ref_margins, margins: (B,) of the reference and of the changed model, in reward units.

    Returns: None where the reference model's margins are all 0, or there are none.
    Raises: ValueError if the shapes differ or a margin is NaN or infinite.
    """
    _margins(margins, ref_margins)
    own = ref_margins.astype(np.float64)
    square = float(own @ own)
    return None if square == 0 else max(0.0, float(margins.astype(np.float64) @ own) / square)


def noise_outcomes(ref_margins: NDArray[Any], margins: NDArray[Any]) -> NDArray[np.float64]:
    """(B,) how often the reference model would rank each pair right, were a model's change noise.

    The change is what is left of the margins when the reference margins are taken out at their
    `margin_scale` b: to be surer of the same order is no change. Gaussian noise as large as that
    (its root mean square, over b) is added to the reference margins: a pair is then ranked right
    with probability Phi(ref_margin / size), so no draw is needed. Where nothing but the scale
    changed, the reference model's own outcomes; where nothing of it is left (b = 0), a coin's.

    Args and errors as for `margin_scale`.
    """
    scale = margin_scale(ref_margins, margins)
    if not scale:
        return np.full(len(margins), 0.5)
    own = ref_margins.astype(np.float64)
    left = margins.astype(np.float64) - scale * own
    size = float(np.sqrt(np.mean(left**2))) / scale
    # What float32 alone leaves is no noise.
    if size <= 1e-6 * float(np.sqrt(np.mean(own**2))):
        return (ref_margins > 0).astype(np.float64)
    probabilities: NDArray[np.float64] = ndtr(own / size)
    return probabilities


def _margins(chosen_rewards: NDArray[Any], rejected_rewards: NDArray[Any]) -> NDArray[np.float64]:
    if chosen_rewards.shape != rejected_rewards.shape or chosen_rewards.ndim != 1:
        shapes = f"{chosen_rewards.shape} and {rejected_rewards.shape}"
        raise ValueError(f"chosen and rejected rewards must be (B,) and alike, got {shapes}")
    broken = ~(np.isfinite(chosen_rewards) & np.isfinite(rejected_rewards))
    if broken.any():
        first = int(np.argmax(broken))
        raise ValueError(
            f"rewards must be finite, got {int(broken.sum())} pairs that are not, the first at "
            f"{first}: {chosen_rewards[first]} and {rejected_rewards[first]}"
        )
    return chosen_rewards.astype(np.float64) - rejected_rewards.astype(np.float64)
