"""The global model: what every culture's model starts from and is measured against.

Its tokens, rewards and features of texts are computed once and kept in the stores."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scpo_ray.models.files import conversion_of, model_fingerprint, resolve_model_dir
from scpo_ray.models.known_renderer import KnownRenderer, known_renderer
from scpo_ray.models.loading import Divided, load_reward_model
from scpo_ray.models.precision import with_dtype
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.models.scoring import features_of_tokens, score_tokens
from scpo_ray.models.tokenizing import tokenize
from scpo_ray.records import ALONE, InputError, TextSource, Tokens, Worker
from scpo_ray.settings.model import ModelConfig
from scpo_ray.settings.train import Precision
from scpo_ray.storage.stores import ScoreStore, Stores
from scpo_ray.workers import from_first, together

log = logging.getLogger(__name__)

Compute = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""From (n,) texts to what the store keeps of each."""


@dataclass(frozen=True)
class GlobalModel:
    """A reward model's folder, how texts are rendered for it, and what is known of its rewards.

    `precision`: what its rewards are computed in.

    The network is loaded when something is asked for that the stores lack. With several workers
    every one of them calls `rewards` and `features` and computes its share. `config.dtype` is
    decided.
    """

    model_dir: Path
    config: ModelConfig
    renderer: KnownRenderer
    stores: Stores
    precision: Precision
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
        """Hash of what decides the rewards besides the renderer and the dtype."""
        return model_fingerprint(self.model_dir, self.config, self.stores.converted)

    @cached_property
    def conversion(self) -> dict[str, str]:
        """Of weights that were pickles: the hash of what they were and of what was made of them."""
        return conversion_of(self.model_dir, self.config, self.stores.converted)

    @cached_property
    def score_key(self) -> str:
        """What the stores keep rewards and features under: weights, layers kept, renderer, dtype,
        and the precision if it is not fp32."""
        parts = [self.fingerprint, self.renderer.fingerprint, self.config.dtype]
        if self.precision != "fp32":
            parts.append(self.precision)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def tokens(self, texts: TextSource) -> Tokens:
        """As `tokenizing.tokenize`."""
        return tokenize(self.renderer, texts, self.stores.tokens)

    def unscored(self, texts: TextSource) -> list[NDArray[np.int64]]:
        """The texts that have no reward yet, in portions to compute."""
        return self.stores.scores.missing(self.score_key, texts.hashes)

    def rewards(self, texts: TextSource) -> NDArray[np.float32]:
        """(T,) float32 rewards; the network is loaded only if some are new.

        Each text is scored once, whatever data it stands in: of what was computed before, for
        other cultures or folds or by a scoring that was stopped, nothing is computed again.

        Raises: InputError if a reward is not finite.
        """
        store = self.stores.scores

        def start() -> Compute:
            model, tokens = self.frozen(), self.tokens(texts)
            return lambda ids: score_tokens(model, tokens, text_ids=ids, worker=self.worker)

        self._complete(store, texts, start)
        # Read by one and handed on: what decides which pairs are kept must be one to the bit.
        return from_first(lambda: store.get(self.score_key, texts.hashes), self.worker)

    def features(self, texts: TextSource) -> NDArray[np.float32] | None:
        """(T, D) float32, what the score head reads; None but on worker 0.

        Computed and kept as the rewards are.

        Raises: InputError if a feature is not finite, or as `reading.score_head`.
        """
        store = self.stores.features

        def start() -> Compute:
            model, tokens = self.frozen(), self.tokens(texts)
            return lambda ids: features_of_tokens(model, tokens, ids, self.worker)

        self._complete(store, texts, start)
        return store.get(self.score_key, texts.hashes) if self.worker.rank == 0 else None

    def frozen(self) -> RewardModel:
        """The network as it is, without the adapters that training would add."""
        return self._loaded(self.config.model_copy(update={"lora": None}), seed=0)

    def trainable(self, seed: int, divided: Divided = None) -> RewardModel:
        """The network that training starts from, with its adapters or new head if it gets any.

        `divided`: as for `load_reward_model`.
        """
        return self._loaded(self.config, seed=seed, divided=divided)

    def _loaded(self, config: ModelConfig, *, seed: int, divided: Divided = None) -> RewardModel:
        model = load_reward_model(
            self.model_dir,
            config,
            self.renderer.loaded,
            device=self.worker.device,
            seed=seed,
            divided=divided,
            cache=self.stores.converted,
        )
        return replace(model, precision=self.precision)

    def _complete(self, store: ScoreStore, texts: TextSource, start: Callable[[], Compute]) -> None:
        """Computes what the store lacks; `start` loads what is needed for it."""
        key, hashes = self.score_key, texts.hashes
        missing = from_first(lambda: store.missing(key, hashes), self.worker)
        if missing:
            with together(self.worker):
                compute = start()
        for ids in missing:
            values = compute(ids)
            check_finite(values, self.config)
            with together(self.worker):
                if self.worker.rank == 0:
                    store.put(key, hashes[ids], values)
        log_scored(store, key, sum(map(len, missing)), len(texts))


def log_scored(store: ScoreStore, key: str, num_computed: int, num_texts: int) -> None:
    """Says how many texts' rewards (or features) were computed and how many were there."""
    what, path = store.folder.name, store.path(key)
    if not num_computed:
        log.info("%s: %d texts read from %s", what, num_texts, path)
    elif num_computed == num_texts:
        log.info("%s: %d texts computed, kept in %s", what, num_texts, path)
    else:
        num_read = num_texts - num_computed
        log.info("%s: %d texts computed, %d read, kept in %s", what, num_computed, num_read, path)


def open_global_model(
    config: ModelConfig, stores: Stores, *, device: str, precision: Precision
) -> GlobalModel:
    """The global model that the settings name, its dtype decided for the device.

    Raises: InputError for whatever is wrong with its folder or its tokenizer.
    """
    model_dir = resolve_model_dir(config, stores.converted)
    renderer = known_renderer(model_dir, config, stores.renderers)
    return GlobalModel(model_dir, with_dtype(config, device), renderer, stores, precision)


def check_finite(rewards: NDArray[np.float32], config: ModelConfig) -> None:
    """Raises: InputError if one of the global model's rewards (or features) is not finite."""
    what = "rewards" if rewards.ndim == 1 else "features"
    broken = ~np.isfinite(rewards.reshape(len(rewards), -1).sum(axis=1))
    if broken.any():
        raise InputError(
            f"model.path = {config.path}: the global model gives {what} that are not finite",
            [f"to {broken.sum()} of {len(rewards)} texts"],
        )
