"""Cultures' models that nobody trained: the tiny global model, each with changes of its own."""

from pathlib import Path

import torch

from scpo_ray.evaluation.scales import scale_of
from scpo_ray.models.export import load_exported, save_reward_model
from scpo_ray.models.loading import load_reward_model
from scpo_ray.models.rendering import load_renderer
from scpo_ray.models.scoring import score_texts
from scpo_ray.records import Text
from scpo_ray.settings.model import LoraConfig, ModelConfig
from scpo_ray.storage.scale_file import save_scale

TEXTS = [
    Text((), "please tell me about food", "a very kind and warm answer"),
    Text((), "what do you think of work today", "it is cold"),
    Text(
        (("user", "how should one talk about music"), ("assistant", "this is bold")),
        "please tell me about family at home",
        "quite formal and polite",
    ),
    Text((), "how should one talk about money in general", "rather brief and rough " * 20),
]
REFERENCES = [
    Text((), f"please tell me about {topic}", f"a {word} answer")
    for topic in ("food", "art", "sport", "travel", "health")
    for word in ("kind", "cold", "formal", "bold")
]


def write_culture(
    folder: Path,
    base: Path,
    *,
    seed: int,
    adapters: bool,
    max_length: int = 48,
    references: str | None = "the same",
) -> Path:
    """A model whose trainable weights are the base's and noise from `seed`; its scale is of
    `REFERENCES`, under that fingerprint (None: no scale)."""
    lora = LoraConfig(rank=4, alpha=8) if adapters else None
    config = ModelConfig(path=str(base), max_length=max_length, lora=lora)
    model = load_reward_model(base, config, load_renderer(base, config), device="cpu", seed=seed)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.network.parameters():
            if weights.requires_grad:
                weights += 0.3 * torch.randn(weights.shape, generator=chance)
    folder.mkdir(parents=True)
    save_reward_model(model, folder)
    if references is not None:
        save_scale(folder, scale_of(score_texts(model, REFERENCES), references))
    return folder


def alone(folder: Path, texts: list[Text] = TEXTS) -> list[float]:
    """The model's rewards as the run's own scoring gives them."""
    return [float(r) for r in score_texts(load_exported(folder, device="cpu"), texts)]
