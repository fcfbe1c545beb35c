"""What a network need not compute: padding, and what nobody reads. Found out when it is loaded."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from scpo_ray.models.reading import (
    ScoredNetwork,
    allowed_error,
    filler_id,
    known_ids,
    num_token_rows,
    pad_texts,
)
from scpo_ray.models.rendering import reasons
from scpo_ray.models.rows import go_as_before, go_text_by_text
from scpo_ray.records import Tokens

log = logging.getLogger(__name__)

# Of the largest value: what other sizes of a matrix product change by rounding.
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
_LENGTHS = (7, 12, 5)


@torch.no_grad()
def fit_for_rows(scored: ScoredNetwork) -> bool:
    """Whether the network's rewards may be computed in rows; if so, it is ready for them.

    No list of architectures: three texts are computed in a row and each alone by the network as it
    is, and the row must give each token's state and each reward as alone. What stands beside the
    middle text is then changed, and must not change one bit of it. Whatever fails is padded.
    """
    plain = scored.plain
    dtype = next(plain.parameters()).dtype
    if num_token_rows(plain) is None or dtype not in _TOLERANCES:
        return False
    tokens, device = _texts(scored), str(next(plain.parameters()).device)
    with _states_of(plain.base_model) as states:
        alone = [
            scored.network(**pad_texts(tokens, np.array([text]), 0, device)).logits.reshape(-1)
            for text in range(len(_LENGTHS))
        ]
        states_alone = torch.cat(states, dim=1)
        if not go_text_by_text(plain):
            return False
        states.clear()
        try:
            rewards = scored(**_row(scored, tokens, [0, 1, 2], device))
            scored(**_row(scored, tokens, [3, 1, 4], device))
            found = _fault(states[0], states[1], states_alone, rewards, torch.cat(alone).float())
        except Exception as error:  # whatever the library or the model's own code raises
            found = reasons(error)[0]
    if found:
        go_as_before(plain)
        log.info("%s: texts are padded, since in one row %s", type(plain).__name__, found)
    return not found


@torch.no_grad()
def fit_to_read_alone(scored: ScoredNetwork, *, in_rows: bool) -> bool:
    """Whether the last feed-forward network may compute only what rewards are read from.

    Three texts are computed so and whole, `in_rows` or padded. The rewards must agree, and must not
    change by one bit when all other tokens' states do.
    """
    plain = scored.plain
    dtype = next(plain.parameters()).dtype
    if num_token_rows(plain) is None or dtype not in _TOLERANCES:
        return False
    device = str(next(plain.parameters()).device)
    texts = _texts(scored)
    batch = pad_texts(texts, np.arange(3), filler_id(plain), device, in_row=in_rows)
    whole = scored(**batch)
    try:
        rewards, again = (
            ScoredNetwork(scored.network, only_read=True, unread=unread)(**batch)
            for unread in (0.0, 1.0)
        )
    except Exception as error:  # whatever the library or the model's own code raises
        log.debug("%s: the last layer is computed whole (%s)", type(plain).__name__, error)
        return False
    difference = float((rewards - whole).abs().max())
    return torch.equal(rewards, again) and difference <= allowed_error(whole, dtype)


def _fault(row: Tensor, other_row: Tensor, alone: Tensor, rewards: Tensor, expected: Tensor) -> str:
    """What is wrong with the rows; nothing if all is right."""
    middle = slice(_LENGTHS[0], _LENGTHS[0] + _LENGTHS[1])
    if not torch.equal(row[:, middle], other_row[:, middle]):
        return "a text changes with those beside it"
    for ours, theirs, name in ((row, alone, "states"), (rewards, expected, "rewards")):
        error, largest = float((ours - theirs).abs().max()), float(theirs.abs().max())
        if not error <= _TOLERANCES[alone.dtype] * largest:
            return f"{name} differ by {error:.3g} from those of a text alone"
    return ""


def _texts(scored: ScoredNetwork) -> Tokens:
    """Three texts, and two as long as the first and the last with other tokens. Within one stands
    the pad token, which some networks do not count."""
    plain = scored.plain
    ids, last = known_ids(plain)
    rng = np.random.default_rng(0)
    texts = [[*rng.choice(ids, length - 1), last] for length in (*_LENGTHS, 7, 5)]
    texts[1][4] = filler_id(plain)
    return Tokens(
        input_ids=np.concatenate(texts).astype(np.int32),
        token_type_ids=None,
        offsets=np.cumsum([0, *map(len, texts)]).astype(np.int64),
        truncated=np.zeros(len(texts), dtype=np.bool_),
    )


def _row(scored: ScoredNetwork, tokens: Tokens, texts: list[int], device: str) -> dict[str, Tensor]:
    return pad_texts(tokens, np.array(texts), filler_id(scored.plain), device, in_row=True)


@contextmanager
def _states_of(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """The hidden states that come out of each pass, as they come."""
    states: list[Tensor] = []
    handle = backbone.register_forward_hook(lambda *given: states.append(given[2][0]))
    try:
        yield states
    finally:
        handle.remove()
