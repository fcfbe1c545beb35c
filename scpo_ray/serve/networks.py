"""The networks that give cultures' rewards: shared where models are adapters, few at a time."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scpo_ray.models.adapted import load_adapted
from scpo_ray.models.export import exported_config, saved_temperatures
from scpo_ray.models.files import (
    ADAPTER_CONFIG,
    adapter_base,
    adapters_fingerprint,
    base_fingerprint,
    known_base_fingerprint,
    model_fingerprint,
    resolve_model_dir,
)
from scpo_ray.models.loading import load_reward_model
from scpo_ray.models.rendering import Renderer, load_renderer
from scpo_ray.models.scoring import score_tokens
from scpo_ray.records import InputError, Tokens
from scpo_ray.results import Scale
from scpo_ray.serve.sources import ModelSource
from scpo_ray.settings.model import ModelConfig
from scpo_ray.storage.scale_file import load_scale

log = logging.getLogger(__name__)

Score = Callable[[Tokens, NDArray[np.int64], Sequence[str]], NDArray[np.float32]]
"""(R,) rewards of texts, each by the model that is named beside it; of a network in memory."""


@dataclass(frozen=True)
class KnownModel:
    """A model that is whole and can be loaded. `fingerprint`: as `model_fingerprint`.

    `temperatures`: culture -> reward units of the win probabilities, where they were fitted.
    `network`: models with the same one share a network in memory: adapters on one base model, or
    the very same model. `base` is None where the model is no adapters.
    """

    source: ModelSource
    section: ModelConfig
    base: ModelConfig | None
    renderer: Renderer
    scale: Scale | None
    temperatures: dict[str, float]
    network: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True)
class Machine:
    """Where networks are loaded, and in what their weights are kept."""

    device: str
    dtype: torch.dtype


def known_model(source: ModelSource, *, base: str | None, batch_tokens: int | None) -> KnownModel:
    """Reads all of a model but its weights.

    Args:
        base: the base model of adapters, where it is not what their folder says.

    Raises: InputError if the folder is damaged, its base model is not there, or is not the one
        that the adapters were trained on.
    """
    section = exported_config(source.folder)
    if batch_tokens is not None:
        section = section.model_copy(update={"inference_batch_tokens": batch_tokens})
    folder = resolve_model_dir(section)
    renderer = load_renderer(folder, section)
    scale, temperatures = load_scale(folder), saved_temperatures(folder) or {}
    if not (folder / ADAPTER_CONFIG).is_file():
        fingerprint = model_fingerprint(folder, section)
        whole = ("whole", fingerprint, renderer.fingerprint)
        return KnownModel(source, section, None, renderer, scale, temperatures, whole, fingerprint)
    named = adapter_base(folder, section)
    if base is not None:
        named = named.model_copy(update={"path": base, "revision": None})
    base_found = _base_of(folder, source, named)
    kept = str(section.num_layers), section.dtype
    network = ("adapters", base_found, *kept, renderer.fingerprint)
    fingerprint = adapters_fingerprint(folder, section, base_found)
    return KnownModel(source, section, named, renderer, scale, temperatures, network, fingerprint)


def _base_of(folder: Path, source: ModelSource, base: ModelConfig) -> str:
    """The base model's fingerprint. Raises: InputError if it is not what the adapters fit."""
    try:
        found = base_fingerprint(base)
    except InputError as error:
        problems = [*error.problems, "base = names the base model of adapters, where it has moved"]
        raise InputError(f"{source.asked}: its base model: {error.title}", problems) from None
    trained_on = known_base_fingerprint(folder)
    if trained_on is None:
        log.warning(
            "%s: does not say which base model it was trained on: %s is taken as it is",
            *(source.asked, base.path),
        )
    elif trained_on != found:
        raise InputError(
            f"{source.asked}: adapters of another base model than {base.path}",
            [f"trained on {trained_on[:12]}, {base.path} is {found[:12]}"],
        )
    return found


class Networks:
    """The networks of some models, at most `max_loaded` in memory: the one whose last use is
    longest ago leaves first."""

    def __init__(
        self, models: Mapping[str, KnownModel], machine: Machine, *, max_loaded: int
    ) -> None:
        self._models = dict(models)
        self._machine = machine
        self._max_loaded = max_loaded
        self._loaded: OrderedDict[tuple[str, ...], Score] = OrderedDict()

    @property
    def num_loaded(self) -> int:
        return len(self._loaded)

    def loaded_first(self, wanted: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """In the order that loads least: what is in memory is used before it may leave."""
        return sorted(wanted, key=lambda network: network not in self._loaded)

    def get(self, network: tuple[str, ...]) -> Score:
        """The network, loaded if it is not in memory. Raises: InputError if it cannot be."""
        if network not in self._loaded:
            while len(self._loaded) >= self._max_loaded:
                self._loaded.popitem(last=False)
            self._loaded[network] = self._load(network)
        self._loaded.move_to_end(network)
        return self._loaded[network]

    def _load(self, network: tuple[str, ...]) -> Score:
        of_it = {name: m for name, m in self._models.items() if m.network == network}
        first, machine = next(iter(of_it.values())), self._machine
        if first.base is None:
            model = load_reward_model(
                resolve_model_dir(first.section),
                first.section,
                first.renderer,
                device=machine.device,
                seed=0,
            )
            model.network.to(machine.dtype)
            return lambda tokens, ids, models: score_tokens(model, tokens, text_ids=ids)
        saved = {name: (resolve_model_dir(m.section), m.section) for name, m in of_it.items()}
        adapted = load_adapted(saved, first.base, first.renderer, device=machine.device)
        # Weights in 4 bits stay so: what adapters learned is a change of these.
        if adapted.model.dtype_name != "nf4":
            adapted.model.network.to(machine.dtype)
        return adapted.rewards
