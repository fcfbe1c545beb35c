"""The reward model: a network with one score per text, and the renderer that belongs to it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
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


@dataclass(frozen=True)
class RewardModel:
    """A network with one score per text, and the renderer that belongs to it.

    It alone knows where a reward is read and in which precision: scoring, training, evaluation
    and exports call `rewards`. `batch_tokens`: padded tokens per forward pass without gradient.
    """

    network: nn.Module
    renderer: Renderer
    device: str
    batch_tokens: int

    @cached_property
    def scored(self) -> ScoredNetwork:
        """The forward pass as a module, which an engine may wrap: its output are the rewards."""
        return ScoredNetwork(self.network)

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are kept in."""
        return next(self.network.parameters()).dtype

    def batch(self, tokens: Tokens, text_ids: NDArray[np.int64]) -> dict[str, Tensor]:
        """The texts' (R, T) tokens on the device, padded where padding is masked out."""
        return pad_texts(tokens, text_ids, filler_id(self.scored.plain), self.device)

    def rewards(self, batch: dict[str, Tensor]) -> Tensor:
        """(R,) float32 rewards: of each text the one that the saved model gives to it alone.

        Raises: InputError if the model reads at an end token that a text has not.
        """
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
            self.scored(**batch)
        finally:
            hook.remove()
        return read[0].float().reshape(len(batch["input_ids"]), -1)

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


def turn_off_dropout(network: nn.Module) -> None:
    """Sets every dropout rate of the network to 0, in layers and in attention functions."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
