"""Which pairs a run learns from, and how much each culture of them counts."""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from scpo_ray.evaluation.calibration import vote_shares
from scpo_ray.records import Pairs, PreferenceData
from scpo_ray.settings.files import check_culture_names
from scpo_ray.settings.run import RunConfig


def culture_weights_of(config: RunConfig, data: PreferenceData) -> dict[str, float]:
    """Culture -> weight, as set or all alike. Raises: InputError naming an unknown culture."""
    if config.culture_weights is None:
        return dict.fromkeys(data.cultures, 1.0)
    weighted, left = list(config.culture_weights), config.data.cultures
    check_culture_names(weighted, data.cultures, "culture_weights", left=left)
    return dict(config.culture_weights)


def cultures_mask(pairs: Pairs, culture_weights: dict[str, float]) -> NDArray[np.bool_]:
    wanted = [c for c, name in enumerate(pairs.cultures) if culture_weights.get(name, 0.0) > 0]
    return np.isin(pairs.culture_codes, wanted)


def learned_shares(config: RunConfig, pairs: Pairs) -> NDArray[np.float64] | None:
    """(P,) the pairs' soft labels; None where each label is 1."""
    return vote_shares(pairs) if config.train.soft_labels else None


def training_fingerprint(config: RunConfig, data: PreferenceData) -> str:
    """Hash of the pairs that the run learns from, of what each is called, and of the shares where
    these are learned."""
    if config.how.learns_from_all and data.opinions is not None:
        return data.fingerprint
    weights = culture_weights_of(config, data)
    learned = dict.fromkeys(data.cultures, 1.0) if config.how.learns_from_all else weights
    pairs = data.train.take(cultures_mask(data.train, learned))
    present = sorted(name for name in pairs.cultures if learned.get(name, 0.0) > 0)
    numbers = np.array([present.index(n) if n in present else -1 for n in pairs.cultures])
    digest = hashlib.sha256(json.dumps(present).encode())
    for column in (
        data.texts.hashes[pairs.chosen],
        data.texts.hashes[pairs.rejected],
        numbers[pairs.culture_codes],
    ):
        digest.update(np.ascontiguousarray(column).tobytes())
    shares = learned_shares(config, pairs)
    if shares is not None:
        digest.update(shares.astype("<f8").tobytes())
    return digest.hexdigest()
