"""Rewards of texts, batched by length; the global model's are computed once and stored."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from scpo_ray.models.rendering import RefusedTexts, Renderer
from scpo_ray.models.reward_model import (
    RewardModel,
    load_reward_model,
    model_fingerprint,
    score_head,
    without_head,
)
from scpo_ray.records import ALONE, InputError, Text, TextSource, Tokens, Worker
from scpo_ray.settings.model import ModelConfig
from scpo_ray.storage.stores import ScoreStore, TokenStore
from scpo_ray.workers import from_first, together, total_array

log = logging.getLogger(__name__)

_TEXTS_PER_CHUNK = 2_000


def tokenize(renderer: Renderer, texts: TextSource, store: TokenStore) -> Tokens:
    """Tokens of T texts, memory-mapped; read from `store` where these texts were rendered before.

    Whatever the tokenizer or the template does otherwise, another maximum length or text makes a
    new entry.

    Raises: RefusedTexts naming every text that cannot be rendered.
    """
    key = _hash(renderer.fingerprint, hashlib.sha256(texts.hashes.tobytes()).hexdigest())
    tokens = store.get(key)
    if tokens is None:
        tokens = store.put(key, _rendered_chunks(renderer, texts))
    return tokens


def _rendered_chunks(renderer: Renderer, texts: TextSource) -> Iterator[Tokens]:
    starts = range(0, len(texts), _TEXTS_PER_CHUNK)
    refused: dict[int, str] = {}
    for start in tqdm(starts, desc="tokenize", unit="chunk", disable=None, leave=False):
        stop = min(start + _TEXTS_PER_CHUNK, len(texts))
        try:
            yield renderer.encode([texts[t] for t in range(start, stop)])
        except RefusedTexts as error:
            refused |= {start + place: reason for place, reason in error.reasons.items()}
    if refused:
        raise RefusedTexts(refused, len(texts))


def score_key(model_dir: Path, config: ModelConfig, renderer: Renderer, texts: TextSource) -> str:
    """The score store's key: weights, layers kept, renderer and its length, and the texts."""
    return _hash(
        model_fingerprint(model_dir, config),
        renderer.fingerprint,
        hashlib.sha256(texts.hashes.tobytes()).hexdigest(),
    )


def reference_rewards(
    model_dir: Path,
    config: ModelConfig,
    renderer: Renderer,
    texts: TextSource,
    tokens: Tokens,
    store: ScoreStore,
    worker: Worker,
) -> NDArray[np.float32]:
    """(T,) float32 rewards of the frozen global model; the model is loaded only if some are new.

    What is computed is kept part by part: a stopped scoring goes on where it was. Every worker
    calls it and computes its share.

    Raises: InputError if a reward is not finite.
    """
    key = score_key(model_dir, config, renderer, texts)

    def start() -> Compute:
        model = load_frozen_model(model_dir, config, renderer, device=worker.device)

        def compute(text_ids: NDArray[np.int64]) -> NDArray[np.float32]:
            rewards = score_tokens(model, tokens, text_ids=text_ids, worker=worker)
            check_finite(rewards, config)
            return rewards

        return compute

    _complete(store, key, texts, start, "scores", worker)
    # Read by one and handed on: what decides which pairs are kept must be one to the bit.
    return from_first(lambda: store.get(key, texts.hashes), worker)


def reference_features(
    model_dir: Path,
    config: ModelConfig,
    renderer: Renderer,
    texts: TextSource,
    tokens: Tokens,
    store: ScoreStore,
    worker: Worker,
) -> NDArray[np.float32] | None:
    """(T, D) float32, what the frozen global model's score head reads; None but on worker 0.

    Computed and kept as the rewards are. Raises: InputError if a feature is not finite, or as
    `reward_model.score_head`.
    """
    key = _hash("features", score_key(model_dir, config, renderer, texts))

    def start() -> Compute:
        model = load_frozen_model(model_dir, config, renderer, device=worker.device)
        _, head = score_head(model)
        num_features = head.in_features
        model = without_head(model)

        def compute(text_ids: NDArray[np.int64]) -> NDArray[np.float32]:
            features = _outputs(model, tokens, text_ids, worker, (num_features,))
            check_finite(features, config)
            return features

        return compute

    _complete(store, key, texts, start, "features", worker)
    return store.get(key, texts.hashes) if worker.rank == 0 else None


Compute = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""From (n,) texts to what the store keeps of each."""


def _complete(
    store: ScoreStore,
    key: str,
    texts: TextSource,
    start: Callable[[], Compute],
    what: str,
    worker: Worker,
) -> None:
    """Computes the parts that the store lacks; `start` loads what is needed for it."""
    missing = from_first(lambda: store.missing_parts(key, texts.hashes), worker)
    if not missing:
        log.info("%s: %d texts read from %s", what, len(texts), store.path(key))
        return
    with together(worker):
        compute = start()
    for part in missing:
        values = compute(part.ids)
        with together(worker):
            if worker.rank == 0:
                store.put(key, part, texts.hashes, values)
    log.info("%s: %d texts computed, kept in %s", what, len(texts), store.path(key))


def load_frozen_model(
    model_dir: Path, config: ModelConfig, renderer: Renderer, *, device: str
) -> RewardModel:
    """The global model as it is, without the adapters that training would add."""
    frozen = config.model_copy(update={"lora": None})
    return load_reward_model(model_dir, frozen, renderer, device=device, seed=0)


def check_finite(rewards: NDArray[np.float32], config: ModelConfig) -> None:
    """Raises: InputError if one of the global model's rewards (or features) is not finite."""
    what = "rewards" if rewards.ndim == 1 else "features"
    broken = ~np.isfinite(rewards.reshape(len(rewards), -1).sum(axis=1))
    if broken.any():
        raise InputError(
            f"model.path = {config.path}: the global model gives {what} that are not finite",
            [f"to {broken.sum()} of {len(rewards)} texts"],
        )


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
    return _outputs(model, tokens, ids, worker, ())


def _outputs(
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


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
