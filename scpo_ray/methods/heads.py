"""Score heads of cultures on frozen features: the way to fit that their methods share.

A head is a vector; a text's reward is its features times the head. What is learned of a culture's
head is its change from the global model's. C cultures with P_c pairs each and D features.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scpo_ray.methods.mixture import learned_shares
from scpo_ray.methods.task import FitContext, Fitted, PreparedRun
from scpo_ray.models.export import save_reward_model
from scpo_ray.models.reading import score_head
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.records import InputError, Pairs
from scpo_ray.results import TrainingCurve
from scpo_ray.storage.disk import whole_folder
from scpo_ray.training.loop import TrainingSummary
from scpo_ray.training.loss import bradley_terry_losses, labelled_losses
from scpo_ray.workers import from_first

log = logging.getLogger(__name__)

_GRADIENT_TOLERANCE = 1e-9
_CHANGE_TOLERANCE = 1e-14
_STEEP = 1e-5
"""A slope of the objective, whose value is near 0.7, above which it could still fall."""
_LINEAR_TOLERANCE = 1e-3


@dataclass(frozen=True)
class TaughtPairs:
    """One culture's training pairs: (P_c, D) features of chosen minus rejected, (P_c,) the global
    model's margins and, with soft labels, (P_c,) the shares that preferred chosen, all float64."""

    differences: Tensor
    ref_margins: Tensor
    shares: Tensor | None = None


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


Learn = Callable[[Sequence[TaughtPairs]], Heads]
"""What a method of this kind has of its own: heads from the pairs of C cultures."""


def fit_heads(prepared: PreparedRun, context: FitContext, learn: Learn) -> Fitted:
    """Learns the heads of all cultures, saves the model with the run's culture's one.

    With several cultures in `culture_weights` it is the weighted mean of theirs.

    Raises: InputError if the features say nothing or the settings do not fit the cultures.
    """
    task = prepared.task
    features, ref_rewards = task.base.features(task.data.texts), task.ref_rewards

    def learned() -> tuple[NDArray[np.float32], TrainingSummary]:
        if features is None or ref_rewards is None:
            raise ValueError("this needs the global model's features and rewards")
        started = time.monotonic()
        changes, heads = learned_changes(
            task.train_pairs,
            features,
            ref_rewards,
            learn,
            method=task.config.method,
            shares=learned_shares(task.config, task.train_pairs),
        )
        seconds = time.monotonic() - started
        weights = np.array([task.culture_weights.get(culture, 0.0) for culture in changes])
        change = weights @ np.stack(list(changes.values())) / weights.sum()
        model = task.base.frozen()
        rewards = change_head(model, change, features, ref_rewards)
        with whole_folder(context.run_dir.model_dir) as folder:
            save_reward_model(model, folder)
        passes = heads.num_evaluations
        num_pairs = passes * len(task.train_pairs)
        return rewards, TrainingSummary(passes, num_pairs, seconds, TrainingCurve())

    rewards, summary = from_first(learned, task.worker)
    return Fitted(lambda texts: rewards[texts], summary)


def learned_changes(
    pairs: Pairs,
    features: NDArray[np.float32],
    ref_rewards: NDArray[np.float32],
    learn: Learn,
    *,
    method: str,
    shares: NDArray[np.float64] | None,
) -> tuple[dict[str, NDArray[np.float64]], Heads]:
    """Culture -> (D,) its head minus the global model's, of every culture with a pair.

    Args:
        pairs: the training pairs of all cultures to learn from.
        features: (T, D); ref_rewards: (T,).
        shares: (P,) the pairs' soft labels; None: each label is 1.

    Raises: as `fit_heads`.
    """
    codes = np.unique(pairs.culture_codes)
    cultures = []
    for code in codes:
        rows = pairs.culture_codes == code
        mine = pairs.take(rows)
        differences = features[mine.chosen].astype(np.float64) - features[mine.rejected]
        margins = ref_rewards[mine.chosen].astype(np.float64) - ref_rewards[mine.rejected]
        labels = None if shares is None else torch.from_numpy(shares[rows])
        taught = TaughtPairs(torch.from_numpy(differences), torch.from_numpy(margins), labels)
        cultures.append(taught)
    try:
        heads = learn(cultures)
    except ValueError as error:
        raise InputError(f"method = {method}: no heads can be learned", [str(error)]) from None
    log.info(
        "heads of %d cultures from %d pairs: loss %.4f after %d passes",
        *(len(cultures), len(pairs), heads.loss, heads.num_evaluations),
    )
    if heads.slope > _STEEP:
        log.warning(
            "%s: the loss could still fall (slope %.1e); raise methods.%s.max_iterations",
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


def mean_loss(cultures: Sequence[TaughtPairs], heads: Tensor) -> Tensor:
    """The mean over cultures of each one's mean Bradley-Terry loss."""
    losses = [
        labelled_losses(
            c.ref_margins + c.differences @ head, c.shares, losses=bradley_terry_losses
        ).mean()
        for c, head in zip(cultures, heads, strict=True)
    ]
    return torch.stack(losses).mean()


def solved(
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
