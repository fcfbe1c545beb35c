"""Training with DeepSpeed: what ZeRO divides among the workers, it divides; the rest is ours."""

import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scpo_ray.models.reward_model import RewardModel
from scpo_ray.records import Worker
from scpo_ray.settings.train import TrainConfig
from scpo_ray.training.deepspeed_settings import deepspeed_settings
from scpo_ray.training.engine_state import MOMENTS, WEIGHT, Piece, State, write_state
from scpo_ray.training.optimization import (
    StepStats,
    adam_state,
    learning_rate,
    load_whole,
    prepare_network,
    whole_pieces,
)
from scpo_ray.workers import join_group

log = logging.getLogger(__name__)

_GATHERED_IN = "comm_dtype"
"""What DeepSpeed calls, on a weight, the dtype that it is gathered in."""


@dataclass(frozen=True)
class _Part:
    """Where DeepSpeed keeps this worker's part of a weight: `flat[offset : offset + length]`
    holds the weight's values from `start` on."""

    name: str
    start: int
    length: int
    flat: Tensor
    offset: int

    def of(self, flat: Tensor) -> Tensor:
        return flat[self.offset : self.offset + self.length]


class DeepSpeedEngine:
    """DeepSpeed at any ZeRO stage, in float32 or with bf16 autocast as in `TorchEngine`."""

    def __init__(self, model: RewardModel, config: TrainConfig, worker: Worker) -> None:
        """Raises: InputError if the user's DeepSpeed JSON cannot be used."""
        self.model = model = replace(model, precision=config.precision)
        self.config = config
        self.worker = worker
        self.steps_done = 0
        self.in_lockstep = config.zero_stage == 3
        self.parameters = prepare_network(model, config)
        settings = deepspeed_settings(config)
        join_group(worker)
        deepspeed = _import_deepspeed(model.device)
        self._engine, *_ = deepspeed.initialize(
            model=model.scored,
            model_parameters=list(self.parameters.values()),
            config=settings,
            dist_init_required=False,
        )
        self._deepspeed = deepspeed
        chosen = settings["torch_autocast"]["lower_precision_safe_modules"]
        if config.zero_stage == 3 and config.precision == "bf16" and not chosen:
            self._gather_rounded()

    def _gather_rounded(self) -> None:
        """Has linear layers' weights gathered in bf16, as autocast computes with them: no number
        changes. What computes in float32 is gathered so, and gradients are summed in float32."""
        for module in self.model.network.modules():
            if type(module) is nn.Linear and module.weight.dtype == torch.float32:
                setattr(module.weight, _GATHERED_IN, torch.bfloat16)
        # DeepSpeed's own way would sum the gradients of these weights in bf16, too.
        self._engine.optimizer.get_param_comm_dtype = lambda weight: weight.dtype

    def rewards(self, inputs: dict[str, Tensor]) -> Tensor:
        rewards: Tensor = self._engine(**inputs)
        return rewards

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over the workers; the loss's parts are to be summed.
        self._engine.backward(loss * self.worker.world_size)
        if not last:
            self._engine.step()

    def step(self) -> StepStats:
        lr = learning_rate(self.steps_done + 1, self.config)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        # Without ZeRO the gradients lie whole on the weights, and DeepSpeed keeps no norm of them.
        grad_norm = None if self.config.zero_stage else self._whole_norm()
        self._engine.step()
        if grad_norm is None:
            grad_norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(grad_norm) or grad_norm < 0:
            raise FloatingPointError(f"the gradient's norm is {grad_norm}")
        self.steps_done += 1
        return StepStats(grad_norm, lr)

    def _whole_norm(self) -> float:
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def save_checkpoint(self, folder: Path) -> None:
        pieces = self._pieces() if self.config.zero_stage else self._whole_pieces()
        write_state(folder, pieces, steps_done=self.steps_done)

    @torch.no_grad()
    def load_checkpoint(self, checkpoint: Path) -> None:
        state = State(checkpoint)
        if self.config.zero_stage:
            self._load_parts(state)
        else:
            load_whole(self.parameters, self._engine.optimizer, state)
        self.steps_done = state.steps_done

    def divided_weights(self) -> Iterator[tuple[str, Tensor]] | None:
        return self._gathered() if self.config.zero_stage == 3 else None

    def _gathered(self) -> Iterator[tuple[str, Tensor]]:
        network = self.model.network
        # Adapters are saved without their base; one weight under two names is saved once, since
        # a copy would be another weight.
        weights = dict(network.named_parameters())
        if hasattr(network, "peft_config"):
            weights = self.parameters
        # Weights may still lie gathered, and rounded, from the last pass.
        self._engine.empty_partition_cache()
        for name, parameter in weights.items():
            rounded = vars(parameter).pop(_GATHERED_IN, None)
            with self._deepspeed.zero.GatheredParameters([parameter]):
                whole = parameter.detach().cpu().clone()
            if rounded is not None:
                setattr(parameter, _GATHERED_IN, rounded)
            yield name, whole
        for name, buffer in network.named_buffers():
            if name in network.state_dict():
                yield name, buffer.detach().cpu().clone()

    def _whole_pieces(self) -> Iterator[Piece]:
        return whole_pieces(self.parameters, self._engine.optimizer, self.worker)

    def _parts(self) -> Iterator[_Part]:
        optimizer = self._engine.optimizer
        for name, parameter in self.parameters.items():
            if self.config.zero_stage == 3:
                group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
                start = length * self.worker.rank
                # The last worker's part is padded.
                length = min(length, parameter.ds_numel - start)  # type: ignore[attr-defined]
                flat = optimizer.fp32_partitioned_groups_flat[group]
            elif parameter._hp_mapping is not None:  # type: ignore[attr-defined]
                mapping = parameter._hp_mapping  # type: ignore[attr-defined]
                start = mapping.lp_fragment_address.start
                length = mapping.lp_fragment_address.numel
                offset = mapping.hp_fragment_address.start
                flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            else:
                continue  # wholly another worker's
            if length > 0:
                yield _Part(name, start, length, flat, offset)

    def _pieces(self) -> Iterator[Piece]:
        states = self._engine.basic_optimizer.state
        for part in self._parts():
            moments = states.get(part.flat, {})
            values = {kind: part.of(moments[kind]) for kind in MOMENTS if kind in moments}
            yield Piece(part.name, part.start, {WEIGHT: part.of(part.flat), **values})

    def _load_parts(self, state: State) -> None:
        optimizer = self._engine.basic_optimizer
        for part in self._parts():
            stop = part.start + part.length
            part.of(part.flat).copy_(state.read(part.name, WEIGHT, part.start, stop))
            if not state.has_moments(part.name):
                continue
            if part.flat not in optimizer.state:
                moments = {kind: torch.zeros_like(part.flat) for kind in MOMENTS}
                optimizer.state[part.flat] = adam_state(moments, state.steps_done, device="cpu")
            for kind in MOMENTS:
                moment = part.of(optimizer.state[part.flat][kind])
                moment.copy_(state.read(part.name, kind, part.start, stop))
        # What computes is a copy of what is optimised.
        for name, parameter in self.parameters.items():
            if self.config.zero_stage == 3:
                held: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
                start = held.numel() * self.worker.rank
                held.copy_(state.read(name, WEIGHT, start, start + held.numel()).view_as(held))
            else:
                whole = state.read(name, WEIGHT, 0, parameter.numel())
                parameter.copy_(whole.view_as(parameter))


def divided_reading(config: TrainConfig, worker: Worker) -> dict[str, Any]:
    """DeepSpeed's settings, made ready to divide a network's weights as they are read.

    Raises: InputError if the user's DeepSpeed JSON cannot be used.
    """
    settings = deepspeed_settings(config)
    join_group(worker)
    _import_deepspeed(worker.device)
    return settings


def _import_deepspeed(device: str) -> Any:
    """DeepSpeed, for the device, with nothing to compile when it starts."""
    kind = device.partition(":")[0]
    if "deepspeed" not in sys.modules:
        os.environ["DS_ACCELERATOR"] = kind
    # Every launcher of several workers sets it; one process alone has none.
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed
    from deepspeed.accelerator import get_accelerator, set_accelerator

    if kind == "cpu" and get_accelerator()._name != "cpu":
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        set_accelerator(CPU_Accelerator())
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)
    if kind == "cpu":
        # Shared-memory communication would be compiled for half a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
