"""What several methods check, select and do. What computes is imported when a run starts, so that
settings and pages name methods without it."""

from typing import Any

from scpo_ray.records import InputError


def check_several_cultures(task: Any) -> None:
    """Raises: InputError if a method that learns from several cultures at once gets too few."""
    method = task.config.how
    learned = task.data.cultures if method.learns_from_all else task.trained_cultures
    if len(learned) < 2:
        remedy = "name more in data.cultures"
        if not method.learns_from_all:
            remedy = "give more than one a weight"
        raise InputError(
            f"method = {method.name}: learns from several cultures at once, got {[*learned]}",
            [remedy],
        )


def select_every_pair(task: Any) -> Any:
    """All training pairs, each counting 1."""
    from scpo_ray.methods.task import every_pair

    return every_pair(task)


def train(prepared: Any, context: Any) -> Any:
    """The network, by the plan, each pair counting what was selected."""
    from scpo_ray.methods.network import train_network

    return train_network()(prepared, context)
