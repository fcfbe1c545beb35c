"""The network, trained by the plan: the way to fit that most methods share."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scpo_ray.evaluation.layers import pair_ids, plain_accuracies
from scpo_ray.methods.mixture import learned_shares
from scpo_ray.methods.task import FitContext, Fitted, PreparedRun, Task
from scpo_ray.models.export import save_reward_model, write_weights
from scpo_ray.models.files import weight_shapes
from scpo_ray.models.loading import check_computes
from scpo_ray.models.reward_model import free_bytes
from scpo_ray.models.scoring import score_tokens
from scpo_ray.models.shapes import network_shape
from scpo_ray.records import InputError, Worker
from scpo_ray.storage.disk import disk_errors, whole_folder
from scpo_ray.training.checkpoints import open_checkpoints
from scpo_ray.training.deepspeed_engine import divided_reading
from scpo_ray.training.engine import Engine, start_engine
from scpo_ray.training.loop import TrainingData, train
from scpo_ray.training.loss import Losses, bradley_terry_losses
from scpo_ray.training.memory import check_room, estimate_memory
from scpo_ray.training.pair_weights import FixedWeights, PairWeights
from scpo_ray.workers import together

Rewards = Callable[[NDArray[np.int64]], NDArray[np.float32]]

# Bytes that any engine keeps of a weight between passes, with room to spare.
_MOST_PER_WEIGHT = 32


def fixed_weights(prepared: PreparedRun) -> PairWeights:
    """What selection and culture weights say, from the first step to the last."""
    return FixedWeights(prepared.weights)


def no_news(weights: PairWeights) -> tuple[str, ...]:
    return ()


def train_network(
    losses: Losses = bradley_terry_losses,
    *,
    pair_weights: Callable[[PreparedRun], PairWeights] = fixed_weights,
    tell: Callable[[PairWeights], tuple[str, ...]] = no_news,
) -> Callable[[PreparedRun, FitContext], Fitted]:
    """A method's `fit` that trains all weights (or adapters) by the plan and saves the model.

    Args:
        losses: of pairs, by their margin.
        pair_weights: what pairs count, step by step.
        tell: sentences for the report, from the pair weights as they are at the end.
    """

    def fit(prepared: PreparedRun, context: FitContext) -> Fitted:
        task, plan = prepared.task, prepared.plan
        if plan is None:
            raise ValueError("a network is trained by a plan, and there is none")
        config, data, worker = task.config, task.data, task.worker
        engine = _started(task)
        weights = pair_weights(prepared)
        shares = learned_shares(config, prepared.kept_pairs)

        def rewards(texts: NDArray[np.int64]) -> NDArray[np.float32]:
            return score_tokens(engine.model, task.tokens, text_ids=texts, worker=worker)

        summary = train(
            engine,
            plan,
            TrainingData(
                task.tokens,
                weights,
                lambda rows: pair_ids(prepared.kept_pairs.take(rows), data.interaction_ids),
                losses,
                None if shares is None else shares.astype(np.float32),
            ),
            config.train,
            context.tracker,
            open_checkpoints(context.run_dir),
            worker,
            seed=config.seed,
            normalize_weights=config.selection.normalize_weights,
            after_step=partial(_look, prepared, context, rewards),
        )
        _save(engine, context.run_dir.model_dir, worker)
        return Fitted(rewards, summary, tell(weights))

    return fit


def _started(task: Task) -> Engine:
    """The engine of a run, around the network that it starts from."""
    base, config, worker = task.base, task.config, task.worker
    with together(worker):
        _check_room(task)
    if config.train.zero_stage < 3:
        with together(worker):
            model = base.trainable(config.seed)
        return start_engine(model, config.train, worker)
    # What is wrong with the files is wrong on every worker: all meet it before they divide them.
    model = base.trainable(config.seed, divided_reading(config.train, worker))
    engine = start_engine(model, config.train, worker)
    check_computes(engine.model, base.config)
    return engine


def _check_room(task: Task) -> None:
    """Raises: InputError with the numbers if the network, its gradients and the optimizer are
    more than this worker has room for."""
    base, train, device = task.base, task.config.train, task.worker.device
    free = free_bytes(device)
    at_most = sum(math.prod(shape) for shape in weight_shapes(base.model_dir).values())
    # To look closely takes a second, and most models are far from the limit.
    if at_most * _MOST_PER_WEIGHT < free:
        return
    shape = network_shape(
        base.model_dir,
        base.config,
        texts=0,
        width=0,
        autocast=False,
        cache=base.stores.converted,
    )
    workers = task.worker.world_size
    check_room(estimate_memory(shape, train, num_workers=workers, device=device), free, device)


def _save(engine: Engine, path: Path, worker: Worker) -> None:
    """Writes the model on the first worker; of divided weights each hands in its parts."""
    weights, model = engine.divided_weights(), engine.model
    with ExitStack() as stack:
        with together(worker):
            folder = stack.enter_context(whole_folder(path)) if worker.rank == 0 else None
        fault: InputError | None = None
        held: dict[str, Tensor] | None = None
        if weights is not None:
            held = {}
            try:
                if folder is not None and hasattr(model.network, "peft_config"):
                    held = dict(weights)
                elif folder is not None:
                    with disk_errors(path):
                        write_weights(model.network, folder, weights)
            except InputError as error:
                fault = error
            # To the end, whatever became of it: the others wait for every part.
            for _ in weights:
                pass
        with together(worker):
            if fault is not None:
                raise fault
            if folder is not None:
                save_reward_model(model, folder, weights=held)
                stack.close()


def _look(prepared: PreparedRun, context: FitContext, rewards: Rewards, step: int) -> None:
    """Tells who wants to know midway how the pairs that choices are made on are ranked."""
    if context.midway is None or step not in context.midway.steps:
        return
    task, pairs = prepared.task, prepared.task.data.choice_pairs
    found = np.full(len(task.data.texts), np.nan, dtype=np.float32)
    texts = np.unique(np.concatenate([pairs.chosen, pairs.rejected]))
    found[texts] = rewards(texts)
    threshold = task.config.evaluation.distinctive_threshold
    accuracies = plain_accuracies(pairs, found, task.ref_rewards, distinctive_threshold=threshold)
    context.midway.tell(step, accuracies)
