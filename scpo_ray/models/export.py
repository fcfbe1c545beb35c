"""A trained model as a Hugging Face folder, and back."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from scpo_ray.models.files import MODEL_FILE, resolve_model_dir
from scpo_ray.models.loading import load_reward_model
from scpo_ray.models.rendering import load_renderer
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.records import InputError
from scpo_ray.settings.model import ModelConfig


def save_reward_model(
    model: RewardModel, folder: Path, *, weights: dict[str, Tensor] | None = None
) -> None:
    """Writes a Hugging Face folder: safetensors weights (or adapters), tokenizer, renderer.

    Args:
        weights: all the network's weights by name, where the network itself holds but a part.
    """
    model.network.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
    model.renderer.tokenizer.save_pretrained(folder)
    settings: Any = model.network.config
    document = {
        "renderer": model.renderer.style,
        "max_length": model.renderer.max_length,
        "num_layers": settings.num_hidden_layers,
    }
    (folder / MODEL_FILE).write_text(json.dumps(document) + "\n")


def exported_config(folder: Path) -> ModelConfig:
    """The model section that loads an exported folder with the renderer it was trained with.

    Raises: InputError if the folder was not written by `save_reward_model`.
    """
    try:
        document = json.loads((folder / MODEL_FILE).read_text())
        return ModelConfig(path=str(folder), **document)
    except (OSError, ValueError, TypeError):
        raise InputError(f"{folder}: not a model saved here: no readable {MODEL_FILE}") from None


def load_exported(folder: Path | str, *, device: str) -> RewardModel:
    """A reward model that `save_reward_model` wrote, ready to score."""
    config = exported_config(Path(folder))
    model_dir = resolve_model_dir(config)
    renderer = load_renderer(model_dir, config)
    return load_reward_model(model_dir, config, renderer, device=device, seed=0)
