"""The score head: which weights it is, whether the files have it, and where it is drawn."""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from scpo_ray.models.reading import score_head
from scpo_ray.records import InputError
from scpo_ray.settings.model import ModelConfig

# OpenRLHF's name for the head, if told nothing else.
_VALUE_HEAD = "value_head"
_NEW_HEAD_HINT = "set model.new_head to true to train a new head on it (method finetune)"


@dataclass(frozen=True)
class Head:
    """What a network of transformers has above its backbone.

    `backbone`: the backbone's name, `parts`: the names beside it, `layers`: those within it,
    `final`: the layer that gives the score.
    """

    backbone: str
    parts: tuple[str, ...]
    layers: tuple[str, ...]
    final: str

    def is_body(self, name: str) -> bool:
        """Whether a weight is the backbone's, its name with the backbone's before it or not."""
        first, _, _ = name.removeprefix(f"{self.backbone}.").partition(".")
        return first in self.layers


def head_of(network: Any) -> Head:
    """The network's head. Raises: InputError if it ends in no single linear layer."""
    final, _ = score_head(network)
    backbone = next((n for n, m in network.named_children() if m is network.base_model), "")
    parts = tuple(name for name, _ in network.named_children() if name != backbone)
    body: nn.Module = network.base_model
    layers = {
        name.partition(".")[0] for name, _ in [*body.named_children(), *body.named_parameters()]
    }
    return Head(backbone, parts, tuple(sorted(layers)), final)


def has_head(shapes: Mapping[str, tuple[int, ...]], final: str) -> bool:
    """Whether files with such weights hold a score head, under either of its names."""
    return f"{final}.weight" in shapes or f"{_VALUE_HEAD}.weight" in shapes


def check_head(
    head: Head,
    shapes: Mapping[str, tuple[int, ...]],
    architecture: str,
    config: ModelConfig,
    *,
    head_follows: bool,
) -> None:
    """Whether files with weights of these shapes have the head that the settings ask for.

    Args:
        head_follows: the head is in the adapters that are loaded next.

    Raises: InputError if they have no head and none is asked for, or the other way round.
    """
    named = [shapes.get(f"{name}.weight") for name in (head.final, _VALUE_HEAD)]
    rows = next((shape[0] for shape in named if shape is not None), None)
    if config.new_head and rows == 1:
        raise InputError(
            f"model.new_head = true: {config.path} has a score head already",
            ["leave model.new_head out to start from it"],
        )
    if config.new_head or head_follows or rows == 1:
        return
    if rows is None:
        raise InputError(
            f"model.path = {config.path}: {architecture} has no score head, so it is not a "
            "reward model",
            [_NEW_HEAD_HINT],
        )
    raise InputError(f"model.path = {config.path}: a reward model has 1 score, this one has {rows}")


def renamed_head(head: Head, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """How names in the files are changed (pattern -> name) so that the head is found."""
    if f"{head.final}.weight" in shapes or f"{_VALUE_HEAD}.weight" not in shapes:
        return {}
    return {rf"^{_VALUE_HEAD}\.": f"{head.final}."}


@torch.no_grad()
def draw_head(network: Any, head: Head) -> list[str]:
    """Draws anew all that stands above the backbone, as transformers draws it; its names."""
    drawn = []
    for part in head.parts:
        module = network.get_submodule(part)
        for name, parameter in module.named_parameters():
            # The library leaves alone what carries this mark of having been read.
            parameter._is_hf_initialized = False
            drawn.append(f"{part}.{name}")
        module.apply(network._init_weights)
    return drawn


def check_all_read(
    head: Head, info: Mapping[str, Any], config: ModelConfig, *, brought: Set[str]
) -> None:
    """Whether every weight of the network was read, and every weight of the files is in it.

    What the settings ask for is no fault: a new head, the layers above `num_layers`. Poolers and
    language models' heads are not what a reward is read from.

    Args:
        info: what transformers tells of the loading.
        brought: weights that come with the adapters that are loaded next.

    Raises: InputError if a weight is in the files alone, in the network alone, or of two shapes.
    """
    replaces = config.new_head or f"{head.final}.weight" in brought
    shapes = [
        f"{name}: {tuple(there)} in the files, {tuple(here)} in the model of config.json"
        for name, there, here in sorted(info["mismatched_keys"])
        if head.is_body(name) or not replaces
    ]
    if shapes:
        more = f" (+{len(shapes) - 1} more)" if shapes[1:] else ""
        raise InputError(
            f"model.path = {config.path}: the weights cannot be loaded", [shapes[0] + more]
        )
    missing = sorted(set(info["missing_keys"]) - brought)
    if config.new_head:
        missing = [name for name in missing if head.is_body(name) and ".pooler." not in name]
    if missing:
        what = "more than the score head is" if config.new_head else "weights are"
        raise InputError(
            f"model.path = {config.path}: {what} missing from the files", [_some(missing)]
        )
    left = [
        name
        for name in sorted(info["unexpected_keys"])
        if not _is_dropped_layer(name, config)
        and not re.search(r"(^|\.)(pooler|lm_head|embed_out)\.", name)
        and (head.is_body(name) or not replaces)
    ]
    if left:
        raise InputError(
            f"model.path = {config.path}: the files hold weights that the model of config.json "
            "has not",
            [_some(left), "is config.json this model's? model.num_layers keeps the bottom layers"],
        )


def _is_dropped_layer(name: str, config: ModelConfig) -> bool:
    number = re.search(r"\.(\d+)\.", f".{name}")
    return (
        config.num_layers is not None
        and number is not None
        and (int(number[1]) >= config.num_layers)
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" (+{len(names) - 5} more)" if names[5:] else "")
