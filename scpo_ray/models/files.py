"""A model's folder: where it is, what must be in it, and the hash of what decides its rewards."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from scpo_ray.records import InputError
from scpo_ray.settings.model import ModelConfig
from scpo_ray.storage.disk import MANIFEST, check_folder

MODEL_FILE = "scpo_model.json"


def resolve_model_dir(config: ModelConfig) -> Path:
    """The folder with the model's files; a hub model is downloaded (or found in the hub's cache).

    Raises: InputError if there is no such model or its weights are not safetensors.
    """
    # Absolute, since saved adapters name their base model by it.
    folder = Path(config.path).absolute()
    if not folder.is_dir():
        folder = _download(config)
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise InputError(f"model.path = {config.path}: no config.json in it")
    if (folder / MODEL_FILE).is_file() and (folder / MANIFEST).exists():
        remedy = f"export or train it again; delete its {MANIFEST} if you changed it on purpose"
        check_folder(folder, remedy)
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(p.name for p in [*folder.glob("*.bin"), *folder.glob("*.pt")])
        found = (
            f"only pickle files ({', '.join(pickles)}), which can run code" if pickles else "none"
        )
        raise InputError(
            f"model.path = {config.path}: weights must be safetensors, found {found}",
            ["convert them, or name a model.revision that has *.safetensors"],
        )
    return folder


def _download(config: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                config.path,
                revision=config.revision,
                allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"],
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"model.path = {config.path}: neither a folder nor a hub model that can be fetched",
            [reason],
        ) from None


def model_fingerprint(folder: Path, config: ModelConfig) -> str:
    """Hash of what decides the rewards besides the renderer: weight files, config, layers kept."""
    digest = hashlib.sha256(f"num_layers={config.num_layers}".encode())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")]):
        if path.name == "tokenizer_config.json":
            continue
        state = path.stat()
        digest.update(path.name.encode() + _file_digest(path, state.st_size, state.st_mtime_ns))
    if (folder / "adapter_config.json").is_file():
        base = adapter_base(folder, config)
        digest.update(model_fingerprint(resolve_model_dir(base), base).encode())
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _file_digest(path: Path, size: int, modified_ns: int) -> bytes:
    """SHA-256 of a file; read once in this process while its size and time stay."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def adapter_base(folder: Path, config: ModelConfig) -> ModelConfig:
    try:
        document = json.loads((folder / "adapter_config.json").read_text())
        path = str(document["base_model_name_or_path"])
    except (ValueError, KeyError):
        raise InputError(f"{folder / 'adapter_config.json'}: names no base model") from None
    return config.model_copy(update={"path": path, "lora": None})
