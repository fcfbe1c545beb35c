"""What every engine does alike: the rate of a step, a network made ready, whole state on disk."""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scpo_ray.models.reward_model import RewardModel, turn_off_dropout
from scpo_ray.records import InputError, Worker
from scpo_ray.settings.train import TrainConfig
from scpo_ray.training.engine_state import MOMENTS, WEIGHT, Piece, State, divided

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepStats:
    """`grad_norm` before clipping; `lr` of the step just made."""

    grad_norm: float
    lr: float


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of optimizer step `step` (from 1): a rise over the warm-up, then a fall to zero.

    With linear decay and no warm-up step s runs at lr x (1 - (s - 1) / max_steps), so the first
    step runs at full rate (as PyTorch's and transformers' schedules do).
    """
    done = step - 1
    if done < config.warmup_steps:
        return config.learning_rate * (done + 1) / (config.warmup_steps + 1)
    share = (done - config.warmup_steps) / (config.max_steps - config.warmup_steps)
    fall = 1 - share if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share))
    return config.learning_rate * fall


def prepare_network(model: RewardModel, config: TrainConfig) -> dict[str, nn.Parameter]:
    """Puts the network in training mode as the settings say; its weights that can be trained.

    Raises: InputError if the device cannot compute in the precision asked for, or the network
    cannot compute its activations again.
    """
    if config.precision == "bf16" and model.device.startswith("cuda"):
        name = torch.cuda.get_device_name(model.device)
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise InputError(f"train.precision = bf16: {name} has no bf16; use fp32")
    capabilities = torch.cpu.get_capabilities()
    if config.precision == "bf16" and model.device == "cpu" and not capabilities.get("avx512_bf16"):
        log.warning("train.precision = bf16: this processor has no bf16 of its own; fp32 is faster")
    if not config.dropout:
        turn_off_dropout(model.network)
    if config.gradient_checkpointing:
        try:
            model.network.activation_checkpointing_enable(  # type: ignore[operator]
                activation_checkpointing_kwargs={"use_reentrant": False}
            )
        except ValueError as error:
            raise InputError("train.gradient_checkpointing = true", [str(error)]) from None
    model.network.train()
    return {n: p for n, p in model.network.named_parameters() if p.requires_grad}


def whole_pieces(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, worker: Worker
) -> Iterator[Piece]:
    """This worker's share of a state that every worker has whole."""
    for name, parameter in parameters.items():
        start, stop = divided(parameter.numel(), worker.rank, worker.world_size)
        if start == stop:
            continue
        tensors = {WEIGHT: parameter.detach()}
        state = optimizer.state.get(parameter, {})
        tensors |= {kind: state[kind] for kind in MOMENTS if kind in state}
        values = {kind: tensor.flatten()[start:stop] for kind, tensor in tensors.items()}
        yield Piece(name, start, values)


@torch.no_grad()
def load_whole(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, state: State
) -> None:
    """Gives every worker the whole state."""
    for name, parameter in parameters.items():
        numel = parameter.numel()
        parameter.copy_(state.read(name, WEIGHT, 0, numel).view_as(parameter))
        if state.has_moments(name):
            optimizer.state[parameter] = adam_state(
                {
                    kind: state.read(name, kind, 0, numel).view_as(parameter).to(parameter.device)
                    for kind in MOMENTS
                },
                state.steps_done,
                # The fused update counts its steps where the weights are.
                device=parameter.device if optimizer.defaults.get("fused") else "cpu",
            )


def adam_state(
    moments: dict[str, Tensor], steps_done: int, *, device: torch.device | str
) -> dict[str, Tensor]:
    """What PyTorch's AdamW keeps of one weight; `device` of its count of steps."""
    return {"step": torch.tensor(float(steps_done), device=device), **moments}
