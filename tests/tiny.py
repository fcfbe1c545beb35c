"""A model, data and a config small enough that a whole run takes a second."""

from pathlib import Path
from typing import Any

from scpo_ray.data.synthetic import vocabulary
from scpo_ray.models.export import save_reward_model
from scpo_ray.models.loading import load_reward_model
from scpo_ray.models.rendering import load_renderer
from scpo_ray.models.tiny import make_tiny_backbone
from scpo_ray.settings.model import ModelConfig
from scpo_ray.settings.run import RunConfig

CULTURES = ["North", "South"]


def write_tiny_backbone(folder: Path) -> Path:
    """A two-layer BERT without a score head."""
    make_tiny_backbone(folder, vocabulary(), seed=0)
    return folder


def write_tiny_reward_model(folder: Path) -> Path:
    """The same with a seeded, untrained head, saved as a reward model: a stand-in global model."""
    backbone = write_tiny_backbone(folder.with_name(folder.name + "-backbone"))
    config = ModelConfig(path=str(backbone), max_length=48, new_head=True)
    renderer = load_renderer(backbone, config)
    folder.mkdir()
    save_reward_model(load_reward_model(backbone, config, renderer, device="cpu", seed=0), folder)
    return folder


def tiny_document(model: Path, output_dir: Path, /, **sections: Any) -> dict[str, Any]:
    """A run's settings as in a YAML file; `sections` are laid over them, one level deep."""
    document: dict[str, Any] = {
        "experiment": "tiny",
        "output_dir": str(output_dir),
        "device": "cpu",
        "culture_weights": {"North": 1.0},
        "data": {
            "source": "synthetic",
            "users": {"Majority": 8, "North": 8, "South": 8},
            "interactions_per_user": 4,
            "cultures": CULTURES,
        },
        "model": {"path": str(model), "max_length": 48},
        "train": {
            "batch_size": 8,
            "max_steps": 12,
            "learning_rate": 1e-3,
            "checkpoint_every": 5,
            "log_every": 3,
        },
        "evaluation": {"bootstrap_samples": 100},
        "tracking": {"tracker": "none"},
    }
    for name, value in sections.items():
        below = document.get(name)
        document[name] = {**below, **value} if isinstance(below, dict) else value
    return document


def tiny_config(model: Path, output_dir: Path, /, **sections: Any) -> RunConfig:
    return RunConfig.model_validate(tiny_document(model, output_dir, **sections))
