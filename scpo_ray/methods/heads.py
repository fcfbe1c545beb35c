"""Score heads of cultures on frozen features: the way to fit that their methods share.

A head is a vector; a text's reward is its features times the head. What is learned of a culture's
head is its change from the global model's. C cultures with P_c pairs each and D features.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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
from scpo_ray.storage.stores import MappedRows
from scpo_ray.training.loop import TrainingSummary
from scpo_ray.training.loss import bradley_terry_losses, labelled_losses
from scpo_ray.workers import from_first

log = logging.getLogger(__name__)

_GRADIENT_TOLERANCE = 1e-9
_CHANGE_TOLERANCE = 1e-14
_STEEP = 1e-5
"""A slope of the objective, whose value is near 0.7, above which it could still fall."""
_LINEAR_TOLERANCE = 1e-3
_BLOCK_BYTES = 32 * 2**20
"""Of features in float64 that are looked at in one go."""
_MOST_KEPT_BYTES = 2**30
"""Of all pairs' differences: more are read from the disk again in each pass, a fifth slower."""


class Differences:
    """(P, D) float64 features of chosen minus rejected, read when asked for.

    `differences[start:stop]` are those of the pairs from start to stop, as a tensor.
    """

    def __init__(self, features: MappedRows, pairs: Pairs) -> None:
        self.features, self.chosen, self.rejected = features, pairs.chosen, pairs.rejected
        self.shape = (len(pairs), features.shape[1])

    def __getitem__(self, part: slice) -> Tensor:
        chosen = self.features[self.chosen[part]].astype(np.float64)
        return torch.from_numpy(chosen - self.features[self.rejected[part]])


@dataclass(frozen=True)
class TaughtPairs:
    """One culture's training pairs: (P_c, D) features of chosen minus rejected, in memory or on the
    disk, (P_c,) the global model's margins and, with soft labels, (P_c,) the shares that preferred
    chosen, all float64."""

    differences: Tensor | Differences
    ref_margins: Tensor
    shares: Tensor | None = None

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """The pairs in order, so many at a time as `_BLOCK_BYTES` of their differences are."""
        for part in _blocks(*self.differences.shape):
            yield part, self.differences[part]


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
    features: MappedRows,
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
    are_kept = 8 * len(pairs) * features.shape[1] <= _MOST_KEPT_BYTES
    cultures = []
    for code in codes:
        rows = pairs.culture_codes == code
        mine = pairs.take(rows)
        differences = Differences(features, mine)
        margins = ref_rewards[mine.chosen].astype(np.float64) - ref_rewards[mine.rejected]
        labels = None if shares is None else torch.from_numpy(shares[rows])
        held = differences[:] if are_kept else differences
        cultures.append(TaughtPairs(held, torch.from_numpy(margins), labels))
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
    features: MappedRows,
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
    rewards, error = ref_rewards.astype(np.float64), 0.0
    for part in _blocks(*features.shape):
        rows = features[np.arange(part.start, part.stop)]
        differs = np.abs(rows @ weight + bias - ref_rewards[part])
        error = max(error, float(differs.max()))
        rewards[part] += rows @ change
    if error > _LINEAR_TOLERANCE * max(1.0, float(np.abs(ref_rewards).max(initial=0.0))):
        raise InputError(
            "the global model's rewards are not linear in its features: heads cannot be learned",
            [f"rewards differ by up to {error:.3g} from what the last layer gives"],
        )
    head.weight += torch.from_numpy(change).to(head.weight)[None]
    return rewards.astype(np.float32)


def _blocks(num_rows: int, num_features: int) -> Iterator[slice]:
    size = max(1, _BLOCK_BYTES // (8 * num_features))
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


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
    squares = sum(float(rows.square().sum()) for c in cultures for _, rows in c.blocks())
    # They are made of float32, whose squares float64 holds: one that is not finite tells of them.
    if not math.isfinite(squares) or not all(c.ref_margins.isfinite().all() for c in cultures):
        raise ValueError("features and margins must be finite")
    if not squares:
        raise ValueError("no pair's chosen and rejected response differ in their features")
    return math.sqrt(squares / sum(len(c.ref_margins) for c in cultures)), num_features


def mean_loss(cultures: Sequence[TaughtPairs], heads: Tensor) -> Tensor:
    """The mean over cultures of each one's mean Bradley-Terry loss.

    Args:
        heads: (C, D) float64.
    """
    loss: Tensor = _MeanLoss.apply(heads, cultures)  # type: ignore[no-untyped-call]
    return loss


class _MeanLoss(torch.autograd.Function):
    """`mean_loss` with its gradient in one reading of the pairs, of which nothing is held."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cultures: Sequence[TaughtPairs]) -> Tensor:
        losses, gradient = heads.new_zeros(len(cultures)), torch.zeros_like(heads)
        for row, culture in enumerate(cultures):
            num_pairs = len(culture.ref_margins)
            for part, differences in culture.blocks():
                shares = None if culture.shares is None else culture.shares[part]
                margins = culture.ref_margins[part] + differences @ heads[row]
                with torch.enable_grad():
                    margins.requires_grad_()
                    each = labelled_losses(margins, shares, losses=bradley_terry_losses)
                    loss = each.sum() / num_pairs
                (slopes,) = torch.autograd.grad(loss, margins)
                losses[row] += loss.detach()
                gradient[row] += slopes @ differences
        ctx.save_for_backward(gradient / len(cultures))
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return slope * gradient, None


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
