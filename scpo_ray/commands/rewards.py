"""What the commands for rewards in use do, without printing it."""

import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from scpo_ray.data.files import first_rows
from scpo_ray.data.rows import Notes
from scpo_ray.evaluation.scales import scale_of, spread_texts
from scpo_ray.models.export import load_exported
from scpo_ray.models.files import MODEL_FILE
from scpo_ray.models.merging import merge_models
from scpo_ray.models.scoring import score_texts
from scpo_ray.records import InputError
from scpo_ray.report.overviews import FileScores, Steering
from scpo_ray.report.steering_page import write_steering_page
from scpo_ray.results import Scale
from scpo_ray.serve.choices import read_mix, read_models
from scpo_ray.serve.core import CultureRewards, checked_device
from scpo_ray.serve.files import Gained, file_texts, score_file, scored_here
from scpo_ray.serve.items import HOWS, checked_mix
from scpo_ray.serve.networks import known_model
from scpo_ray.serve.parts import JSONL, PARQUET, PART_ROWS
from scpo_ray.serve.rows import Form, checked_asks
from scpo_ray.serve.sources import find_model
from scpo_ray.serve.steering import steer_file
from scpo_ray.settings.naming import MODEL_PREFIX, safe_name
from scpo_ray.storage.disk import whole_folder
from scpo_ray.storage.scale_file import save_scale

RAY_ROWS = 100_000
"""Rows of a file beyond which Ray Data scores them; below it its start costs more than it saves."""


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
    on_ray: bool | None,
) -> FileScores:
    """Writes a file's rewards beside its rows; see `score_file`.

    Args:
        output: None: beside the file, its name with ".rewards" before the ending.
        mixes: each as in "Chile=0.5,Mexico=0.5".
        on_ray: None: where more than `RAY_ROWS` rows are to be scored.
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
        has_seeds=any(len(named) > 1 for named in where.by_culture.values()),
    )

    def score_parts(files: Sequence[Path]) -> Iterable[tuple[int, Gained]]:
        if on_ray or (on_ray is None and len(files) * PART_ROWS > RAY_ROWS):
            # Ray takes seconds to load.
            from scpo_ray.serve.on_ray import scored_on_ray

            return scored_on_ray(files, asks, where.by_culture, where.options)
        return scored_here(files, asks, rewards)

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


def scale_models(folders: Sequence[Path], file: Path, device: str | None) -> list[Scale]:
    """Writes into models' folders the scales that their rewards of a file's responses make.

    Of more than `NUM_REFERENCES` distinct responses those that a run's own scale would be of. A
    scale that is there is replaced: models in one mixture are scaled on the same texts.

    Args:
        folders: exported or merged models; a run's own model stays as it was trained.
        file: rows with prompt, and response or responses.

    Raises: InputError for what is no such folder, naming the rows at fault, or if a model's rewards
        are not finite or all the same.
    """
    bare = [str(folder) for folder in folders if not (folder / MODEL_FILE).is_file()]
    if bare:
        raise InputError(
            f"{', '.join(bare)}: no exported or merged model",
            ["a run's model: scpo export RUN FOLDER, and name that folder"],
        )
    texts, references = spread_texts(file_texts(file))
    scales = []
    for folder in folders:
        model = load_exported(folder, device=checked_device(device))
        try:
            scales.append(scale_of(score_texts(model, texts), references))
        except ValueError as error:
            raise InputError(f"{folder}: no scale on {file.name}", [str(error)]) from None
    for folder, scale in zip(folders, scales, strict=True):
        save_scale(folder, scale)
    return scales


def named_model(name: str) -> str:
    """What is no folder and no version is a culture, and means its champion."""
    if Path(name).exists() or re.search("[@:]", name):
        return name
    return f"{MODEL_PREFIX}{safe_name(name)}@champion"


def _beside(file: Path) -> Path:
    name = file.name.removesuffix(".gz")
    ending = JSONL if name.lower().endswith(JSONL) else PARQUET
    return file.with_name(f"{Path(name).stem}.rewards{ending}")
