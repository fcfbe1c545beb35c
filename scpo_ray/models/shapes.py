"""What a network weighs, and what a training pass of it keeps, before any weight is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scpo_ray.models.heads import head_of
from scpo_ray.models.loading import network_without_weights
from scpo_ray.models.precision import num_in_4_bits, stored_bytes
from scpo_ray.settings.model import ModelConfig


@dataclass(frozen=True)
class NetworkShape:
    """Numbers of a network's weights, as it is trained.

    Attributes:
        frozen, trained: how many weights stay as they are, and how many are trained.
        frozen_bytes: of all that stay as they are.
        weight_bytes: of each that is computed with and is not an adapter's or the head's.
        largest: weights in the largest tensor.
        kept_bytes: what one training pass keeps for its backward pass; None where only real texts
            would tell.
        between_bytes: of that, what passes from one layer to the next, for all layers.
        num_layers: repeated blocks.
    """

    frozen: int
    trained: int
    frozen_bytes: int
    weight_bytes: int
    largest: int
    kept_bytes: int | None
    between_bytes: int
    num_layers: int


def network_shape(
    folder: Path,
    config: ModelConfig,
    *,
    texts: int,
    width: int,
    autocast: bool,
    cache: Path | None = None,
) -> NetworkShape:
    """The shape of a network, and of a pass over `texts` texts padded to `width` tokens.

    Nothing is computed and nothing held: tensors have sizes and no values.

    Args:
        config: its `dtype` is decided.
        autocast: whether the pass is in bf16 over float32 weights.
        cache: as in `resolve_model_dir`, for the model that saved adapters belong to.

    Raises: InputError if config.json or the attention cannot be used.
    """
    from torch._subclasses import FakeTensorMode

    network = network_without_weights(folder, config, cache)
    with FakeTensorMode():
        _as_on_a_cpu(network)
        kept = _kept_bytes(network, texts, width, autocast=autocast) if texts else 0
    settings = network.config.get_text_config()
    weight_bytes = next(network.parameters()).element_size()
    sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    frozen = sum(n for n, trained in sizes if not trained)
    plain = network.unload() if hasattr(network, "unload") else network
    num_quantizable = num_in_4_bits(plain, head_of(plain)) if frozen else 0
    return NetworkShape(
        frozen=frozen,
        trained=sum(n for n, trained in sizes if trained),
        frozen_bytes=stored_bytes(frozen, num_quantizable, config),
        weight_bytes=weight_bytes,
        largest=max(n for n, _ in sizes),
        kept_bytes=kept,
        between_bytes=texts
        * width
        * settings.hidden_size
        * weight_bytes
        * settings.num_hidden_layers,
        num_layers=settings.num_hidden_layers,
    )


def _as_on_a_cpu(network: nn.Module) -> None:
    """Parameters and buffers with values to be imagined: what asks for them learns it in time."""
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            imagined = torch.empty(weight.shape, dtype=weight.dtype)
            setattr(module, name, nn.Parameter(imagined, weight.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _kept_bytes(network: Any, texts: int, width: int, *, autocast: bool) -> int | None:
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            kept[storage] = tensor
        return tensor

    body: nn.Module = getattr(network, "get_base_model", lambda: network)().base_model
    inputs = {
        name: torch.empty((texts, width), dtype=torch.long)
        for name in ("input_ids", "attention_mask")
    }
    network.train()
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    try:
        with hooks, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            body(**inputs)
    except Exception:  # a family whose pass looks at values (T5, ModernBERT) has none to look at
        return None
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
