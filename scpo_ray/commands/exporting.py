"""A run's model into a folder of its own: tried with other tools, described, and on the hub."""

import logging
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scpo_ray.models.adapters import merged_adapters
from scpo_ray.models.compatible import padding_of, rewrite
from scpo_ray.models.elsewhere import Tool, ToolCheck, check_tools
from scpo_ray.models.export import load_exported, save_reward_model
from scpo_ray.models.files import ADAPTER_CONFIG, CALIBRATION_FILE, CONFIG
from scpo_ray.models.hub import check_portable
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.records import InputError, Text
from scpo_ray.report.card import model_card
from scpo_ray.results import RunResult
from scpo_ray.storage.disk import whole_folder
from scpo_ray.storage.run_dir import load_result, trained_model_dir
from scpo_ray.storage.scale_file import SCALE_FILE, load_scale
from scpo_ray.tracking.registry import fetch_run, registered_name

log = logging.getLogger(__name__)

CARD = "README.md"
_SNAPSHOT = re.compile(r".*/models--(?P<name>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})/?")
# Beside the run's own, so that there are some where it shows none. None is empty: transformers
# reads an empty second text as none where it is given one pair, as one where it is given several.
_PROBES = (
    Text((), "What should I cook tonight?", "A pot of lentil soup."),
    Text((), "¿Qué cocino? 今晚吃什么？ 🍲", "Lo que quieras, ¡buen provecho!"),
)
_MOST_PROBES = 24


def export_model(
    run: str, folder: Path, *, uri: str, merge: bool, push: str | None = None
) -> tuple[RewardModel, RunResult]:
    """Writes a run's model as a plain Hugging Face folder, with a card that says what it is.

    Args:
        run: an ended run's folder, or a registered version, as in "scpo-Chile:champion".
        uri: MLflow store of registered versions.
        push: where on the hub it will go: what nobody else could load is refused first.

    Returns: the model, as it scores here, and the result of its run.
    Raises: InputError if the run has not ended or has no model, `folder` exists, or there is
        nothing to merge.
    """
    if folder.exists():
        raise InputError(f"{folder}: exists; name a new folder")
    with tempfile.TemporaryDirectory() as downloads:
        model_dir, result = _ended(run, uri, Path(downloads))
        return _export(model_dir, result, folder, merge=merge, push=push), result


def _ended(run: str, uri: str, downloads: Path) -> tuple[Path, RunResult]:
    registered = None if Path(run).exists() else registered_name(run)
    if registered is not None:
        return fetch_run(uri, registered, downloads)
    return trained_model_dir(Path(run)), load_result(Path(run))


def _export(
    model_dir: Path, result: RunResult, folder: Path, *, merge: bool, push: str | None
) -> RewardModel:
    scale = load_scale(model_dir)
    model = load_exported(model_dir, device="cpu")
    if merge:
        model = merged_adapters(model)
    with whole_folder(folder) as part:
        save_reward_model(model, part)
        rewrite(part / ADAPTER_CONFIG, _base_by_its_name)
        for name in (CALIBRATION_FILE, SCALE_FILE):
            if (model_dir / name).is_file():
                shutil.copy(model_dir / name, part)
        if scale is not None:
            # By these OpenRLHF standardises rewards.
            rewrite(part / CONFIG, lambda d: d | {"mean": scale.mean, "std": scale.spread})
        card = model_card(
            result,
            style=model.renderer.style,
            folder=push or folder.name,
            scale=scale,
            is_adapters=(part / ADAPTER_CONFIG).is_file(),
        )
        (part / CARD).write_text(card, encoding="utf-8")
        if push is not None:
            check_portable(part)
    _warn_of_readers(model, folder)
    return model


def _base_by_its_name(document: dict[str, Any]) -> dict[str, Any]:
    """Adapters of a model of the hub name it, and not where this machine keeps it."""
    found = _SNAPSHOT.fullmatch(str(document["base_model_name_or_path"]))
    if found is None:
        return document
    name = found["name"].replace("--", "/", 1)
    return document | {"base_model_name_or_path": name, "revision": found["revision"]}


def _warn_of_readers(model: RewardModel, folder: Path) -> None:
    padding = padding_of(model.renderer, model.scored.plain)
    if padding is None:
        log.warning(
            "%s: the tokenizer has no token to pad with: transformers scores one text at a time",
            folder,
        )
    elif padding.hides_end and model.renderer.style == "chat":
        log.warning(
            "%s: its texts end in %s, which its config pads with: transformers and TRL read the "
            "reward before it, as here; vLLM, SGLang and OpenRLHF read it there, another number",
            folder,
            padding.token,
        )


def check_export(
    model: RewardModel, result: RunResult, folder: Path, tools: Sequence[Tool]
) -> list[ToolCheck]:
    """An exported folder with other tools, on texts of the run and some of no run.

    Args:
        model, result: as `export_model` returned them.
    """
    return check_tools(model, folder, _probe_texts(result), tools)


def _probe_texts(result: RunResult) -> list[Text]:
    shown = [
        Text((), pair.prompt, response)
        for pair in result.examples
        for response in (pair.chosen, pair.rejected)
    ]
    return list(dict.fromkeys([*_PROBES, *shown]))[:_MOST_PROBES]
