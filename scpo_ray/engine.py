"""The optimizer around the network: forward, backward, step, and its state on disk."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from scpo_ray.config import TrainConfig
from scpo_ray.models import RewardModel, turn_off_dropout
from scpo_ray.scoring import forward

_ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")


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


class TorchEngine:
    """Plain PyTorch on one device: AdamW over the weights that can be trained."""

    def __init__(self, model: RewardModel, config: TrainConfig) -> None:
        self.model = model
        self.config = config
        self.steps_done = 0
        if not config.dropout:
            turn_off_dropout(model.network)
        if config.gradient_checkpointing:
            model.network.activation_checkpointing_enable(  # type: ignore[operator]
                activation_checkpointing_kwargs={"use_reentrant": False}
            )
        model.network.train()
        self.parameters = {
            name: parameter
            for name, parameter in model.network.named_parameters()
            if parameter.requires_grad
        }
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def rewards(self, inputs: dict[str, Tensor]) -> Tensor:
        """(R,) rewards of padded texts, with gradient."""
        with torch.autocast(
            self.model.device, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"
        ):
            return forward(self.model.network, inputs)

    def backward(self, loss: Tensor) -> None:
        """Adds the loss's gradients to those of the step."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> StepStats:
        """One update from the gradients gathered.

        Raises: FloatingPointError, before anything is changed, if the gradient is not finite.
        """
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

    def save_checkpoint(self, folder: Path) -> None:
        """Writes the trained weights and the optimizer's state, both as safetensors."""
        weights = {name: p.detach().contiguous() for name, p in self.parameters.items()}
        save_file(weights, folder / "weights.safetensors")
        state = {
            f"{name}/{key}": self.optimizer.state[parameter][key]
            for name, parameter in self.parameters.items()
            for key in _ADAM_STATE
            if parameter in self.optimizer.state
        }
        save_file(state, folder / "optimizer.safetensors")
        (folder / "engine.json").write_text(json.dumps({"steps_done": self.steps_done}))

    def load_checkpoint(self, folder: Path) -> None:
        """Takes up the state that `save_checkpoint` wrote, to the bit."""
        weights = load_file(folder / "weights.safetensors")
        state = load_file(folder / "optimizer.safetensors")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
                if f"{name}/step" in state:
                    self.optimizer.state[parameter] = {
                        key: state[f"{name}/{key}"].to("cpu" if key == "step" else parameter.device)
                        for key in _ADAM_STATE
                    }
        self.steps_done = int(json.loads((folder / "engine.json").read_text())["steps_done"])
