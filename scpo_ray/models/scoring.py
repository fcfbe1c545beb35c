"""Rewards of texts, batched by length."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

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
    return network_outputs(model, tokens, ids, worker, ())


def network_outputs(
    model: RewardModel,
    tokens: Tokens,
    ids: NDArray[np.int64],
    worker: Worker,
    shape: tuple[int, ...],
) -> NDArray[np.float32]:
    """(R, *shape) what the network says of each text."""
    lengths = tokens.lengths[ids]
    outputs = np.zeros((len(ids), *shape), dtype=np.float32)
    was_training = model.network.training
    model.network.eval()
    bar = tqdm(total=len(ids), desc="score", unit="text", disable=None, leave=False)
    with torch.no_grad(), bar:
        for rows, counts in _share(list(length_batches(lengths, model.batch_tokens)), worker):
            inputs = pad_texts(tokens, ids[rows], model.renderer.pad_id, model.device)
            computed = forward(model.network, inputs).float().cpu().numpy()
            if counts:
                outputs[rows] = computed
            bar.update(len(rows))
    model.network.train(was_training)
    return total_array(outputs, worker)


def _share(
    batches: Sequence[NDArray[np.int64]], worker: Worker
) -> Iterator[tuple[NDArray[np.int64], bool]]:
    """The worker's batches, and whether they count: a divided network computes in step, so a
    worker without a batch repeats another's."""
    for first in range(0, len(batches), worker.world_size):
        number = first + worker.rank
        yield batches[min(number, len(batches) - 1)], number < len(batches)


def length_batches(lengths: NDArray[np.int64], batch_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Rows in batches of near-equal length, longest first, each at most `batch_tokens` padded.

    A row longer than `batch_tokens` is a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def pad_texts(
    tokens: Tokens, text_ids: NDArray[np.int64], pad_id: int, device: str
) -> dict[str, Tensor]:
    """The texts' tokens padded on the right to the longest: (R, T) `input_ids` and masks."""
    starts, ends = tokens.offsets[text_ids], tokens.offsets[text_ids + 1]
    width = int((ends - starts).max())
    input_ids = np.full((len(text_ids), width), pad_id, dtype=np.int64)
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
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def forward(network: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """(R,) rewards of padded texts."""
    rewards: Tensor = network(**inputs).logits.squeeze(-1)
    return rewards
