"""The reward model: a network with one score per text, and the renderer that belongs to it."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from scpo_ray.models.rendering import Renderer
from scpo_ray.records import InputError


@dataclass(frozen=True)
class RewardModel:
    """A network with one score per text, and the renderer that belongs to it.

    `batch_tokens`: padded tokens per forward pass without gradient.
    """

    network: nn.Module
    renderer: Renderer
    device: str
    batch_tokens: int


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
