"""The training loop. The plan has decided what is in a step; the engine knows how to make one."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import entr
from torch import Tensor
from tqdm import tqdm

from scpo_ray.models.reward_model import RewardModel
from scpo_ray.records import InputError, Tokens, Worker
from scpo_ray.results import Passes, TrainingCurve
from scpo_ray.settings.train import TrainConfig
from scpo_ray.tracking.trackers import Tracker
from scpo_ray.training.checkpoints import CheckpointStore
from scpo_ray.training.engine import Engine
from scpo_ray.training.loss import (
    Losses,
    bradley_terry_losses,
    labelled_losses,
    pair_margins,
    weighted_loss,
)
from scpo_ray.training.optimization import StepStats
from scpo_ray.training.pair_weights import PairWeights
from scpo_ray.training.plan import Plan, Step
from scpo_ray.workers import total

log = logging.getLogger(__name__)

_MIN_WATCHED_STEPS = 10
_COIN_TOLERANCE = 0.01

_PROGRESS = "progress.json"


@dataclass(frozen=True)
class TrainingData:
    """What the plan's P rows stand for: the texts' tokens, what pairs count, the rows' names,
    their loss by margin, and (P,) the shares of people who preferred `chosen`, where these are
    learned."""

    tokens: Tokens
    pair_weights: PairWeights
    pair_ids: Callable[[NDArray[np.int64]], list[str]]
    losses: Losses = bradley_terry_losses
    shares: NDArray[np.float32] | None = None

    def shares_of(self, rows: NDArray[np.int64], device: str) -> Tensor | None:
        return None if self.shares is None else torch.from_numpy(self.shares[rows]).to(device)

    def least_losses(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(B,) Bradley-Terry losses of pairs whose shares are met: the shares' entropy."""
        if self.shares is None:
            return np.zeros(len(rows))
        shares = self.shares[rows].astype(np.float64)
        return np.asarray(entr(shares) + entr(1 - shares))


@dataclass(frozen=True)
class TrainingSummary:
    """`seconds` of all attempts of the run that led to its end; `passes` where a network is
    trained."""

    num_steps: int
    num_pairs_seen: int
    seconds: float
    curve: TrainingCurve
    passes: Passes | None = None


def nothing_trained() -> TrainingSummary:
    return TrainingSummary(0, 0, 0.0, TrainingCurve())


@dataclass(frozen=True)
class StepLoss:
    """One worker's part of a step's loss; the (B,) rows and their losses before any weight, empty
    where nobody asked for them."""

    total: float
    rows: NDArray[np.int64]
    pair_losses: NDArray[np.float64]


@dataclass
class _Progress:
    """Of the run so far; a checkpoint holds it beside the engine's state.

    `batch_losses`: of the steps since the curve's last point. `pair_weights`: their state.
    """

    curve: TrainingCurve = field(default_factory=TrainingCurve)
    batch_losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    pair_weights: dict[str, Any] = field(default_factory=dict)


class DivergedError(InputError):
    """The loss or the gradient left the numbers; the settings, not the program, must change."""


def train(
    engine: Engine,
    plan: Plan,
    data: TrainingData,
    config: TrainConfig,
    tracker: Tracker,
    checkpoints: CheckpointStore,
    worker: Worker,
    *,
    seed: int,
    normalize_weights: bool,
    after_step: Callable[[int], None] = lambda step: None,
) -> TrainingSummary:
    """Makes the plan's steps, from the newest whole checkpoint on. All workers call it alike.

    After a kill the same call goes on at the last checkpoint, to the same weights (bit for bit on
    a CPU).

    Args:
        after_step: told of each step made, once what belongs to it is saved; changes nothing.

    Raises: DivergedError naming step, pairs and the last good checkpoint if the loss or the
    gradient is not finite; InputError if the model knows not all of the data's tokens.
    """
    engine.model.check_tokens(data.tokens)
    plan = replace(plan, in_rows=engine.model.in_rows)
    losses: list[float] = []
    progress = _resume(engine, checkpoints, worker)
    curve, earlier_s, pair_weights = progress.curve, progress.seconds, data.pair_weights
    pair_weights.restore(progress.pair_weights)
    started, watch = time.monotonic(), _CoinWatch(plan.num_steps, normalize_weights, worker)
    with _own_random_stream(worker.device), _progress_bar(plan, engine.steps_done) as bar:
        for step in plan.steps_from(engine.steps_done):
            # Dropout draws from torch's global stream: set per step, a resumed run draws the same.
            torch.manual_seed(_dropout_seed(seed, step.number, worker.rank))
            mine = step_loss(engine, step, data, worker, normalize_weights=normalize_weights)
            loss = total(mine.total, worker)
            try:
                stats = _update(engine, loss)
            except FloatingPointError as error:
                raise _diverged(error, step, data, checkpoints.newest(worker)) from None
            _tell_weights(pair_weights, mine, step, worker)
            progress.batch_losses.append(loss)
            losses.append(loss)
            watch.see(step, loss, data)
            bar.update(len(step.rows))
            if step.number % config.log_every == 0 or step.number == plan.num_steps:
                point = stats, pair_weights.shown()
                _log_point(curve, tracker, step.number, progress.batch_losses, *point)
                _log_line(bar, step, plan, curve)
                progress.batch_losses = []
            if step.number % config.checkpoint_every == 0 and step.number < plan.num_steps:
                progress.seconds = earlier_s + time.monotonic() - started
                progress.pair_weights = pair_weights.state()
                keep, loss_since, losses = config.keep_checkpoints, float(np.mean(losses)), []
                saving = checkpoints.saving(step.number, loss_since, keep=keep, worker=worker)
                _save_checkpoint(saving, engine, progress)
            after_step(step.number)
    return _summary(engine.model, plan, curve, earlier_s + time.monotonic() - started)


def _summary(
    model: RewardModel, plan: Plan, curve: TrainingCurve, seconds: float
) -> TrainingSummary:
    passes = Passes(plan.micro_batch_tokens, model.batch_tokens, model.in_rows)
    num_pairs_seen = plan.num_steps * plan.batch_size
    return TrainingSummary(plan.num_steps, num_pairs_seen, seconds, curve, passes)


@contextmanager
def _own_random_stream(device: str) -> Iterator[None]:
    """What is drawn and seeded within leaves torch's global stream as it was."""
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        yield


def step_loss(
    engine: Engine,
    step: Step,
    data: TrainingData,
    worker: Worker,
    *,
    normalize_weights: bool,
) -> StepLoss:
    """Forward and backward of the worker's micro-batches; the step's loss on this worker."""
    pair_weights = data.pair_weights
    normalizer = float(len(step.rows))
    if normalize_weights:
        normalizer = float(pair_weights.of(step.rows).sum())
    # Kept on the device until the step's end: reading one would wait for it.
    parts: list[Tensor] = []
    rows: list[NDArray[np.int64]] = []
    pair_losses: list[Tensor] = []
    micro_batches = step.micro_batches(worker.rank)
    for number, batch in enumerate(micro_batches, start=1):
        by_length = not engine.in_lockstep
        inputs = engine.model.batch(data.tokens, batch.texts, by_length=by_length)
        pairs = torch.from_numpy(batch.pairs).to(worker.device)
        margins = pair_margins(engine.rewards(inputs), pairs)
        shares = data.shares_of(batch.rows, worker.device)
        losses = labelled_losses(margins, shares, losses=data.losses)
        weights = torch.from_numpy(pair_weights.of(batch.rows)).to(worker.device)
        loss = weighted_loss(losses, weights, normalizer=normalizer)
        engine.backward(loss, last=number == len(micro_batches))
        parts.append(loss.detach())
        if pair_weights.follows_losses:
            rows.append(batch.rows)
            pair_losses.append(losses.detach())
    return StepLoss(
        float(torch.stack(parts).double().sum()),
        np.concatenate([*rows, np.empty(0, np.int64)]),
        torch.cat([*pair_losses, torch.empty(0, device=worker.device)]).double().cpu().numpy(),
    )


class _CoinWatch:
    """Says, once, that a model is still a coin after a tenth of its steps: each margin is 0, and
    each pair's loss log 2."""

    def __init__(self, num_steps: int, normalize_weights: bool, worker: Worker) -> None:
        self._last = max(_MIN_WATCHED_STEPS, num_steps // 10)
        self._normalize_weights = normalize_weights
        # The loss is that of all workers: one of them says it.
        self._is_coin = worker.rank == 0

    def see(self, step: Step, loss: float, data: TrainingData) -> None:
        if not self._is_coin or step.number > self._last:
            return
        weights = data.pair_weights.of(step.rows).astype(np.float64)
        normalizer = weights.sum() if self._normalize_weights else len(weights)
        coin = math.log(2) * weights.sum() / normalizer
        # Where people are divided even the best loss is not far below a coin's.
        to_gain = coin - weights @ data.least_losses(step.rows) / normalizer
        self._is_coin = bool(abs(loss - coin) <= _COIN_TOLERANCE * to_gain)
        if self._is_coin and step.number == self._last:
            log.warning(
                "nothing is being learned: after %d steps the loss is still log 2, a coin's; "
                "train.learning_rate may be too small",
                step.number,
            )


def _save_checkpoint(
    saving: AbstractContextManager[Path], engine: Engine, progress: _Progress
) -> None:
    with saving as folder:
        engine.save_checkpoint(folder)
        (folder / _PROGRESS).write_text(json.dumps(asdict(progress)))


def _tell_weights(weights: PairWeights, mine: StepLoss, step: Step, worker: Worker) -> None:
    if weights.follows_losses:
        size = len(step.rows)
        weights.after_step(mine.rows, mine.pair_losses, batch_size=size, worker=worker)


def _update(engine: Engine, loss: float) -> StepStats:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss}")
    return engine.step()


def _resume(engine: Engine, checkpoints: CheckpointStore, worker: Worker) -> _Progress:
    """What the newest checkpoint holds, with the engine in its state; nothing without one."""
    checkpoint = checkpoints.newest(worker)
    if checkpoint is None:
        return _Progress()
    engine.load_checkpoint(checkpoint)
    document = json.loads((checkpoint / "worker-0" / _PROGRESS).read_text())
    log.info("resumed at step %d from %s", engine.steps_done, checkpoint)
    return _Progress(**document | {"curve": TrainingCurve(**document["curve"])})


def _log_point(
    curve: TrainingCurve,
    tracker: Tracker,
    step: int,
    losses: Sequence[float],
    stats: StepStats,
    shown: Mapping[str, float],
) -> None:
    """One point of the curve: the mean loss of the steps since the last one."""
    loss = float(np.mean(losses))
    curve.step.append(step)
    curve.loss.append(loss)
    curve.lr.append(stats.lr)
    curve.grad_norm.append(stats.grad_norm)
    metrics = {"train/loss": loss, "train/lr": stats.lr, "train/grad_norm": stats.grad_norm}
    metrics |= {f"train/{name}": value for name, value in shown.items()}
    tracker.log(metrics, step=step)


def _progress_bar(plan: Plan, steps_done: int) -> "tqdm[int]":
    return tqdm(
        total=plan.num_steps * plan.batch_size,
        initial=steps_done * plan.batch_size,
        desc="train",
        unit="pair",
        disable=None,
        leave=False,
    )


def _log_line(bar: "tqdm[int]", step: Step, plan: Plan, curve: TrainingCurve) -> None:
    bar.set_postfix(step=step.number, loss=f"{curve.loss[-1]:.4f}")
    # Where no bar is drawn (a log file), lines at each tenth of the way.
    tenth = max(1, plan.num_steps // 10)
    if bar.disable and (step.number % tenth == 0 or step.number == plan.num_steps):
        log.info("step %d of %d, loss %.4f", step.number, plan.num_steps, curve.loss[-1])


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])


def _diverged(
    error: FloatingPointError, step: Step, data: TrainingData, checkpoint: Path | None
) -> DivergedError:
    ids = data.pair_ids(step.rows[:8])
    more = f" (+{len(step.rows) - 8} more)" if len(step.rows) > 8 else ""
    return DivergedError(
        f"training stopped at step {step.number}: {error}",
        [
            f"pairs of the step: {', '.join(ids)}{more}",
            f"last good checkpoint: {checkpoint or 'none yet'}",
            "a lower train.learning_rate or train.max_grad_norm, or fp32, may help",
        ],
    )
