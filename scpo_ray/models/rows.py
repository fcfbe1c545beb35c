"""Texts in one row without padding: the backbone computes real tokens alone, each text by itself.

Attention goes through transformers' own interface and calls, for each text of the row, the function
that the network would have called for that text alone, under the mask it would have had. All that
stands above the backbone sees a padded batch, as ever.
"""

import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_PREFIX = "text_by_text_"
_KINDS = ("sdpa", "eager")
_PER_TOKEN = {"input_ids", "token_type_ids"}


@dataclass(frozen=True)
class Row:
    """Where the N real tokens of a padded (R, T) batch stand.

    `lengths`: (R,) tokens of each text, known without asking the device; `places`: (N,) int64,
    those tokens' places in the flattened batch, text after text.
    """

    lengths: tuple[int, ...]
    places: Tensor

    def of(self, padded: Tensor) -> Tensor:
        """(1, N, ...) of (R, T, ...)."""
        return padded.flatten(0, 1)[self.places][None]

    def padded(self, row: Tensor) -> Tensor:
        """(R, T, ...) of (1, N, ...), zeros where there is no token."""
        if row.shape[:2] != (1, len(self.places)):
            raise ValueError(f"a row of {len(self.places)} tokens became {tuple(row.shape)}")
        batch = row.new_zeros(len(self.lengths) * max(self.lengths), *row.shape[2:])
        batch = batch.index_copy(0, self.places, row[0])
        return batch.view(len(self.lengths), -1, *row.shape[2:])

    def parts(self, states: Tensor) -> tuple[Tensor, ...]:
        """Each text's part of (1, heads, N, size) queries, keys or values."""
        return torch.split_with_sizes(states, self.lengths, dim=2)


@dataclass(frozen=True)
class _RowMasks:
    """What stands for a mask while a row is computed: each text's own, None where it needs none."""

    row: Row
    masks: tuple[Tensor | None, ...]


# Read where masks are made, which the backward pass never makes again. Attention may be computed
# again there, and finds its row in the mask.
_NOW: ContextVar[Row | None] = ContextVar("row", default=None)


def go_text_by_text(network: Any) -> bool:
    """Has the network's attention go text by text in rows; whether it can be had to.

    Outside of rows nothing changes. `go_as_before` undoes it.
    """
    kind = network.config._attn_implementation
    if kind not in _KINDS or network.base_model is network:
        return False
    _register(kind)
    network.set_attn_implementation(_PREFIX + kind)
    return bool(network.config._attn_implementation == _PREFIX + kind)


def go_as_before(network: Any) -> None:
    """The network's attention is again as transformers chose it."""
    network.set_attn_implementation(network.config._attn_implementation.removeprefix(_PREFIX))


@contextmanager
def computing(network: Any, row: Row | None) -> Iterator[None]:
    """Within, the network's backbone computes `row` where it is given the padded batch.

    Under autocast, what stands above the backbone is computed in float32: a margin is a small
    difference of large rewards.
    """
    device = next(network.parameters()).device.type
    if row is None and not torch.is_autocast_enabled(device):
        yield
        return
    now = _NOW.set(row)
    try:
        with _Around(network, row, device).hooks():
            yield
    finally:
        _NOW.reset(now)


class _Around:
    """What is done before and after the backbone, and its pooler, while a pass is computed."""

    def __init__(self, network: Any, row: Row | None, device: str) -> None:
        self.network, self.row, self.device = network, row, device
        self.rounded = torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device)
        # A network may be asked for rewards by several threads: each has hooks of its own.
        self.caller = threading.get_ident()
        self.in_backbone, self.in_pooler = ExitStack(), ExitStack()

    @contextmanager
    def hooks(self) -> Iterator[None]:
        backbone = self.network.base_model
        pooler = getattr(backbone, "pooler", None)
        with ExitStack() as stack:
            if self.rounded:
                stack.enter_context(torch.autocast(self.device, enabled=False))
            # Where a pass breaks off within; innermost first.
            stack.callback(self.in_backbone.close)
            stack.callback(self.in_pooler.close)
            handles = [
                backbone.register_forward_pre_hook(self.enter, with_kwargs=True),
                backbone.register_forward_hook(self.leave),
            ]
            if isinstance(pooler, nn.Module):
                handles.append(pooler.register_forward_pre_hook(self.enter_pooler))
                handles.append(pooler.register_forward_hook(self.leave_pooler))
            for handle in handles:
                stack.callback(handle.remove)
            yield

    def enter(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != self.caller:
            return None
        if self.rounded:
            self.in_backbone.enter_context(torch.autocast(self.device, dtype=self.dtype))
        return None if self.row is None else ((), _in_row(backbone, self.row, args, kwargs))

    def leave(self, backbone: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if threading.get_ident() != self.caller:
            return None
        self.in_backbone.close()
        states = output[0] if self.row is None else self.row.padded(output[0])
        states = states.float() if self.rounded else states
        if isinstance(output, tuple):
            return (states, *output[1:])
        output[next(iter(output))] = states
        return output

    def enter_pooler(self, pooler: nn.Module, args: tuple[Any, ...]) -> Any:
        if threading.get_ident() != self.caller:
            return None
        states = args[0] if self.row is None else self.row.padded(args[0])
        if self.rounded:
            self.in_pooler.enter_context(torch.autocast(self.device, enabled=False))
            states = states.float()
        return (states, *args[1:])

    def leave_pooler(self, pooler: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if threading.get_ident() == self.caller:
            self.in_pooler.close()


def _in_row(
    backbone: nn.Module, row: Row, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """What the backbone is given instead of a padded batch. Raises: ValueError if that is more than
    tokens and their types."""
    names = parameter_names(type(backbone).forward)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    given = {name: value for name, value in given.items() if value is not None}
    tensors = {name for name, value in given.items() if isinstance(value, Tensor)}
    if more := tensors - _PER_TOKEN - {"attention_mask"}:
        raise ValueError(f"the backbone takes {', '.join(sorted(more))} with its tokens")
    input_ids = given["input_ids"]
    given |= {name: row.of(given[name]) for name in _PER_TOKEN & tensors}
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    if "position_ids" in names:
        given["position_ids"] = row.of(_positions(backbone, input_ids))
    return given


@cache
def parameter_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """What a class's forward pass takes, in order. Looking takes longer than a small layer."""
    return tuple(inspect.signature(forward).parameters)[1:]


def _positions(backbone: nn.Module, input_ids: Tensor) -> Tensor:
    """(R, T) positions of (R, T) tokens, as the backbone counts them in one text alone."""
    for name, module in backbone.named_modules():
        is_table = name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
        if is_table and module.padding_idx is not None:
            # RoBERTa and its kin count from behind the padding entry, pad tokens left out.
            counted = torch.ne(input_ids, module.padding_idx).long()
            return torch.cumsum(counted, dim=1).mul(counted).add(module.padding_idx)
    return torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape)


def _register(kind: str) -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(_PREFIX + kind, _attention(kind))
    AttentionMaskInterface.register(_PREFIX + kind, _masks(kind))


def _masks(kind: str) -> Callable[..., Any]:
    """Makes each text's mask as transformers makes one for that text alone."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    make = ALL_MASK_ATTENTION_FUNCTIONS[kind]

    def masks(**asked: Any) -> Any:
        row = _NOW.get()
        if row is None:
            return make(**asked)
        if (asked["q_length"], asked["kv_length"]) != (len(row.places), len(row.places)):
            raise ValueError("attention is asked for to more than the row")
        alone = {**asked, "batch_size": 1, "attention_mask": None}
        made = {n: make(**{**alone, "q_length": n, "kv_length": n}) for n in set(row.lengths)}
        return _RowMasks(row, tuple(made[n] for n in row.lengths))

    return masks


def _attention(kind: str) -> Callable[..., Any]:
    """Calls transformers' attention of one text for each text."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any
    ) -> tuple[Tensor, Tensor | None]:
        # The plainest attention is written into each model's own file.
        own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        call = ALL_ATTENTION_FUNCTIONS.get_interface(kind, own)
        if not isinstance(mask, _RowMasks):
            if _NOW.get() is not None:
                raise ValueError("attention has not the row's mask")
            return call(module, query, key, value, mask, **more)  # type: ignore[no-any-return]
        tensors = {name for name, given in more.items() if isinstance(given, Tensor)}
        if tensors - {"position_ids"}:
            raise ValueError(f"attention takes {', '.join(sorted(tensors))} with its states")
        states, masks, kept = (query, key, value), mask.masks, value.dtype
        exact = kept == torch.bfloat16 and _slow_in_bfloat16(query.device.type)
        if exact:
            states = (query.float(), key.float(), value.float())
            masks = tuple(None if m is None else _unrounded(m) for m in masks)
        texts = zip(*map(mask.row.parts, states), masks, strict=True)
        with torch.autocast(query.device.type, enabled=False) if exact else nullcontext():
            outputs = [call(module, *text, **more)[0] for text in texts]
        return torch.cat(outputs, dim=1).to(kept), None

    return attend


def _unrounded(mask: Tensor) -> Tensor:
    return mask.float() if mask.is_floating_point() else mask


@cache
def _slow_in_bfloat16(device: str) -> bool:
    """Whether attention is faster in float32: on CPUs without matrix units for bfloat16, where it
    takes less than half of the time (texts of 160 tokens)."""
    return device == "cpu" and not torch.cpu.get_capabilities().get("amx_bf16")
