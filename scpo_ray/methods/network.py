"""The network, trained by the plan: the way to fit that most methods share."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from scpo_ray.evaluation.layers import pair_ids, plain_accuracies
from scpo_ray.methods.task import FitContext, Fitted, PreparedRun
from scpo_ray.models.export import save_reward_model
from scpo_ray.models.scoring import score_tokens
from scpo_ray.storage.disk import whole_folder
from scpo_ray.training.checkpoints import open_checkpoints
from scpo_ray.training.engine import start_engine
from scpo_ray.training.loop import TrainingData, train
from scpo_ray.training.loss import Losses, bradley_terry_losses
from scpo_ray.training.pair_weights import FixedWeights, PairWeights
from scpo_ray.workers import together

Rewards = Callable[[NDArray[np.int64]], NDArray[np.float32]]


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
        with together(worker):
            model = task.base.trainable(config.seed)
        engine = start_engine(model, config.train, worker)
        weights = pair_weights(prepared)

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
            ),
            config.train,
            context.tracker,
            open_checkpoints(context.run_dir),
            worker,
            seed=config.seed,
            normalize_weights=config.selection.normalize_weights,
            after_step=partial(_look, prepared, context, rewards),
        )
        whole_weights = engine.whole_weights()
        with together(worker):
            if worker.rank == 0:
                with whole_folder(context.run_dir.model_dir) as folder:
                    save_reward_model(model, folder, weights=whole_weights)
        return Fitted(rewards, summary, tell(weights))

    return fit


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
