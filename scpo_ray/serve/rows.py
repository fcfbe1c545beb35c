"""Rows of a file: what of them is scored, and the columns that come of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from scpo_ray.data.preferences import list_field, prompt_turns, reply
from scpo_ray.data.rows import BadField, Row, get_field, is_unicode
from scpo_ray.records import InputError
from scpo_ray.serve.items import (
    How,
    Reward,
    RewardItem,
    check_culture,
    checked_mix,
    mix_name,
)
from scpo_ray.serve.rewardbench import TIES, right_share, ties_prompt

Form = Literal["rows", "rewardbench2"]
FORMS: tuple[Form, ...] = get_args(Form)

GetRewards = Callable[[Sequence[RewardItem]], list[Reward]]

# What a reward's column holds -> that of the answer.
_COLUMNS = {
    "reward": "value",
    "standardised": "standardised",
    "probability": "probability",
    "truncated": "truncated",
}
_INTERVAL = {"low": "low", "high": "high"}


@dataclass(frozen=True)
class Asks:
    """What is asked of every row.

    `cultures` None: by the row's own, which stands in its column "culture". `mixes`: weights by
    culture, and what the mixture means. `with_interval`: rows of the form "rows" gain the ends of
    each reward's interval too.
    """

    cultures: tuple[str, ...] | None
    mixes: tuple[tuple[tuple[tuple[str, float], ...], How], ...]
    form: Form
    with_interval: bool

    @property
    def targets(self) -> list[tuple[str, dict[str, Any]]]:
        """The suffix of a target's columns, and what its items ask for; none for the row's own."""
        named = [(f".{culture}", {"culture": culture}) for culture in self.cultures or ()]
        mixed = [
            (f".{mix_name(weights, how)}", {"mix": dict(weights), "how": how})
            for weights, how in self.mixes
        ]
        return [*([("", {})] if self.cultures is None else named), *mixed]

    @property
    def columns(self) -> list[str]:
        """What the rows gain."""
        kinds = ["score", "right"] if self.form == "rewardbench2" else list(self.attributes)
        return [f"{kind}{suffix}" for suffix, _ in self.targets for kind in kinds]

    @property
    def attributes(self) -> dict[str, str]:
        """What a column of the form "rows" holds -> that of the answer."""
        return _COLUMNS | _INTERVAL if self.with_interval else _COLUMNS


def checked_asks(
    known: Sequence[str],
    cultures: Sequence[str],
    mixes: Sequence[Mapping[str, float]],
    how: How,
    form: Form,
    *,
    has_cultures: bool,
    has_seeds: bool,
) -> Asks:
    """What to ask of rows, of what a user named.

    Args:
        known: cultures that have a model.
        has_cultures: whether the rows name a culture each; then theirs is asked for where nothing
            else is, and else all.
        has_seeds: whether some culture has several models, whose spread gives an interval.

    Raises: InputError for a culture without a model, or a mixture that is none.
    """
    if form not in FORMS:
        raise InputError(f"--format {form}: must be one of {', '.join(FORMS)}")
    for culture in cultures:
        check_culture(culture, known, "--culture")
    checked = tuple((tuple(checked_mix(mix, known).items()), how) for mix in mixes)
    if cultures or mixes:
        return Asks(tuple(dict.fromkeys(cultures)), tuple(dict.fromkeys(checked)), form, has_seeds)
    of_rows = None if has_cultures and form == "rows" else tuple(known)
    return Asks(of_rows, (), form, has_seeds)


@dataclass(frozen=True)
class Candidates:
    """A row's prompt and K responses. `is_list`: whether the row lists them, even if K is 1."""

    messages: tuple[dict[str, str], ...]
    responses: tuple[str, ...]
    is_list: bool
    culture: str | None


def candidates(row: Row, asks: Asks, known: Sequence[str]) -> Candidates:
    """What of a row is scored. Raises: BadField or InputError with what is wrong with it."""
    turns = prompt_turns("prompt", get_field(row, "prompt"))
    if asks.form == "rewardbench2":
        fields = [(n, v) for n in ("chosen", "rejected") for v in list_field(row, n)]
        num_correct = int(get_field(row, "num_correct"))
        right_share([0.0] * len(fields), num_correct)
        if row.get("subset") == TIES:
            ties_prompt(str(get_field(row, "id")), [0.0] * len(fields), num_correct)
        is_list = True
    else:
        is_list = row.get("responses") is not None
        if is_list and row.get("response") is not None:
            raise BadField("responses", row["responses"], "give response or responses, not both")
        name = "responses" if is_list else "response"
        values = list_field(row, name) if is_list else [get_field(row, name)]
        fields = [(name, value) for value in values]
    if not fields:
        raise BadField("responses", [], "must hold at least 1 response")
    for name, value in fields:
        if not isinstance(value, (str, list)):
            raise BadField(name, value, "must be text, or a list of chat messages")
    responses = tuple(reply(name, value, turns) for name, value in fields)
    said = "".join([*(part for turn in turns for part in turn), *responses])
    if not is_unicode(said):
        raise InputError("prompt or response: not UTF-8 (half a character)")
    culture = None
    if asks.cultures is None:
        culture = get_field(row, "culture")
        check_culture(culture, known, "culture")
    messages = tuple({"role": role, "content": text} for role, text in turns)
    return Candidates(messages, responses, is_list, culture)


def new_columns(
    rows: Sequence[Row], asks: Asks, known: Sequence[str], rewards: GetRewards
) -> list[dict[str, Any]]:
    """Of each row, the columns that it gains; lists where it lists its responses.

    Raises: as `candidates` and `rewards`.
    """
    read = [candidates(row, asks, known) for row in rows]
    items = [
        RewardItem(response, messages=of_row.messages, **({"culture": of_row.culture} | asked))
        for of_row in read
        for _, asked in asks.targets
        for response in of_row.responses
    ]
    found = iter(rewards(items))
    gained = []
    for row, of_row in zip(rows, read, strict=True):
        new: dict[str, Any] = {}
        for suffix, _ in asks.targets:
            said = [next(found) for _ in of_row.responses]
            if asks.form == "rewardbench2":
                scores = [reward.value for reward in said]
                new[f"score{suffix}"] = scores
                new[f"right{suffix}"] = right_share(scores, int(row["num_correct"]))
                continue
            for column, attribute in asks.attributes.items():
                values = [getattr(reward, attribute) for reward in said]
                new[f"{column}{suffix}"] = values if of_row.is_list else values[0]
        gained.append(new)
    return gained
