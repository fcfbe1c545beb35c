"""The models that a server is told to serve, and the versions that their aliases name now."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from scpo_ray.serve.choices import models_in
from scpo_ray.serve.core import CultureRewards
from scpo_ray.serve.service import Source
from scpo_ray.settings.naming import MODEL_PREFIX
from scpo_ray.settings.serve import ServeConfig
from scpo_ray.tracking.mlflow_store import open_models

_ALIAS = re.compile(r"(?P<name>[\w.-]+)[@:](?P<alias>[A-Za-z][\w.-]*)")
"""As in "scpo-Chile@champion"; a version's number moves nowhere."""


def culture_source(
    models: Mapping[str, Sequence[str]],
    base: str | None,
    tracking_uri: str | None,
    config: ServeConfig,
    device: str,
) -> Source:
    """The scoring core with these models, as `CultureRewards.load` takes them."""

    def load(resolved: Mapping[str, str]) -> CultureRewards:
        return CultureRewards.load(
            {culture: models_in(named) for culture, named in resolved.items()},
            base=base,
            device=device,
            dtype=config.dtype,
            tracking_uri=tracking_uri,
            max_loaded=config.max_loaded,
            batch_tokens=config.batch_tokens,
        )

    return Source(lambda: resolved_models(models, tracking_uri), load)


def resolved_models(
    models: Mapping[str, Sequence[str]], tracking_uri: str | None
) -> dict[str, str]:
    """Culture -> its models with commas between, and of an alias the number it stands at.

    Raises: InputError if the store cannot be used. A name that is not in it stays, for the core.
    """
    moving = {
        model: found
        for named in models.values()
        for model in named
        if not Path(model).exists() and (found := _ALIAS.fullmatch(model))
    }
    numbers: dict[str, str] = {}
    if moving and tracking_uri is not None:
        _, aliases = open_models(tracking_uri, MODEL_PREFIX)
        for model, found in moving.items():
            number = aliases.get(found["name"], {}).get(found["alias"])
            if number is not None:
                numbers[model] = f"{found['name']}:{number}"
    return {
        culture: ",".join(numbers.get(model, model) for model in named)
        for culture, named in models.items()
    }
