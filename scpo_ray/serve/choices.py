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


def read_models(arguments: Sequence[str]) -> dict[str, str]:
    """Culture -> model, of "Chile=runs/chile" and the like.

    Raises: InputError that names each that is not so, or a culture that is there twice.
    """
    models: dict[str, str] = {}
    problems = []
    for argument in arguments:
        culture, _, model = argument.partition("=")
        culture = plain_name(culture)
        if not culture or not model:
            problems.append(f"{argument!r}: must be CULTURE=MODEL")
        elif culture in models:
            problems.append(f"{argument!r}: {culture} has a model already")
        models[culture] = model
    if problems:
        raise InputError("models", problems)
    return models


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
    try:
        shares = [(plain_name(c), float(w)) for c, _, w in _parted(weights)]
    except ValueError:
        raise InputError(
            f"{place} = {text[:200]!r}: must be a culture or CULTURE=WEIGHT,CULTURE=WEIGHT"
        ) from None
    mix = dict(shares)
    if len(mix) < len(shares):
        raise InputError(f"{place} = {text[:200]!r}: must name each culture once")
    try:
        checked_mix(mix, cultures)
    except InputError as error:
        raise InputError(f"{place}: {error.title}") from None
    return Choice(mix=mix, how=how)


def _parted(weights: str) -> list[tuple[str, str, str]]:
    return [part.rpartition("=") for part in weights.split(",")]
