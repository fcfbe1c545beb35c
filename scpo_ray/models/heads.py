"""The score head: whether a model has one."""

from typing import Any

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
