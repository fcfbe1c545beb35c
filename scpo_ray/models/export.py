"""A trained model as a Hugging Face folder, and back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from scpo_ray.models.files import (
    ADAPTER_CONFIG,
    BASE_FINGERPRINT,
    MODEL_FILE,
    adapter_base,
    base_fingerprint,
    resolve_model_dir,
)
from scpo_ray.models.loading import load_reward_model
from scpo_ray.models.rendering import load_renderer
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.records import InputError
from scpo_ray.settings.model import ModelConfig


def save_reward_model(
    model: RewardModel, folder: Path, *, weights: dict[str, Tensor] | None = None
) -> None:
    """Writes a Hugging Face folder: safetensors weights (or adapters), tokenizer, renderer.

    Older versions of transformers read it too (4.45 was tried).

    Args:
        weights: all the network's weights by name, where the network itself holds but a part.
    """
    model.network.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
    # Of the template's two places the older one is read by every version.
    model.renderer.tokenizer.save_pretrained(folder, save_jinja_files=False)
    _rewrite(folder / "tokenizer_config.json", _tokenizer_settings)
    _rewrite(folder / "tokenizer.json", lambda d: d | {"truncation": None, "padding": None})
    _rewrite(folder / "config.json", _with_older_names)
    settings: Any = model.network.config
    document = {
        "renderer": model.renderer.style,
        "max_length": model.renderer.max_length,
        "num_layers": settings.get_text_config().num_hidden_layers,
    }
    if (folder / ADAPTER_CONFIG).is_file():
        document[BASE_FINGERPRINT] = base_fingerprint(adapter_base(folder, ModelConfig()))
    (folder / MODEL_FILE).write_text(json.dumps(document) + "\n")


def _rewrite(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    if file.is_file():
        document = change(json.loads(file.read_text(encoding="utf-8")))
        text = json.dumps(document, indent=2, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")


def _tokenizer_settings(document: dict[str, Any]) -> dict[str, Any]:
    """Without what only the newest transformers knows, and without how this copy was loaded."""
    settings = {k: v for k, v in document.items() if k not in ("is_local", "local_files_only")}
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return settings


def _with_older_names(document: dict[str, Any]) -> dict[str, Any]:
    """With the names that versions before 5 read rotary positions and the dtype from."""
    older: dict[str, Any] = {}
    if "dtype" in document:
        older["torch_dtype"] = document["dtype"]
    rope = document.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        kind = rope.get("rope_type", "default")
        scaling = {
            k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")
        }
        older |= {
            "rope_theta": rope["rope_theta"],
            "rope_scaling": None if kind == "default" else scaling,
        }
        if "partial_rotary_factor" in rope:
            older["partial_rotary_factor"] = rope["partial_rotary_factor"]
        if document.get("model_type") == "gpt_neox":
            older["rotary_emb_base"] = rope["rope_theta"]
            older["rotary_pct"] = rope.get("partial_rotary_factor", 0.25)
    return {**document, **{name: value for name, value in older.items() if name not in document}}


def exported_config(folder: Path) -> ModelConfig:
    """The model section that loads an exported folder with the renderer it was trained with.

    Raises: InputError if the folder was not written by `save_reward_model`.
    """
    try:
        document = json.loads((folder / MODEL_FILE).read_text())
        document.pop(BASE_FINGERPRINT, None)
        return ModelConfig(path=str(folder), **document)
    except (OSError, ValueError, TypeError):
        raise InputError(f"{folder}: not a model saved here: no readable {MODEL_FILE}") from None


def model_section(model: Path, config: ModelConfig) -> ModelConfig:
    """The model section for a reward model that is not the config's own.

    One that was saved here says how it was trained, but not what it may do on this machine: that is
    the config's word. Any other (a folder, or a model on the hub) is read with the config's length
    and style.
    """
    if (model / MODEL_FILE).is_file():
        machine = ("trust_remote_code", "convert_pickle", "inference_batch_tokens")
        kept = {name: getattr(config, name) for name in machine}
        return exported_config(model).model_copy(update=kept)
    other = {"path": str(model), "revision": None, "num_layers": None}
    return config.model_copy(update={**other, "new_head": False, "lora": None})


def load_exported(
    folder: Path | str, *, device: str, config: ModelConfig | None = None
) -> RewardModel:
    """A reward model that `save_reward_model` wrote, ready to score.

    Args:
        config: the model section of the run that loads it; see `model_section`.
    """
    path = Path(folder)
    section = exported_config(path) if config is None else model_section(path, config)
    model_dir = resolve_model_dir(section)
    renderer = load_renderer(model_dir, section)
    return load_reward_model(model_dir, section, renderer, device=device, seed=0)
