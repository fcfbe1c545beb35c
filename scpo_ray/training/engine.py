"""The optimizer around the network: forward, backward, step, and its state on disk."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed
from torch import Tensor

from scpo_ray.models.reward_model import RewardModel
from scpo_ray.records import Worker
from scpo_ray.settings.train import TrainConfig
from scpo_ray.training.deepspeed_engine import DeepSpeedEngine
from scpo_ray.training.engine_state import State, write_state
from scpo_ray.training.optimization import (
    StepStats,
    learning_rate,
    load_whole,
    prepare_network,
    whole_pieces,
)


class Engine(Protocol):
    """Every worker makes the same calls; `model` is what its rewards come from.

    `in_lockstep`: all workers must call each layer equally often in a pass, since it gathers its
    weights then.
    """

    model: RewardModel
    steps_done: int
    in_lockstep: bool

    def rewards(self, inputs: dict[str, Tensor]) -> Tensor:
        """(R,) rewards of padded texts, with gradient."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds the gradients of this worker's part of the loss to those of the step.

        `last`: no more backward passes come before `step`.
        """

    def step(self) -> StepStats:
        """One update from the gradients of all workers, summed.

        Raises: FloatingPointError if the gradient is not finite.
        """

    def save_checkpoint(self, folder: Path) -> None:
        """Writes this worker's part of the weights' and the optimizer's state."""

    def load_checkpoint(self, checkpoint: Path) -> None:
        """Takes up the state in all workers' folders, of any engine and number of workers."""

    def divided_weights(self) -> Iterator[tuple[str, Tensor]] | None:
        """What a saved model holds, by name and one weight at a time, where `model.network` has
        but a part of each. Every worker walks through all of it; None where each has all."""


def start_engine(model: RewardModel, config: TrainConfig, worker: Worker) -> Engine:
    """The engine that `config.engine` names, around the model.

    Raises: InputError if it cannot run as asked.
    """
    if config.engine == "deepspeed":
        return DeepSpeedEngine(model, config, worker)
    return TorchEngine(model, config, worker)


class TorchEngine:
    """Plain PyTorch: AdamW over the weights that can be trained, the whole on every worker."""

    in_lockstep = False

    def __init__(self, model: RewardModel, config: TrainConfig, worker: Worker) -> None:
        self.model = replace(model, precision=config.precision)
        self.config = config
        self.worker = worker
        self.steps_done = 0
        self.parameters = prepare_network(model, config)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            # One pass over the weights instead of ten: the same update up to rounding.
            fused=True,
        )

    def rewards(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.model.rewards(inputs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> StepStats:
        """As the protocol says; nothing is changed by a gradient that is not finite."""
        self._sum_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        grad_norm = float(norm)
        if not math.isfinite(grad_norm):
            raise FloatingPointError(f"the gradient's norm is {grad_norm}")
        lr = learning_rate(self.steps_done + 1, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        return StepStats(grad_norm, lr)

    def _sum_gradients(self) -> None:
        if self.worker.world_size == 1:
            return
        # Not DistributedDataParallel: it averages, and stumbles over weights that a forward pass
        # leaves out. Workers run the same graph, so the same weights have no gradient.
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        sums = [torch.distributed.all_reduce(gradient, async_op=True) for gradient in gradients]
        for each in sums:
            each.wait()

    def save_checkpoint(self, folder: Path) -> None:
        pieces = whole_pieces(self.parameters, self.optimizer, self.worker)
        write_state(folder, pieces, steps_done=self.steps_done)

    def load_checkpoint(self, checkpoint: Path) -> None:
        state = State(checkpoint)
        load_whole(self.parameters, self.optimizer, state)
        self.steps_done = state.steps_done

    def divided_weights(self) -> Iterator[tuple[str, Tensor]] | None:
        return None
