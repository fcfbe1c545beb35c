"""What the commands for rewards in use do, without printing it."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from scpo_ray.data.files import first_rows
from scpo_ray.data.rows import Notes
from scpo_ray.models.merging import merge_models
from scpo_ray.records import InputError
from scpo_ray.report.overviews import FileScores, Steering
from scpo_ray.report.steering_page import write_steering_page
from scpo_ray.serve.choices import read_mix, read_models
from scpo_ray.serve.core import CultureRewards
from scpo_ray.serve.files import score_file
from scpo_ray.serve.items import HOWS, checked_mix
from scpo_ray.serve.networks import known_model
from scpo_ray.serve.parts import JSONL, PARQUET
from scpo_ray.serve.rows import Form, checked_asks
from scpo_ray.serve.sources import find_model
from scpo_ray.serve.steering import steer_file
from scpo_ray.settings.naming import MODEL_PREFIX, safe_name
from scpo_ray.storage.disk import whole_folder


@dataclass(frozen=True)
class Where:
    """Which models, as a user wrote them: "Chile=runs/...", and where they are loaded."""

    models: tuple[str, ...]
    base: str | None
    device: str | None
    dtype: str
    uri: str

    @property
    def by_culture(self) -> dict[str, tuple[str, ...]]:
        """Culture -> its models. Raises: InputError as `read_models`."""
        return read_models(self.models)

    @property
    def options(self) -> dict[str, Any]:
        """What `CultureRewards.load` takes beside the models."""
        return {
            "base": self.base,
            "device": self.device,
            "dtype": self.dtype,
            "tracking_uri": self.uri,
        }


def reward_file(
    where: Where,
    file: Path,
    output: Path | None,
    *,
    cultures: Sequence[str],
    mixes: Sequence[str],
    how: str,
    form: str,
    on_ray: bool,
) -> FileScores:
    """Writes a file's rewards beside its rows; see `score_file`.

    Args:
        output: None: beside the file, its name with ".rewards" before the ending.
        mixes: each as in "Chile=0.5,Mexico=0.5".
    """
    if how not in HOWS:
        raise InputError(f"--how {how}: must be one of {', '.join(HOWS)}")
    weights = [read_mix(mix, "--mix ") for mix in mixes]
    rewards = CultureRewards.load(where.by_culture, **where.options)
    asks = checked_asks(
        rewards.cultures,
        cultures,
        weights,
        how,
        cast(Form, form),
        has_cultures=any("culture" in row for row in first_rows(file, 1, Notes())),
    )
    score_parts = None
    if on_ray:
        # Ray takes seconds to load.
        from scpo_ray.serve.on_ray import scored_on_ray

        score_parts = partial(
            scored_on_ray, asks=asks, models=where.by_culture, options=where.options
        )
    return score_file(file, output or _beside(file), asks, rewards, score_parts)


def steer(
    where: Where, file: Path, output: Path, *, mixes: Sequence[str], how: str
) -> tuple[Steering, Path]:
    """Which of the candidates in a file each culture and mixture would pick, and the page of it.

    Raises: InputError as `steer_file`.
    """
    if how not in HOWS:
        raise InputError(f"--how {how}: must be one of {', '.join(HOWS)}")
    weights = [read_mix(mix, "--mix ") for mix in mixes]
    rewards = CultureRewards.load(where.by_culture, **where.options)
    found = steer_file(file, rewards, weights, how)
    return found, write_steering_page(found, f"{file.name}: who would get what", output)


def merge_by_weight(weighted: Sequence[str], folder: Path, uri: str) -> None:
    """Writes one model whose weights are the weighted sum of several models'.

    Args:
        weighted: each as in "runs/chile=0.5"; a model's folder, a registered version, or a
            culture, whose champion it is.

    Raises: InputError if the weights are no mixture, a model is not there, or they do not fit
        together: another base model, other texts to tokens, other layers.
    """
    if folder.exists():
        raise InputError(f"{folder}: exists; name a new folder")
    weights = read_mix(",".join(weighted), "")
    weights = checked_mix(weights, list(weights))
    with tempfile.TemporaryDirectory(prefix="scpo-models-") as downloads:
        known = {
            name: known_model(
                find_model(named_model(name), uri, Path(downloads)),
                base=None,
                batch_tokens=None,
            )
            for name in weights
        }
        for what, parts in (
            ("renderers", {n: m.renderer.fingerprint for n, m in known.items()}),
            ("base models", {n: m.network[1] for n, m in known.items() if m.base is not None}),
        ):
            if len(set(parts.values())) > 1:
                said = ", ".join(f"{name} {part[:12]}" for name, part in parts.items())
                raise InputError(f"models of different {what} cannot be merged", [said])
        with whole_folder(folder) as part:
            merge_models([(known[n].source.folder, w) for n, w in weights.items()], part)


def named_model(name: str) -> str:
    """What is no folder and no version is a culture, and means its champion."""
    if Path(name).exists() or re.search("[@:]", name):
        return name
    return f"{MODEL_PREFIX}{safe_name(name)}@champion"


def _beside(file: Path) -> Path:
    name = file.name.removesuffix(".gz")
    ending = JSONL if name.lower().endswith(JSONL) else PARQUET
    return file.with_name(f"{Path(name).stem}.rewards{ending}")
