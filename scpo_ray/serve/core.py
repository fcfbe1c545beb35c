"""The one scoring core: rewards of any texts, by any culture's model or a mixture of them."""

import hashlib
import logging
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scpo_ray.evaluation.mixtures import interval_over_models, linear, worst
from scpo_ray.evaluation.scales import reference_probabilities, standardised
from scpo_ray.models.rendering import RefusedTexts
from scpo_ray.models.reward_model import resolve_device
from scpo_ray.records import InputError, Text
from scpo_ray.serve.items import Asked, Reward, RewardItem, checked_item
from scpo_ray.serve.networks import KnownModel, Machine, Networks, known_model
from scpo_ray.serve.sources import find_model

log = logging.getLogger(__name__)

MAX_LOADED = 4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class _Scored:
    """One text by one culture's model; `standardised` and `probability` NaN without a scale."""

    raw: float
    standardised: float
    probability: float
    truncated: bool


class CultureRewards:
    """The rewards of several cultures' models, of one culture or of a mixture at a time.

    Adapters on one base model share a network, and a forward pass where its layers allow; whole
    models are in memory a few at a time. Every road gives the rewards that the run's own scoring
    gives, up to rounding. Several threads may ask; one of them at a time is served.
    """

    def __init__(
        self,
        cultures: Mapping[str, Sequence[str]],
        models: Mapping[str, KnownModel],
        machine: Machine,
        *,
        max_loaded: int,
    ) -> None:
        """`cultures`: culture -> names of its models in `models`."""
        self._members = {culture: tuple(names) for culture, names in cultures.items()}
        self._models = dict(models)
        self._networks = Networks(models, machine, max_loaded=max_loaded)
        self._dtype = machine.dtype
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        models: Mapping[str, str | Sequence[str]],
        *,
        base: str | None = None,
        device: str | None = None,
        dtype: str = "float32",
        tracking_uri: str | None = None,
        max_loaded: int = MAX_LOADED,
        batch_tokens: int | None = None,
    ) -> "CultureRewards":
        """Finds every model and checks it, and loads as many networks as stay in memory.

        Args:
            models: culture -> a run's folder, an exported folder, or a registered model as in
                "scpo-Chile@champion", "scpo-Chile:3"; or several of them (seeds), whose mean is
                the culture's reward, with an interval.
            base: the base model of adapters, where it is not where their folders say.
            device: a torch device; None: a GPU if there is one.
            dtype: "float32", "bfloat16" or "float16", what weights are kept in.
            tracking_uri: MLflow store of registered models.
            max_loaded: networks in memory; adapters on one base are one.
            batch_tokens: tokens per forward pass; None: what fits the device, as a run's.

        Raises: InputError, one for all models, naming each that is not there, is damaged, or whose
            adapters are of another base model.
        """
        if not models:
            raise InputError("models: must name a model for at least 1 culture")
        if max_loaded < 1:
            raise InputError(f"max_loaded = {max_loaded}: must be at least 1")
        if dtype not in DTYPES:
            raise InputError(f"dtype = {dtype!r}: must be one of {', '.join(DTYPES)}")
        machine = Machine(checked_device(device), DTYPES[dtype])
        # What a store keeps elsewhere: networks are loaded from there when they are asked for.
        downloads = tempfile.mkdtemp(prefix="scpo-models-")
        known, problems, cultures = {}, [], dict[str, list[str]]()
        for culture, named in models.items():
            for number, asked in enumerate([named] if isinstance(named, str) else named):
                # No culture's name has a line's end in it.
                name = f"{culture}\n{number}"
                cultures.setdefault(culture, []).append(name)
                try:
                    source = find_model(asked, tracking_uri, Path(downloads))
                    known[name] = known_model(source, base=base, batch_tokens=batch_tokens)
                except InputError as error:
                    problems.append(": ".join([culture, error.title, *error.problems]))
        if problems:
            shutil.rmtree(downloads)
            raise InputError("models that cannot be used", problems)
        rewards = cls(cultures, known, machine, max_loaded=max_loaded)
        weakref.finalize(rewards, shutil.rmtree, downloads, ignore_errors=True)
        for network in list(dict.fromkeys(m.network for m in known.values()))[:max_loaded]:
            rewards._networks.get(network)
        return rewards

    @property
    def cultures(self) -> tuple[str, ...]:
        return tuple(self._members)

    @property
    def sources(self) -> dict[str, str]:
        """Culture -> its model: a registered version as "scpo-Chile:3", or a folder; of several,
        all of them."""
        return {
            culture: ", ".join(self._source(name) for name in names)
            for culture, names in self._members.items()
        }

    def _source(self, name: str) -> str:
        source = self._models[name].source
        return source.version or str(source.folder)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Culture -> hash of what decides its rewards, their scale included."""
        found = {}
        for culture, names in self._members.items():
            models = [self._models[name] for name in names]
            of_each = [
                (m.fingerprint, m.renderer.fingerprint, m.scale, m.temperatures) for m in models
            ]
            decided = (of_each, self._dtype)
            found[culture] = hashlib.sha256(repr(decided).encode()).hexdigest()
        return found

    def has_scale(self, culture: str) -> bool:
        """Whether the culture's rewards can be standardised, and so be in a mixture."""
        return all(self._models[name].scale is not None for name in self._members[culture])

    def temperature(self, culture: str) -> float:
        """Reward units of the culture's win probabilities; 1, as in training, if not fitted."""
        models = [self._models[name] for name in self._members[culture]]
        return float(np.mean([model.temperatures.get(culture, 1.0) for model in models]))

    def rewards(self, items: Sequence[RewardItem]) -> list[Reward]:
        """One reward per item, in their order.

        Raises: InputError naming each item that is at fault (of the first 20), a model whose
            rewards are not finite, or models that no mixture can hold.
        """
        asked = self._checked(items)
        scored = self._scored(asked)
        return [self._reward(each, scored) for each in asked]

    def _checked(self, items: Sequence[RewardItem]) -> list[Asked]:
        if not items:
            raise InputError("items: must hold at least 1 item")
        asked, problems = [], []
        for number, item in enumerate(items):
            try:
                asked.append(checked_item(item, self.cultures))
            except InputError as error:
                problems.append(f"item {number}: " + ": ".join([error.title, *error.problems]))
        if problems:
            more = [f"and {len(problems) - 20} more"] if problems[20:] else []
            raise InputError("items that cannot be scored", [*problems[:20], *more])
        mixed = [each for each in asked if each.how is not None]
        self.check_mixtures([[culture for culture, _ in each.weights] for each in mixed])
        return asked

    def check_mixtures(self, mixtures: Sequence[Sequence[str]]) -> None:
        """Raises: InputError if the rewards of a mixture's models cannot be put together; what
        all mixtures lack is said once.

        Args:
            mixtures: each one's cultures.
        """
        cultures = dict.fromkeys(culture for mixture in mixtures for culture in mixture)
        bare = [culture for culture in cultures if not self.has_scale(culture)]
        if bare:
            raise InputError(
                f"mix: no scale in the model of {', '.join(bare)}",
                ["scpo scale FOLDER... FILE makes them: a mixture is of standardised rewards"],
            )
        for mixture in dict.fromkeys(map(tuple, mixtures)):
            self._check_alike(mixture)

    def _check_alike(self, cultures: Sequence[str]) -> None:
        models = [(c, self._models[name]) for c in cultures for name in self._members[c]]
        for what, parts in (
            ("renderers", [(c, m.renderer.fingerprint) for c, m in models]),
            ("reference texts", [(c, m.scale.references) for c, m in models if m.scale]),
        ):
            if len({part for _, part in parts}) > 1:
                said = ", ".join(f"{culture} {part[:12]}" for culture, part in parts)
                raise InputError(f"mix: models of different {what}", [said])

    def _scored(self, asked: Sequence[Asked]) -> dict[tuple[str, Text], _Scored]:
        """(model, text) -> what the model says of it, each computed once."""
        wanted: dict[str, dict[Text, None]] = {}
        for each in asked:
            for culture, _ in each.weights:
                for name in self._members[culture]:
                    wanted.setdefault(name, {})[each.text] = None
        by_network: dict[tuple[str, ...], list[str]] = {}
        for name in wanted:
            by_network.setdefault(self._models[name].network, []).append(name)
        scored: dict[tuple[str, Text], _Scored] = {}
        with self._lock:
            for network in self._networks.loaded_first(by_network):
                names = by_network[network]
                scored |= self._scored_by(network, {n: list(wanted[n]) for n in names})
        return scored

    def _scored_by(
        self, network: tuple[str, ...], wanted: Mapping[str, Sequence[Text]]
    ) -> dict[tuple[str, Text], _Scored]:
        texts = list(dict.fromkeys(text for of in wanted.values() for text in of))
        places = {text: place for place, text in enumerate(texts)}
        rows = [(name, text) for name, of in wanted.items() for text in of]
        renderer = self._models[rows[0][0]].renderer
        try:
            tokens = renderer.encode(texts)
        except RefusedTexts as refused:
            problems = [
                f"prompt {texts[place].prompt[:60]!r}: {reason}"
                for place, reason in list(refused.reasons.items())[:20]
            ]
            raise InputError(f"{len(refused.reasons)} texts cannot be rendered", problems) from None
        ids = np.array([places[text] for _, text in rows], dtype=np.int64)
        raw = self._networks.get(network)(tokens, ids, [name for name, _ in rows])
        self._check_finite(raw, rows)
        found: dict[tuple[str, Text], _Scored] = {}
        ends = np.cumsum([len(of) for of in wanted.values()])
        for (name, of), end in zip(wanted.items(), ends.tolist(), strict=True):
            mine, scale = raw[end - len(of) : end], self._models[name].scale
            z = probabilities = np.full(len(of), np.nan)
            if scale is not None:
                z = standardised(mine, scale)
                probabilities = reference_probabilities(mine, scale)
            columns = (mine, z, probabilities, tokens.truncated[[places[text] for text in of]])
            for text, *said in zip(of, *(column.tolist() for column in columns), strict=True):
                found[name, text] = _Scored(*said)
        return found

    def _check_finite(self, raw: NDArray[np.float32], rows: Sequence[tuple[str, Text]]) -> None:
        broken = np.flatnonzero(~np.isfinite(raw)).tolist()
        if broken:
            name, text = rows[broken[0]]
            culture = name.partition("\n")[0]
            raise InputError(
                f"{culture}: {self._source(name)} gives rewards that are not finite",
                [f"to {len(broken)} of {len(rows)} texts, the first: {text.prompt[:60]!r}"],
            )

    def _reward(self, each: Asked, scored: Mapping[tuple[str, Text], _Scored]) -> Reward:
        parts = [
            [scored[name, each.text] for name in self._members[culture]]
            for culture, _ in each.weights
        ]
        cut = any(said.truncated for of in parts for said in of)
        weights = [weight for _, weight in each.weights]
        raw = [[said.raw for said in of] for of in parts]
        z = [[said.standardised for said in of] for of in parts]
        probabilities = [[said.probability for said in of] for of in parts]
        mean = float(linear([np.mean(of) for of in z], weights))
        share = float(linear([np.mean(of) for of in probabilities], weights))
        if each.how is None:
            value, has_scale = float(np.mean(raw[0])), self.has_scale(each.name)
            low, high = interval_over_models(raw, weights) or (None, None)
            z_mean, beats = (mean, share) if has_scale else (None, None)
            return Reward(each.name, value, z_mean, beats, low, high, cut)
        if each.how == "people":
            low, high = interval_over_models(probabilities, weights) or (None, None)
            return Reward(each.name, share, mean, share, low, high, cut)
        if each.how == "worst":
            of_worst = min(z, key=lambda of: float(np.mean(of)))
            lowest = float(worst([np.mean(of) for of in z]))
            low, high = interval_over_models([of_worst], [1.0]) or (None, None)
            return Reward(each.name, lowest, lowest, share, low, high, cut)
        low, high = interval_over_models(z, weights) or (None, None)
        return Reward(each.name, mean, mean, share, low, high, cut)


def checked_device(device: str | None) -> str:
    """The torch device. Raises: InputError if there is none of that name here."""
    if device is None:
        return resolve_device("auto")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"device = {device}: cannot be used on this machine", [reason]) from None
    return device
