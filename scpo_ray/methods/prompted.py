"""The global model as it is, told in the prompt where the person lives: no training at all.

What a model knows of a country without being trained for it is what training has to beat.
"""

from typing import Any

from pydantic import Field, field_validator

from scpo_ray.methods.ways import select_every_pair
from scpo_ray.records import InputError
from scpo_ray.settings.methods import Method, Style
from scpo_ray.settings.section import Section

PLACES = ("{culture}", "{prompt}")


class Settings(Section):
    template: str = Field("I live in {culture}. {prompt}", max_length=2_000)
    """What the prompt becomes; {culture} is the run's culture, with blanks for underscores."""

    @field_validator("template")
    @classmethod
    def both_places_are_there(cls, value: str) -> str:
        for place in PLACES:
            if value.count(place) != 1:
                raise ValueError(f"template must hold {place} once, got {value!r}")
        return value


def filled(template: str, culture: str, prompt: str) -> str:
    """The template with the culture and the prompt, whatever braces these hold."""
    name = culture.replace("_", " ")
    before, after = template.split("{prompt}")
    return f"{before.replace(PLACES[0], name)}{prompt}{after.replace(PLACES[0], name)}"


def check(task: Any) -> None:
    """Raises: InputError if the run is not of one culture."""
    if len(task.trained_cultures) != 1:
        raise InputError(
            f"method = prompted: names one culture in the prompt, got {task.trained_cultures}",
            ["give one culture in culture_weights, or compare over space.culture"],
        )


def fit(prepared: Any, context: Any) -> Any:
    """The global model's rewards of the texts with the culture in their prompt."""
    from scpo_ray.methods.rewording import reworded_rewards

    task = prepared.task
    template, [culture] = task.settings.template, task.trained_cultures
    return reworded_rewards(task, lambda prompt: filled(template, culture, prompt))


METHODS = Method(
    name="prompted",
    about="the global model with the culture's name in the prompt, not trained",
    version=1,
    settings=Settings,
    check=check,
    select=select_every_pair,
    fit=fit,
    style=Style("#8a6d3b", "#d9b988", "d", ":"),
    trains=False,
    needs_global_model=True,
)
