"""Which culture, or which mixture of them, a trainer's or a tool's one text asks for. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scpo_ray.records import InputError
from scpo_ray.serve.items import HOWS, How, check_culture, checked_mix
from scpo_ray.settings.spelling import plain_name


@dataclass(frozen=True)
class Choice:
    """One culture, or weights of several and how their rewards become one."""

    culture: str | None = None
    mix: Mapping[str, float] | None = None
    how: How = "linear"


def read_models(arguments: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Culture -> its models, of "Chile=runs/chile", "Chile=runs/seed-0,runs/seed-1" and the like.

    Raises: InputError for what is not CULTURE=MODEL, or named twice.
    """
    models: dict[str, tuple[str, ...]] = {}
    for argument in arguments:
        name, _, text = argument.partition("=")
        culture, named = plain_name(name), models_in(text)
        if not culture or not all(named):
            raise InputError(f"{argument}: must be CULTURE=MODEL, as in Chile=runs/chile")
        if culture in models:
            raise InputError(
                f"{argument}: a second model for {culture}",
                ["several of one culture are one argument: Chile=runs/seed-0,runs/seed-1"],
            )
        if len(set(named)) < len(named):
            raise InputError(f"{argument}: a model twice, which would look like two that agree")
        models[culture] = named
    return models


def models_in(text: str) -> tuple[str, ...]:
    """The models that commas part; empty ones too."""
    return tuple(name.strip() for name in text.split(","))


def read_mix(text: str, said: str) -> dict[str, float]:
    """Culture -> weight, as in "Chile=0.5,Mexico=0.5"; whether they are a mixture is not checked.

    Raises: InputError, `said` before the text, naming what is no weight, or is there twice.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        culture = plain_name(name)
        try:
            weight = float(number)
        except ValueError:
            culture = ""
        if not culture:
            raise InputError(f"{said}{text}: {part!r} is no weight, as in Chile=0.5,Mexico=0.5")
        if culture in weights:
            raise InputError(f"{said}{text}: {culture} twice")
        weights[culture] = weight
    return weights


def read_choice(text: str, cultures: Sequence[str], place: str) -> Choice:
    """The choice that a text names: "Chile", "Chile=0.5,Mexico=0.5", "Chile=0.5,Mexico=0.5:people".

    Raises: InputError, naming `place`, if it is none, or of cultures that are not there.
    """
    name = plain_name(text)
    if name in cultures or "=" not in name:
        check_culture(name, cultures, place)
        return Choice(culture=name)
    weights, colon, said = name.rpartition(":")
    if not colon:
        weights, said = name, "linear"
    how = next((known for known in HOWS if known == said), None)
    if how is None:
        raise InputError(f"{place} = {text[:200]!r}: {said!r} must be one of {', '.join(HOWS)}")
    mix = read_mix(weights[:200], f"{place} = ")
    try:
        checked_mix(mix, cultures)
    except InputError as error:
        raise InputError(f"{place}: {error.title}") from None
    return Choice(mix=mix, how=how)
