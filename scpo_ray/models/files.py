"""A model's folder: where it is, what must be in it, and the hash of what decides its rewards."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from scpo_ray.models.pickles import conversion_record, converted, indexed_files, pickle_files
from scpo_ray.records import InputError
from scpo_ray.settings.model import ModelConfig
from scpo_ray.settings.shown import password_fault
from scpo_ray.storage.disk import MANIFEST, check_folder, digest_once

MODEL_FILE = "scpo_model.json"
CALIBRATION_FILE = "scpo_calibration.json"
BASE_FINGERPRINT = "base_fingerprint"
"""In `MODEL_FILE`, of adapters: their base model's."""

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
_WEIGHTS, _INDEX, _ADAPTERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
)
# Counts up when the same files would give other rewards: stored ones are then void.
_READING_RULES = 2
_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]


def hub_address() -> tuple[str, bool]:
    """Where models and data sets by name come from, and whether the hub is not to be asked."""
    from huggingface_hub import constants

    return constants.ENDPOINT, constants.HF_HUB_OFFLINE


def resolve_model_dir(config: ModelConfig, cache: Path | None = None) -> Path:
    """The folder with the model's files; a hub model is downloaded (or found in the hub's cache).

    Args:
        cache: where weights that are pickles are kept as safetensors, if `config.convert_pickle`.

    Raises: InputError if there is no such model or its weights are not safetensors.
    """
    # Absolute, since saved adapters name their base model by it.
    folder = Path(config.path).absolute()
    # Unlike Path's, this takes what is too long for a path for no folder.
    if not os.path.isdir(folder):
        folder = _download(config)
    if not (folder / CONFIG).is_file() and not (folder / ADAPTER_CONFIG).is_file():
        raise InputError(f"model.path = {config.path}: no config.json in it")
    if (folder / MODEL_FILE).is_file() and (folder / MANIFEST).exists():
        remedy = f"export or train it again; delete its {MANIFEST} if you changed it on purpose"
        check_folder(folder, remedy)
    if weight_files(folder):
        return folder
    pickles = pickle_files(folder)
    if pickles and config.convert_pickle and cache is not None:
        return converted(folder, pickles, cache, with_code=config.trust_remote_code)
    found = ", ".join(p.name for p in pickles)
    found = f"only pickle files ({found}), which can run code" if found else "none"
    remedies = ["convert them, or name a model.revision that has *.safetensors"]
    if pickles and cache is not None:
        remedies.append("or set model.convert_pickle to true: tensors alone are read from them")
    raise InputError(
        f"model.path = {config.path}: weights must be safetensors, found {found}", remedies
    )


def _download(config: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*_PATTERNS, "*.bin"] if config.convert_pickle else _PATTERNS
    try:
        return Path(
            snapshot_download(config.path, revision=config.revision, allow_patterns=patterns)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"model.path = {config.path}: neither a folder nor a hub model that can be fetched",
            [reason],
        ) from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model or its adapters, and no others; none if none.

    Raises: InputError if the index cannot be read, points out of the folder or to no file.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        return [path for path in [folder / _ADAPTERS] if path.is_file()]
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    index = folder / _INDEX
    if not index.is_file():
        return []
    return [folder / name for name in indexed_files(index)]


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight in the folder's files, read from their headers.

    Raises: InputError if a file cannot be read.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        except (SafetensorError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"model.path = {folder}: the weights cannot be loaded", [f"{path.name}: {reason}"]
            ) from None
    return shapes


def model_fingerprint(folder: Path, config: ModelConfig, cache: Path | None = None) -> str:
    """Hash of what decides the rewards besides the renderer and the dtype.

    That is the weight files wherever an index points, config.json, the layers kept and, of
    adapters, their own files and their base model's fingerprint.

    Args:
        cache: as in `resolve_model_dir`.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return str(_files_digest(folder, config).hexdigest())
    base = model_fingerprint(*resolved_base(folder, config, cache), cache)
    return adapters_fingerprint(folder, config, base)


def adapters_fingerprint(folder: Path, config: ModelConfig, base: str) -> str:
    """The same of adapters on a base model with that fingerprint."""
    digest = _files_digest(folder, config)
    digest.update(base.encode())
    return str(digest.hexdigest())


def _files_digest(folder: Path, config: ModelConfig) -> Any:
    decided = {"rules": _READING_RULES, "num_layers": config.num_layers}
    digest = hashlib.sha256(json.dumps(decided).encode())
    settings = [path for path in (folder / CONFIG, folder / ADAPTER_CONFIG) if path.is_file()]
    for path in [*settings, *weight_files(folder)]:
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(bytes.fromhex(digest_once(path)))
    return digest


def base_fingerprint(base: ModelConfig) -> str:
    """The same of a base model, however many of its layers the adapters' model keeps."""
    whole = base.model_copy(update={"num_layers": None})
    return model_fingerprint(resolve_model_dir(whole), whole)


def known_base_fingerprint(folder: Path) -> str | None:
    """What a folder of adapters says of the base model that they were trained on."""
    try:
        found = json.loads((folder / MODEL_FILE).read_text()).get(BASE_FINGERPRINT)
    except (OSError, ValueError, RecursionError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def conversion_of(folder: Path, config: ModelConfig, cache: Path | None) -> dict[str, str]:
    """As `conversion_record`, of the model or, if it is adapters, of the model they belong to."""
    if (folder / ADAPTER_CONFIG).is_file():
        folder, _ = resolved_base(folder, config, cache)
    return conversion_record(folder)


def resolved_base(
    folder: Path, config: ModelConfig, cache: Path | None
) -> tuple[Path, ModelConfig]:
    """Folder and settings of the model that saved adapters belong to.

    Raises: InputError if none is named, if it is adapters itself, or as `resolve_model_dir`.
    """
    base = adapter_base(folder, config)
    base_dir = resolve_model_dir(base, cache)
    if (base_dir / ADAPTER_CONFIG).is_file():
        raise InputError(
            f"{folder / ADAPTER_CONFIG}: its base model {base.path} is adapters itself",
            ["merge those into their own base model, and name that"],
        )
    return base_dir, base


def adapter_base(folder: Path, config: ModelConfig) -> ModelConfig:
    """Settings of the model that saved adapters belong to. Raises: InputError if none is named."""
    document = adapter_settings(folder)
    path = document.get("base_model_name_or_path")
    if not isinstance(path, str) or not path:
        raise InputError(f"{folder / ADAPTER_CONFIG}: names no base model")
    fault = password_fault(path)
    if fault is not None:
        raise InputError(f"{folder / ADAPTER_CONFIG}: base_model_name_or_path {fault}")
    changed = {"path": path, "revision": document.get("revision"), "lora": None}
    return config.model_copy(update=changed)


def adapter_settings(folder: Path) -> dict[str, Any]:
    """What adapter_config.json says. Raises: InputError if it cannot be read."""
    try:
        document = json.loads((folder / ADAPTER_CONFIG).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder / ADAPTER_CONFIG}: cannot be read", [str(error)]) from None
    if not isinstance(document, dict):
        raise InputError(f"{folder / ADAPTER_CONFIG}: must be an object")
    return document
