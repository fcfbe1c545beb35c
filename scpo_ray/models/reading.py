"""Where a network's reward is read: the one forward pass of scoring, training and evaluation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scpo_ray.models.feed_forward import computed_at
from scpo_ray.models.rows import Row, computing, parameter_names
from scpo_ray.records import InputError, Tokens

# Decoders that score every token and keep the last one's; all others call that layer `score`.
_LAST_TOKEN_HEADS = {
    "CTRLForSequenceClassification": ("classifier",),
    "ModernBertDecoderForSequenceClassification": ("head", "drop", "classifier"),
    "XLNetForSequenceClassification": ("sequence_summary", "logits_proj"),
}
_END_TOKEN_HEAD = "classification_head"
_ROUNDING = 3e-5
# What a pass costs beside its tokens', on a CPU: DeBERTa projects its relative positions in each.
_PASS_TOKENS = 128
# By the weights' dtype: in bfloat16 the same text in another shape differs by its 8 bits.
_PADDING_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


class ScoredNetwork(nn.Module):
    """A classification network from transformers whose output is the (R,) float32 rewards.

    Its weights and their names stay the network's own. A decoder of transformers looks for the
    end of a text by the pad token's id, so that what it reads depends on what a batch is padded
    with. Here the attention mask says where a text ends, and the reward is what the network
    itself gives to that text alone, with its config as it was saved.

    `only_read`: the last feed-forward network computes only what is read (`feed_forward`), and
    gives `unread` for the rest.
    """

    def __init__(self, network: nn.Module, *, only_read: bool = False, unread: float = 0.0) -> None:
        super().__init__()
        self.network, self.only_read, self.unread = network, only_read, unread

    @property
    def plain(self) -> Any:
        """The network that transformers made, without the adapters' wrapping."""
        unwrap: Callable[[], nn.Module] | None = getattr(self.network, "get_base_model", None)
        return self.network if unwrap is None else unwrap()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        lengths: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """(R,) rewards of (R, T) tokens.

        Args:
            lengths: (R,) on the CPU. With `places`, (N,), the texts are computed in one row of real
                tokens alone (`rows.Row`); only for a network that `packing` found fit. Without
                them in passes of near-equal lengths, each padded no further than it has to be.
        """
        if lengths is not None and places is None:
            return self._by_length(input_ids, attention_mask, token_type_ids, lengths)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        plain = self.plain
        if token_type_ids is not None and _takes(plain, "token_type_ids"):
            inputs["token_type_ids"] = token_type_ids
        row = None
        if lengths is not None and places is not None:
            row = Row(tuple(lengths.tolist()), places)
        layers = _head_layers(plain)
        # Without layers the network reads by itself, and at the first token if at one.
        read = torch.arange(len(input_ids), device=input_ids.device) * input_ids.shape[1]
        if layers:
            read = read + _places(plain.config, layers, input_ids, attention_mask)
        alone = computed_at(plain.base_model, self._alone(plain, row, read), self.unread)
        with computing(plain, row), alone:
            rewards = self._read(plain, layers, inputs, read)
        if rewards.shape != (len(input_ids),):
            raise ValueError(f"{len(input_ids)} texts got rewards of shape {tuple(rewards.shape)}")
        return rewards

    def _by_length(
        self, input_ids: Tensor, mask: Tensor, token_type_ids: Tensor | None, lengths: Tensor
    ) -> Tensor:
        """(R,) rewards, from several passes where that saves more padding than a pass costs."""
        runs = near_equal_runs(lengths.numpy())
        rewards = []
        for run in runs:
            width = int(lengths[run[0]])
            types = None if token_type_ids is None else token_type_ids[run, :width]
            rewards.append(self(input_ids[run, :width], mask[run, :width], types))
        return torch.cat(rewards)[np.argsort(np.concatenate(runs))]

    def _alone(self, plain: Any, row: Row | None, read: Tensor) -> Tensor | None:
        """Where the last feed-forward network computes alone; None for everywhere."""
        # What is computed again in the backward pass is computed whole.
        if not self.only_read or getattr(plain, "is_activation_checkpointing", False):
            return None
        return read if row is None else torch.searchsorted(row.places, read)

    def _read(
        self, plain: Any, layers: tuple[str, ...], inputs: dict[str, Tensor], places: Tensor
    ) -> Tensor:
        """(R,) rewards, which `layers` read at `places` of the flattened (R, T) tokens."""
        if not layers:
            rewards: Tensor = self.network(**inputs).logits
            return rewards.float().squeeze(-1)
        read = _hidden_states(plain, inputs).flatten(0, 1)[places]
        # A margin is a small difference of large rewards: the head computes it unrounded.
        with torch.autocast(read.device.type, enabled=False):
            # XLNet's summary takes the last of a sequence, which here has one token.
            read = read.to(_dtype(plain))[:, None]
            for name in layers:
                read = getattr(plain, name)(read)
            return read.float().reshape(len(places), -1).squeeze(-1)


def _head_layers(plain: Any) -> tuple[str, ...]:
    """What stands behind the hidden state of one token; none where the network reads by itself."""
    named = _LAST_TOKEN_HEADS.get(type(plain).__name__)
    if named is not None:
        return named if getattr(plain.config, "summary_type", "last") == "last" else ()
    if isinstance(getattr(plain, _END_TOKEN_HEAD, None), nn.Module):
        return (_END_TOKEN_HEAD,)
    score = getattr(plain, "score", None)
    # Adapters wrap the head they train, and keep it inside.
    score = getattr(score, "original_module", score)
    return ("score",) if isinstance(score, nn.Linear) else ()


def _hidden_states(plain: Any, inputs: dict[str, Tensor]) -> Tensor:
    """(R, T, D) of the network below its head."""
    backbone, more = plain.base_model, {}
    if _takes(backbone, "use_cache"):
        more["use_cache"] = False
    if hasattr(plain, "_shift_right"):
        more["decoder_input_ids"] = plain._shift_right(inputs["input_ids"])
    hidden: Tensor = backbone(**inputs, **more)[0]
    return hidden


def _places(config: Any, layers: tuple[str, ...], input_ids: Tensor, mask: Tensor) -> Tensor:
    """(R,) where transformers reads a text alone. Raises: InputError if it has no end token."""
    read, pad_id = mask.bool(), config.get_text_config().pad_token_id
    if layers == (_END_TOKEN_HEAD,):
        read = read & (input_ids == config.eos_token_id)
        if not read.any(dim=1).all():
            raise InputError(
                f"the model reads its reward at the end token (id {config.eos_token_id}), and a "
                "text has none",
                ["use the tokenizer that belongs to the model"],
            )
    elif "sequence_summary" not in layers and pad_id is not None:
        # Alone, too, a text is read at its last token that is not the config's pad token.
        read = read & (input_ids != pad_id)
    return (torch.arange(read.shape[1], device=read.device) * read).argmax(dim=1)


def _takes(module: nn.Module, name: str) -> bool:
    return name in parameter_names(type(module).forward)


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


def score_head(network: nn.Module) -> tuple[str, nn.Linear]:
    """The last layer, and its name: what turns features into one score.

    Raises: InputError if the network has no such layer, or several.
    """
    body: nn.Module | None = getattr(network, "base_model", None)
    # What has one output in the backbone (an expert's gate) is no score.
    inside = set(body.modules()) if body is not None and body is not network else set()
    layers = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 1
        if module not in inside or hasattr(network, "peft_config")
    ]
    if len(layers) != 1:
        names = ", ".join(name for name, _ in layers) or "none"
        raise InputError(
            "the global model has no single linear score head, which heads on frozen features need",
            [f"layers with one output: {names}", "export a model with adapters merged first"],
        )
    return layers[0]


def filler_id(plain: Any) -> int:
    """What fills the batch behind a text: any token does, for it is masked out and never read."""
    pad_id = plain.config.get_text_config().pad_token_id
    num_rows = num_token_rows(plain)
    return pad_id if pad_id is not None and 0 <= pad_id < (num_rows or pad_id + 1) else 0


def num_token_rows(plain: Any) -> int | None:
    """Tokens that the network knows; None where it has no table of them."""
    try:
        rows: int | None = getattr(plain.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:
        return None
    return rows


def known_ids(plain: Any) -> tuple[list[int], int]:
    """A few tokens of the network that are not special, and one that a text may end with."""
    num_rows, settings = num_token_rows(plain) or 0, plain.config.get_text_config()
    special = {getattr(settings, f"{name}_token_id", None) for name in ("pad", "bos", "eos")}
    ids = [token for token in range(min(num_rows, 64)) if token not in special][-9:]
    end = getattr(settings, "eos_token_id", None)
    return ids, end if isinstance(end, int) and 0 <= end < num_rows else ids[-1]


def check_tokens(plain: Any, tokens: Tokens) -> None:
    """Raises: InputError if a token or a token type is none of the network's."""
    problems = []
    num_rows = num_token_rows(plain)
    largest = tokens.largest_id
    if num_rows is not None and largest >= num_rows:
        problems.append(f"token {largest}; the model has {num_rows}, from 0 on")
    if tokens.token_type_ids is not None and _takes(plain, "token_type_ids"):
        tables = [
            module.num_embeddings
            for name, module in plain.named_modules()
            if name.endswith("token_type_embeddings") and isinstance(module, nn.Embedding)
        ]
        largest = tokens.largest_type
        if tables and largest >= min(tables):
            problems.append(
                f"token type {largest}; the model has {min(tables)}, from 0 on "
                "(model_input_names in tokenizer_config.json says whether types are given)"
            )
    if problems:
        raise InputError("the tokenizer does not fit the model: it gives", problems)


@torch.no_grad()
def check_reading(scored: ScoredNetwork) -> None:
    """Compares short texts in a padded batch with each alone in the network's own forward pass.

    Raises: InputError if padding changes the rewards of this network.
    """
    plain = scored.plain
    tokens = two_short_texts(plain)
    if tokens is None:
        return
    device = str(next(plain.parameters()).device)
    together = scored(**pad_texts(tokens, np.arange(2), filler_id(plain), device))
    alone = torch.stack(
        [
            scored.network(**pad_texts(tokens, np.array([row]), 0, device)).logits.float().squeeze()
            for row in range(2)
        ]
    )
    error = float((together - alone).abs().max())
    if error > allowed_error(alone, _dtype(plain)):
        raise InputError(
            f"{type(plain).__name__} gives a text another reward when it is padded, which is not "
            "supported",
            [f"rewards of a short text differ by {error:.3g}"],
        )


def allowed_error(rewards: Tensor, dtype: torch.dtype) -> float:
    """How far two ways to compute the same rewards may part, in reward units."""
    return _ROUNDING + _PADDING_TOLERANCE[dtype] * float(rewards.abs().max())


def two_short_texts(plain: Any) -> Tokens | None:
    """Tokens of two texts, not equally long; None where the network has no table of tokens."""
    if num_token_rows(plain) is None:
        return None
    ids, last = known_ids(plain)
    texts = [[*ids[: len(ids) // 2], last], [*ids, last]]
    return Tokens(
        input_ids=np.concatenate(texts).astype(np.int32),
        token_type_ids=None,
        offsets=np.cumsum([0, *map(len, texts)]).astype(np.int64),
        truncated=np.zeros(len(texts), dtype=np.bool_),
    )


def near_equal_runs(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Which of the (R,) lengths to pad together, the longest first: the places of each run.

    Of all ways to cut the sorted lengths into runs the one with the fewest tokens, padded ones and
    what a pass costs by itself counted.
    """
    order = np.argsort(-lengths, kind="stable")
    widths, number = lengths[order], len(lengths)
    fewest, cut = np.zeros(number + 1), np.zeros(number + 1, dtype=np.int64)
    for end in range(1, number + 1):
        starts = np.arange(end)
        costs = fewest[:end] + widths[:end] * (end - starts) + _PASS_TOKENS
        cut[end] = np.argmin(costs)
        fewest[end] = costs[cut[end]]
    runs, end = [], number
    while end:
        runs.append(order[cut[end] : end])
        end = int(cut[end])
    return runs[::-1]


def pad_texts(
    tokens: Tokens,
    text_ids: NDArray[np.int64],
    filler: int,
    device: str,
    *,
    in_row: bool = False,
    by_length: bool = False,
) -> dict[str, Tensor]:
    """The texts' tokens padded on the right to the longest: (R, T) `input_ids` and masks.

    Args:
        in_row: with what `ScoredNetwork.forward` needs to compute real tokens alone.
        by_length: with what it needs to compute texts of near-equal length together.
    """
    starts, ends = tokens.offsets[text_ids], tokens.offsets[text_ids + 1]
    width = int((ends - starts).max())
    input_ids = np.full((len(text_ids), width), filler, dtype=np.int64)
    mask = np.zeros((len(text_ids), width), dtype=np.int64)
    types = None if tokens.token_type_ids is None else np.zeros_like(mask)
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        input_ids[row, : end - start] = tokens.input_ids[start:end]
        mask[row, : end - start] = 1
        if types is not None and tokens.token_type_ids is not None:
            types[row, : end - start] = tokens.token_type_ids[start:end]
    arrays = {"input_ids": input_ids, "attention_mask": mask}
    if types is not None:
        arrays["token_type_ids"] = types
    batch = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    if in_row or by_length:
        batch["lengths"] = torch.from_numpy(ends - starts)
    if in_row:
        batch["places"] = torch.from_numpy(np.flatnonzero(mask)).to(device)
    return batch
