"""The reward model: a network with one score per text, and the renderer that belongs to it."""

import copy
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scpo_ray.models.reading import (
    ScoredNetwork,
    check_tokens,
    filler_id,
    pad_texts,
    score_head,
)
from scpo_ray.models.rendering import Renderer
from scpo_ray.records import InputError, Tokens
from scpo_ray.settings.train import Precision


@dataclass(frozen=True)
class RewardModel:
    """A network with one score per text, and the renderer that belongs to it.

    It alone knows where a reward is read and in which precision: scoring, training, evaluation
    and exports call `rewards`. `batch_tokens`: tokens per forward pass without gradient, padded
    ones counted. `in_rows`: texts are computed in one row without padding. `only_read`: the last
    feed-forward network computes only what rewards are read from. `precision`: bf16 computes the
    backbone under autocast, what stands above it in float32.
    """

    network: nn.Module
    renderer: Renderer
    device: str
    batch_tokens: int
    in_rows: bool = False
    only_read: bool = False
    precision: Precision = "fp32"

    @cached_property
    def scored(self) -> ScoredNetwork:
        """The forward pass as a module, which an engine may wrap: its output are the rewards."""
        return ScoredNetwork(self.network, only_read=self.only_read)

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are kept in."""
        return next(self.network.parameters()).dtype

    @property
    def dtype_name(self) -> str:
        """The same as `model.dtype` names it."""
        if getattr(self.scored.plain, "hf_quantizer", None) is not None:
            return "nf4"
        return str(self.dtype).removeprefix("torch.")

    def batch(
        self, tokens: Tokens, text_ids: NDArray[np.int64], *, by_length: bool = False
    ) -> dict[str, Tensor]:
        """The texts' (R, T) tokens on the device, padded where padding is masked out.

        Args:
            by_length: a network that pads may compute them in several passes, of near-equal lengths
                each, on a CPU, where a pass costs little by itself.
        """
        filler, by_length = filler_id(self.scored.plain), by_length and self.device == "cpu"
        how = {"in_row": self.in_rows, "by_length": by_length}
        return pad_texts(tokens, text_ids, filler, self.device, **how)

    def rewards(self, batch: dict[str, Tensor]) -> Tensor:
        """(R,) float32 rewards: of each text the one that the saved model gives to it alone.

        Raises: InputError if the model reads at an end token that a text has not.
        """
        with self._rounding():
            rewards: Tensor = self.scored(**batch)
        return rewards

    def features(self, batch: dict[str, Tensor]) -> Tensor:
        """(R, D) float32: what the score head reads. Raises: as `reading.score_head`."""
        read: list[Tensor] = []
        _, head = score_head(self.network)

        def keep(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            read.append(inputs[0])

        hook = head.register_forward_pre_hook(keep)
        try:
            with self._rounding():
                self.scored(**batch)
        finally:
            hook.remove()
        return read[0].float().reshape(len(batch["input_ids"]), -1)

    def _rounding(self) -> torch.autocast:
        kind = self.device.partition(":")[0]
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def check_tokens(self, tokens: Tokens) -> None:
        """Raises: InputError if a token or a token type is none of the network's."""
        check_tokens(self.scored.plain, tokens)


def resolve_device(device: Literal["auto", "cpu", "cuda"]) -> str:
    """The torch device a setting names. Raises: InputError if "cuda" is asked for in vain."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device = cuda: this machine has no CUDA device")
    return device


def all_devices() -> list[str]:
    """Every CUDA device of this machine, or else its CPU."""
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]


def free_bytes(device: str) -> int:
    """Memory that is free on the device now; a container's limit counts on a CPU."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no container, or one without a limit
        return free
    return min(free, limit - used)


def turn_off_dropout(network: nn.Module) -> None:
    """Sets every rate of chance in the network's layers to 0: dropout of any kind, router jitter.

    The network's own config, which is saved with it, keeps its rates.
    """
    still: dict[int, Any] = {}
    outermost = (network, ScoredNetwork(network).plain)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in [name for name in vars(module) if _is_rate(name, getattr(module, name))]:
            setattr(module, name, 0.0)
        config = getattr(module, "config", None)
        # Some layers look their rates up in the config each time.
        if config is not None and module not in outermost and not hasattr(module, "peft_config"):
            if id(config) not in still:
                still[id(config)] = _without_rates(config)
            object.__setattr__(module, "config", still[id(config)])


def _without_rates(config: Any) -> Any:
    still = copy.copy(config)
    for name in [name for name in vars(still) if _is_rate(name, getattr(still, name))]:
        setattr(still, name, 0.0)
    return still


def _is_rate(name: str, value: object) -> bool:
    return isinstance(value, float) and re.search("drop|jitter", name) is not None
