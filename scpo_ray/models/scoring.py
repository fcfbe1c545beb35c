"""Rewards of texts, batched by length."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from scpo_ray.models.reading import score_head
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.records import ALONE, Text, Tokens, Worker
from scpo_ray.workers import total_array


def score_texts(model: RewardModel, texts: Sequence[Text]) -> NDArray[np.float32]:
    """(T,) float32 rewards of texts in memory."""
    return score_tokens(model, model.renderer.encode(texts))


def score_tokens(
    model: RewardModel,
    tokens: Tokens,
    *,
    text_ids: NDArray[np.int64] | None = None,
    worker: Worker = ALONE,
) -> NDArray[np.float32]:
    """Rewards without gradient, in evaluation mode, whatever mode the network is in.

    Args:
        text_ids: (R,) the texts to score; None: all T.
        worker: one of several, each of which calls this and computes its share of the batches.

    Returns: (R,) or (T,) float32, in the order asked for.
    """
    ids = np.arange(len(tokens.offsets) - 1) if text_ids is None else text_ids
    return _outputs(model, model.rewards, tokens, ids, worker, ())


def features_of_tokens(
    model: RewardModel, tokens: Tokens, text_ids: NDArray[np.int64], worker: Worker
) -> NDArray[np.float32]:
    """(R, D) float32: what the score head reads of each text. As `score_tokens`.

    Raises: InputError as `reading.score_head`.
    """
    _, head = score_head(model.network)
    return _outputs(model, model.features, tokens, text_ids, worker, (head.in_features,))


def _outputs(
    model: RewardModel,
    compute: Callable[[dict[str, Tensor]], Tensor],
    tokens: Tokens,
    ids: NDArray[np.int64],
    worker: Worker,
    shape: tuple[int, ...],
) -> NDArray[np.float32]:
    """(R, *shape) what `compute` gives of each text."""
    model.check_tokens(tokens)
    lengths = tokens.lengths[ids]
    outputs = np.zeros((len(ids), *shape), dtype=np.float32)
    # Read at the end: each reading waits for the device.
    computed: list[tuple[NDArray[np.int64], Tensor]] = []
    was_training = model.network.training
    # Setting the mode writes into every layer: for one short text a fifth of its time.
    if any(module.training for module in model.network.modules()):
        model.network.eval()
    bar = tqdm(total=len(ids), desc="score", unit="text", disable=None, leave=False)
    with torch.no_grad(), bar:
        batches = length_batches(lengths, model.batch_tokens, in_rows=model.in_rows)
        for rows, counts in _share(list(batches), worker):
            values = compute(model.batch(tokens, ids[rows]))
            if counts:
                computed.append((rows, values))
            bar.update(len(rows))
    for rows, values in computed:
        outputs[rows] = values.cpu().numpy()
    if was_training:
        model.network.train()
    return total_array(outputs, worker)


def _share(
    batches: Sequence[NDArray[np.int64]], worker: Worker
) -> Iterator[tuple[NDArray[np.int64], bool]]:
    """The worker's batches, and whether they count: a divided network computes in step, so a
    worker without a batch repeats another's."""
    for first in range(0, len(batches), worker.world_size):
        number = first + worker.rank
        yield batches[min(number, len(batches) - 1)], number < len(batches)


def length_batches(
    lengths: NDArray[np.int64], batch_tokens: int, *, in_rows: bool
) -> Iterator[NDArray[np.int64]]:
    """Texts in batches of near-equal length, longest first, each of at most `batch_tokens`.

    Padded tokens are counted; `in_rows`: there are none. A text longer than `batch_tokens` is a
    batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        if in_rows:
            before = ends[start] - lengths[order[start]]
            stop = int(np.searchsorted(ends, before + batch_tokens, side="right"))
        else:
            stop = start + batch_tokens // int(lengths[order[start]])
        stop = max(stop, start + 1)
        yield order[start:stop]
        start = stop
