"""The score head: whether a model has one, where it is, and how it is taken out."""

from typing import Any

from torch import nn

from scpo_ray.models.reward_model import RewardModel
from scpo_ray.records import InputError
from scpo_ray.settings.model import ModelConfig


def check_head(settings: Any, config: ModelConfig) -> None:
    architectures = settings.architectures or ["unknown"]
    has_head = any(name.endswith("ForSequenceClassification") for name in architectures)
    if not has_head and not config.new_head:
        raise InputError(
            f"model.path = {config.path}: {architectures[0]} has no score head, so it is not a "
            "reward model",
            ["set model.new_head to true to train a new head on it (method finetune)"],
        )
    if has_head and config.new_head and settings.num_labels == 1:
        raise InputError(
            f"model.new_head = true: {config.path} has a score head already",
            ["leave model.new_head out to start from it"],
        )
    if has_head and settings.num_labels != 1 and not config.new_head:
        raise InputError(
            f"model.path = {config.path}: a reward model has 1 score, this one has "
            f"{settings.num_labels}"
        )


def without_head(model: RewardModel) -> RewardModel:
    """The model with its score head taken out: its output are the features the head would read.

    Changes `model`'s own network. Raises: as `score_head`.
    """
    name, _ = score_head(model)
    above, _, last = name.rpartition(".")
    setattr(model.network.get_submodule(above), last, nn.Identity())
    return model


def score_head(model: RewardModel) -> tuple[str, nn.Linear]:
    """The last layer, and its name: what turns features into one score.

    Raises: InputError if the network has no such layer, or several.
    """
    layers = [
        (name, module)
        for name, module in model.network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 1
    ]
    if len(layers) != 1:
        names = ", ".join(name for name, _ in layers) or "none"
        raise InputError(
            "the global model has no single linear score head, which heads on frozen features need",
            [f"layers with one output: {names}", "export a model with adapters merged first"],
        )
    return layers[0]
