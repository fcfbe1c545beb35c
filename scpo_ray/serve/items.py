"""What is asked of the rewards, and what is answered."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from scpo_ray.data.messages import messages
from scpo_ray.data.rows import BadField
from scpo_ray.records import InputError, Text
from scpo_ray.settings.spelling import nearest_names

How = Literal["linear", "people", "worst"]
HOWS: tuple[How, ...] = get_args(How)
WEIGHT_TOLERANCE = 1e-6
"""Weights as people write them sum to 1 up to this."""


@dataclass(frozen=True, slots=True)
class RewardItem:
    """One response to one prompt, to be judged by a culture's model or a mixture of several.

    Attributes:
        response: what is judged.
        prompt: the prompt as text; or None, and `messages` holds it.
        messages: the conversation up to the prompt, each `{"role": ..., "content": ...}`; the last
            is the user's.
        culture: one culture's name; None where `mix` is given or one model alone is loaded.
        mix: culture -> weight; not negative, sum 1.
        how: what a mixture means, see `evaluation.mixtures`.
    """

    response: str
    prompt: str | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    culture: str | None = None
    mix: Mapping[str, float] | None = None
    how: How = "linear"


@dataclass(frozen=True, slots=True)
class Reward:
    """What a response is worth to a culture or a mixture.

    Attributes:
        of: the culture, or the mixture as in "0.5 Chile + 0.5 Mexico (linear)".
        value: a culture's: its model's reward as it is, in that model's own units. A mixture's:
            what its `how` says.
        standardised: in standard deviations above the mean of the reference texts' rewards;
            comparable between cultures. A mixture's: the weighted mean, the lowest for "worst".
        probability: of beating a reference response; a mixture's: the share of such a population
            for whom it does.
        low, high: 95 % interval of `value` over a culture's models, where it has several.
        truncated: whether the text was cut at a model's maximum length.

    `standardised` and `probability` are None where a model's folder has no scale.
    """

    of: str
    value: float
    standardised: float | None
    probability: float | None
    low: float | None = None
    high: float | None = None
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """An item that was checked. `weights`: culture -> weight, of those that count; `how` is None
    for a culture by itself."""

    text: Text
    weights: tuple[tuple[str, float], ...]
    how: How | None

    @property
    def name(self) -> str:
        if self.how is None:
            return self.weights[0][0]
        return mix_name(self.weights, self.how)


def mix_name(weights: Sequence[tuple[str, float]], how: How) -> str:
    """As in "0.5 Chile + 0.5 Mexico (linear)"; of the worst off, the weights say nothing."""
    parts = [culture if how == "worst" else f"{weight:g} {culture}" for culture, weight in weights]
    return f"{' + '.join(parts)} ({how})"


def checked_item(item: RewardItem, cultures: Sequence[str]) -> Asked:
    """The item as it is scored. Raises: InputError naming the field, the value and the rule."""
    text = _text(item)
    if item.mix is not None:
        if item.culture is not None:
            raise InputError(f"culture = {item.culture!r}: give a culture or a mix, not both")
        if item.how not in HOWS:
            raise InputError(f"how = {item.how!r}: must be one of {', '.join(HOWS)}")
        return Asked(text, tuple(checked_mix(item.mix, cultures).items()), item.how)
    if item.culture is None and len(cultures) > 1:
        raise InputError("culture: must be given, or mix", [f"there are: {', '.join(cultures)}"])
    culture = cultures[0] if item.culture is None else item.culture
    check_culture(culture, cultures, "culture")
    return Asked(text, ((culture, 1.0),), None)


def checked_mix(mix: Mapping[str, float], cultures: Sequence[str]) -> dict[str, float]:
    """The weights above 0, in the order of `cultures`.

    Raises: InputError for an unknown culture, or weights that are no numbers, negative, or of
        another sum than 1.
    """
    if not isinstance(mix, Mapping) or not mix:
        raise InputError(f"mix = {mix!r}: must be weights by culture")
    for culture, weight in mix.items():
        check_culture(culture, cultures, "mix")
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not is_number or not math.isfinite(weight):
            raise InputError(f"mix.{culture} = {weight!r}: must be a finite number")
        if weight < 0:
            raise InputError(f"mix.{culture} = {weight:g}: must not be negative")
    total = math.fsum(mix.values())
    if abs(total - 1) > WEIGHT_TOLERANCE:
        raise InputError(f"mix: weights must sum to 1, got {total:g}")
    return {culture: float(mix[culture]) for culture in cultures if mix.get(culture, 0) > 0}


def check_culture(culture: object, cultures: Sequence[str], field: str) -> None:
    """Raises: InputError with the nearest names for a culture that has no model here."""
    if not isinstance(culture, str):
        raise InputError(f"{field} = {culture!r}: must be a culture's name")
    if culture not in cultures:
        near = nearest_names(culture, cultures)
        raise InputError(f"{field} = {culture!r}: no such culture; nearest: {near}")


def _text(item: RewardItem) -> Text:
    if not isinstance(item.response, str):
        raise InputError(f"response = {item.response!r}: must be text")
    if (item.prompt is None) == (item.messages is None):
        raise InputError("prompt: give a prompt or messages, one of them")
    if item.messages is None:
        if not isinstance(item.prompt, str):
            raise InputError(f"prompt = {item.prompt!r}: must be text")
        return _whole(Text((), item.prompt, item.response))
    try:
        turns = messages("messages", list(item.messages))
    except (BadField, TypeError) as error:
        raise InputError(str(error)) from None
    if turns[-1][0] != "user":
        raise InputError("messages: must end with a user's message")
    return _whole(Text(turns[:-1], turns[-1][1], item.response))


def _whole(text: Text) -> Text:
    """Raises: InputError for half a character, which no tokenizer takes."""
    said: list[Any] = [part for turn in text.history for part in turn]
    try:
        "".join([*said, text.prompt, text.response]).encode()
    except UnicodeEncodeError:
        raise InputError("prompt, messages or response: not UTF-8 (half a character)") from None
    return text
