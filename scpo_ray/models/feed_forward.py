"""The last layer's feed-forward network, computed for those tokens alone at which rewards are read.

What the last layer makes of the other tokens is read by nobody: attention lies before it, and all
that follows goes token by token. Two thirds of that layer's operations are saved in both passes.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import takewhile
from typing import Any

from torch import Tensor, nn


@contextmanager
def computed_at(backbone: nn.Module, read: Tensor | None, unread: float) -> Iterator[None]:
    """Within, the backbone's last feed-forward network computes the tokens at `read`.

    Only for a network that `packing` found fit.

    Args:
        read: int64, places in the (R, T) batch of the backbone's states when it is flattened; None
            for all tokens.
        unread: what the feed-forward network gives for all other tokens.

    Raises: ValueError if the backbone has no such network.
    """
    if read is None:
        yield
        return
    first, last = _last_feed_forward(backbone)
    # A network may be asked for rewards by several threads: each has hooks of its own.
    caller, shape = threading.get_ident(), list[int]()

    def pick(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if threading.get_ident() != caller:
            return None
        shape[:] = args[0].shape[:-1]
        return (args[0].flatten(0, -2).index_select(0, read)[None], *args[1:])

    def put_back(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if threading.get_ident() != caller:
            return None
        whole = output.new_full((math.prod(shape), output.shape[-1]), unread)
        return whole.index_copy(0, read, output[0]).view(*shape, -1)

    with ExitStack() as hooks:
        for layer in first:
            hooks.callback(layer.register_forward_pre_hook(pick).remove)
        hooks.callback(last.register_forward_hook(put_back).remove)
        yield


def _last_feed_forward(backbone: nn.Module) -> tuple[list[nn.Module], nn.Module]:
    """The layers that widen a token's state, and the one right behind that makes it narrow again.

    Raises: ValueError if the backbone's last layer has none.
    """
    stacks = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m)]
    layers = list(_linear_layers(stacks[-1][-1])) if stacks else []
    for place, last in reversed(list(enumerate(layers))):
        first = list(takewhile(partial(_widens_for, last), reversed(layers[:place])))
        if first and last.in_features > last.out_features:
            return first, last
    raise ValueError(f"{type(backbone).__name__}: no feed-forward network in its last layer")


def _widens_for(last: Any, layer: Any) -> bool:
    """Gated networks have two such layers, or one of twice the width."""
    widths = (last.in_features, 2 * last.in_features)
    return layer.in_features == last.out_features and layer.out_features in widths


def _linear_layers(module: nn.Module) -> Iterator[Any]:
    """In the order in which they were made; an adapted one with its adapters."""
    if hasattr(module, "in_features"):
        yield module
        return
    for child in module.children():
        yield from _linear_layers(child)
