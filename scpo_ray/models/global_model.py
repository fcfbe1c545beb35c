"""The global model: what every culture's model starts from and is measured against.

Its tokens, rewards and features of texts are computed once and kept in the stores."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from scpo_ray.models.rendering import Renderer, load_renderer
from scpo_ray.models.reward_model import (
    RewardModel,
    load_reward_model,
    model_fingerprint,
    resolve_model_dir,
    score_head,
    without_head,
)
from scpo_ray.models.scoring import network_outputs, score_tokens
from scpo_ray.records import ALONE, InputError, TextSource, Tokens, Worker
from scpo_ray.settings.model import ModelConfig
from scpo_ray.storage.stores import ScoreStore, Stores, TokenStore
from scpo_ray.workers import from_first, together

log = logging.getLogger(__name__)

_TEXTS_PER_CHUNK = 2_000

Compute = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""From (n,) texts to what the store keeps of each."""


@dataclass(frozen=True)
class GlobalModel:
    """A reward model's folder, how texts are rendered for it, and what is known of its rewards.

    The network is loaded when something is asked for that the stores lack. With several workers
    every one of them calls `rewards` and `features` and computes its share.
    """

    model_dir: Path
    config: ModelConfig
    renderer: Renderer
    stores: Stores
    worker: Worker = ALONE

    def on(self, worker: Worker) -> "GlobalModel":
        """The same model, computed by `worker`."""
        return replace(self, worker=worker)

    @property
    def has_head(self) -> bool:
        """Whether it gives rewards: a backbone that gets a new head has none to ask for."""
        return not self.config.new_head

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what decides the rewards besides the renderer."""
        return model_fingerprint(self.model_dir, self.config)

    def score_key(self, texts: TextSource) -> str:
        """The score store's key: weights, layers kept, renderer and its length, and the texts."""
        hashes = hashlib.sha256(texts.hashes.tobytes()).hexdigest()
        return _hash(self.fingerprint, self.renderer.fingerprint, hashes)

    def tokens(self, texts: TextSource) -> Tokens:
        """As `tokenize`."""
        return tokenize(self.renderer, texts, self.stores.tokens)

    def rewards(self, texts: TextSource) -> NDArray[np.float32]:
        """(T,) float32 rewards; the network is loaded only if some are new.

        What is computed is kept part by part: a stopped scoring goes on where it was.

        Raises: InputError if a reward is not finite.
        """
        key, store = self.score_key(texts), self.stores.scores

        def start() -> Compute:
            model, tokens = self.frozen(), self.tokens(texts)
            return lambda ids: score_tokens(model, tokens, text_ids=ids, worker=self.worker)

        self._complete(store, key, texts, start, "scores")
        # Read by one and handed on: what decides which pairs are kept must be one to the bit.
        return from_first(lambda: store.get(key, texts.hashes), self.worker)

    def features(self, texts: TextSource) -> NDArray[np.float32] | None:
        """(T, D) float32, what the score head reads; None but on worker 0.

        Computed and kept as the rewards are.

        Raises: InputError if a feature is not finite, or as `reward_model.score_head`.
        """
        key, store = _hash("features", self.score_key(texts)), self.stores.features

        def start() -> Compute:
            model, tokens = self.frozen(), self.tokens(texts)
            _, head = score_head(model)
            shape = (head.in_features,)
            model = without_head(model)
            return lambda ids: network_outputs(model, tokens, ids, self.worker, shape)

        self._complete(store, key, texts, start, "features")
        return store.get(key, texts.hashes) if self.worker.rank == 0 else None

    def frozen(self) -> RewardModel:
        """The network as it is, without the adapters that training would add."""
        return self._loaded(self.config.model_copy(update={"lora": None}), seed=0)

    def trainable(self, seed: int) -> RewardModel:
        """The network that training starts from, with its adapters or new head if it gets any."""
        return self._loaded(self.config, seed=seed)

    def _loaded(self, config: ModelConfig, *, seed: int) -> RewardModel:
        device = self.worker.device
        return load_reward_model(self.model_dir, config, self.renderer, device=device, seed=seed)

    def _complete(
        self,
        store: ScoreStore,
        key: str,
        texts: TextSource,
        start: Callable[[], Compute],
        what: str,
    ) -> None:
        """Computes the parts that the store lacks; `start` loads what is needed for it."""
        missing = from_first(lambda: store.missing_parts(key, texts.hashes), self.worker)
        if not missing:
            log.info("%s: %d texts read from %s", what, len(texts), store.path(key))
            return
        with together(self.worker):
            compute = start()
        for part in missing:
            values = compute(part.ids)
            check_finite(values, self.config)
            with together(self.worker):
                if self.worker.rank == 0:
                    store.put(key, part, texts.hashes, values)
        log.info("%s: %d texts computed, kept in %s", what, len(texts), store.path(key))


def open_global_model(config: ModelConfig, stores: Stores) -> GlobalModel:
    """The global model that the settings name.

    Raises: InputError for whatever is wrong with its folder or its tokenizer.
    """
    model_dir = resolve_model_dir(config)
    return GlobalModel(model_dir, config, load_renderer(model_dir, config), stores)


def tokenize(renderer: Renderer, texts: TextSource, store: TokenStore) -> Tokens:
    """Tokens of T texts, memory-mapped; read from `store` where these texts were rendered before.

    A changed vocabulary, template, maximum length or text makes a new entry.
    """
    key = _hash(renderer.fingerprint, hashlib.sha256(texts.hashes.tobytes()).hexdigest())
    tokens = store.get(key)
    if tokens is None:
        tokens = store.put(key, _rendered_chunks(renderer, texts))
    return tokens


def _rendered_chunks(renderer: Renderer, texts: TextSource) -> Iterator[Tokens]:
    starts = range(0, len(texts), _TEXTS_PER_CHUNK)
    for start in tqdm(starts, desc="tokenize", unit="chunk", disable=None, leave=False):
        stop = min(start + _TEXTS_PER_CHUNK, len(texts))
        yield renderer.encode([texts[t] for t in range(start, stop)])


def check_finite(rewards: NDArray[np.float32], config: ModelConfig) -> None:
    """Raises: InputError if one of the global model's rewards (or features) is not finite."""
    what = "rewards" if rewards.ndim == 1 else "features"
    broken = ~np.isfinite(rewards.reshape(len(rewards), -1).sum(axis=1))
    if broken.any():
        raise InputError(
            f"model.path = {config.path}: the global model gives {what} that are not finite",
            [f"to {broken.sum()} of {len(rewards)} texts"],
        )


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
