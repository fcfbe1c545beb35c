"""A model's rewards on a scale that compares with another model's. Pure."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scpo_ray.data.hashes import text_hash
from scpo_ray.records import PreferenceData, Text
from scpo_ray.results import Scale

NUM_QUANTILES = 101
NUM_REFERENCES = 1_000
"""Enough that the mean of standardised rewards is known to 0.03, and each quantile to 0.016."""


def reference_texts(data: PreferenceData) -> NDArray[np.int64]:
    """The texts that every model of one data set is scaled on: responses of training pairs, all
    cultures', at most `NUM_REFERENCES` of them, chosen by their contents alone."""
    train = data.train
    texts = np.unique(np.concatenate([train.chosen, train.rejected]))
    return np.asarray(np.sort(texts[_lowest(data.texts.hashes[texts])]))


def reference_scale(data: PreferenceData, rewards: NDArray[np.float32]) -> Scale:
    """A model's scale on the data's reference texts.

    Args:
        rewards: (T,), of the reference texts at least.

    Raises: ValueError as `scale_of`.
    """
    texts = reference_texts(data)
    return scale_of(rewards[texts], _fingerprint(data.texts.hashes[texts]))


def spread_texts(texts: Sequence[Text]) -> tuple[list[Text], str]:
    """Of any texts, those that a scale is of, as `reference_texts` chooses them, and the
    fingerprint of their set: the same for the same texts in any order."""
    by_hash = {text_hash(text): text for text in texts}
    hashes = np.array(list(by_hash), dtype=np.uint64)
    chosen = hashes[_lowest(hashes)]
    return [by_hash[int(each)] for each in chosen], _fingerprint(chosen)


def _lowest(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where the `NUM_REFERENCES` lowest stand: a choice by contents alone."""
    return np.argsort(hashes, kind="stable")[:NUM_REFERENCES]


def _fingerprint(hashes: NDArray[np.uint64]) -> str:
    """Of the set of the texts with these hashes."""
    return hashlib.sha256(np.sort(hashes).astype("<u8").tobytes()).hexdigest()


def scale_of(rewards: NDArray[np.floating], references: str) -> Scale:
    """The scale that a model's rewards of the reference texts make.

    Args:
        rewards: (N,) in reward units.
        references: fingerprint of the set of texts.

    Raises: ValueError if the rewards are fewer than two, not finite, or all the same.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"a scale needs rewards of 2 reference texts, got {len(values)}")
    if not np.isfinite(values).all():
        raise ValueError("a scale needs finite rewards")
    spread = float(values.std(ddof=1))
    if spread == 0:
        raise ValueError(f"the model gives each reference text the same reward, {values[0]:g}")
    quantiles = np.quantile(values, np.linspace(0, 1, NUM_QUANTILES))
    return Scale(
        mean=float(values.mean()),
        spread=spread,
        quantiles=quantiles.tolist(),
        num_texts=len(values),
        references=references,
    )


def standardised(rewards: ArrayLike, scale: Scale) -> NDArray[np.float64]:
    """Rewards in standard deviations from the mean of the reference texts' rewards."""
    return (np.asarray(rewards, dtype=np.float64) - scale.mean) / scale.spread


def reference_probabilities(rewards: ArrayLike, scale: Scale) -> NDArray[np.float64]:
    """The share of reference texts with a lower reward: F_c(r), 0 to 1, straight lines between the
    quantiles kept (equal ones count half)."""
    values = np.asarray(rewards, dtype=np.float64)
    quantiles = np.asarray(scale.quantiles)
    levels = np.linspace(0, 1, len(quantiles))
    # Where several quantiles are one reward, interpolation is at the last; the middle is fair.
    highest = np.interp(values, quantiles, levels)
    lowest = 1 - np.interp(-values, -quantiles[::-1], levels)
    return np.asarray((highest + lowest) / 2)
