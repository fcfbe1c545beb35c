"""The training loop. The plan has decided what is in a step; the engine knows how to make one."""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from scpo_ray.checkpoints import CheckpointStore
from scpo_ray.config import TrainConfig
from scpo_ray.engine import Engine
from scpo_ray.loss import weighted_bradley_terry_loss
from scpo_ray.optimization import StepStats
from scpo_ray.plan import Plan, Step
from scpo_ray.records import InputError, Tokens, TrainingCurve, Worker
from scpo_ray.scoring import pad_texts
from scpo_ray.tracking import Tracker
from scpo_ray.workers import total

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """What the plan's rows stand for: the texts' tokens, (P,) weights, and the rows' names."""

    tokens: Tokens
    weights: NDArray[np.float32]
    pair_ids: Callable[[NDArray[np.int64]], list[str]]


@dataclass(frozen=True)
class TrainingSummary:
    """`seconds` of all attempts of the run that led to its end."""

    num_steps: int
    num_pairs_seen: int
    seconds: float
    curve: TrainingCurve


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
    """Makes the plan's steps, from the newest whole checkpoint on if there is one.

    Every worker calls it, and all return the same.

    Ctrl-C and a kill leave the run resumable: the same call goes on at the last checkpoint and
    ends with the same weights (bit for bit on a CPU).

    Args:
        after_step: told of each step made, once what belongs to it is saved; changes nothing.

    Raises: DivergedError naming step, pairs and the last good checkpoint if the loss or the
    gradient is not finite.
    """
    losses: list[float] = []
    curve, batch_losses, earlier_s = _resume(engine, checkpoints, worker)
    started = time.monotonic()
    with _progress(plan, engine.steps_done) as bar:
        for step in plan.steps_from(engine.steps_done):
            # Dropout draws from torch's global stream: set per step, a resumed run draws the same.
            torch.manual_seed(_dropout_seed(seed, step.number, worker.rank))
            mine = step_loss(engine, step, data, worker, normalize_weights=normalize_weights)
            loss = total(mine, worker)
            try:
                stats = _update(engine, loss)
            except FloatingPointError as error:
                raise _diverged(error, step, data, checkpoints.newest(worker)) from None
            batch_losses.append(loss)
            losses.append(loss)
            bar.update(len(step.rows))
            if step.number % config.log_every == 0 or step.number == plan.num_steps:
                _log_point(curve, tracker, step.number, batch_losses, stats.lr, stats.grad_norm)
                bar.set_postfix(step=step.number, loss=f"{curve.loss[-1]:.4f}")
                _log_line(bar, step, plan, curve)
                batch_losses = []
            if step.number % config.checkpoint_every == 0 and step.number < plan.num_steps:
                seconds = earlier_s + time.monotonic() - started
                with checkpoints.saving(
                    step.number,
                    float(np.mean(losses)),
                    keep=config.keep_checkpoints,
                    worker=worker,
                ) as folder:
                    engine.save_checkpoint(folder)
                    _save_progress(folder, curve, batch_losses, seconds)
                losses = []
            after_step(step.number)
    return TrainingSummary(
        num_steps=plan.num_steps,
        num_pairs_seen=plan.num_steps * plan.batch_size,
        seconds=earlier_s + time.monotonic() - started,
        curve=curve,
    )


def step_loss(
    engine: Engine,
    step: Step,
    data: TrainingData,
    worker: Worker,
    *,
    normalize_weights: bool,
) -> float:
    """Forward and backward of the worker's micro-batches; the step's loss on this worker."""
    normalizer = float(len(step.rows))
    if normalize_weights:
        normalizer = float(data.weights[step.rows].sum())
    step_total = 0.0
    micro_batches = step.micro_batches(worker.rank)
    for number, batch in enumerate(micro_batches, start=1):
        inputs = pad_texts(data.tokens, batch.texts, engine.model.renderer.pad_id, worker.device)
        loss = weighted_bradley_terry_loss(
            engine.rewards(inputs),
            torch.from_numpy(batch.pairs).to(worker.device),
            torch.from_numpy(data.weights[batch.rows]).to(worker.device),
            normalizer=normalizer,
        )
        engine.backward(loss, last=number == len(micro_batches))
        step_total += loss.item()
    return step_total


def _update(engine: Engine, loss: float) -> StepStats:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss}")
    return engine.step()


def _resume(
    engine: Engine, checkpoints: CheckpointStore, worker: Worker
) -> tuple[TrainingCurve, list[float], float]:
    """The curve, the losses since its last point and the seconds spent, as of the checkpoint."""
    checkpoint = checkpoints.newest(worker)
    if checkpoint is None:
        return TrainingCurve(), [], 0.0
    engine.load_checkpoint(checkpoint)
    document = json.loads((checkpoint / "worker-0" / "progress.json").read_text())
    log.info("resumed at step %d from %s", engine.steps_done, checkpoint)
    return TrainingCurve(**document["curve"]), document["batch_losses"], document["seconds"]


def _save_progress(
    folder: Path, curve: TrainingCurve, batch_losses: Sequence[float], seconds: float
) -> None:
    document = {"curve": asdict(curve), "batch_losses": list(batch_losses), "seconds": seconds}
    (folder / "progress.json").write_text(json.dumps(document))


def _log_point(
    curve: TrainingCurve,
    tracker: Tracker,
    step: int,
    losses: Sequence[float],
    lr: float,
    grad_norm: float,
) -> None:
    """One point of the curve: the mean loss of the steps since the last one."""
    loss = float(np.mean(losses))
    curve.step.append(step)
    curve.loss.append(loss)
    curve.lr.append(lr)
    curve.grad_norm.append(grad_norm)
    tracker.log({"train/loss": loss, "train/lr": lr, "train/grad_norm": grad_norm}, step=step)


def _progress(plan: Plan, steps_done: int) -> "tqdm[int]":
    return tqdm(
        total=plan.num_steps * plan.batch_size,
        initial=steps_done * plan.batch_size,
        desc="train",
        unit="pair",
        disable=None,
        leave=False,
    )


def _log_line(bar: "tqdm[int]", step: Step, plan: Plan, curve: TrainingCurve) -> None:
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
