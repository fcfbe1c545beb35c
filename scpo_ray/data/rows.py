"""Rows of preferences and their fields, and notes of what was wrong with them."""

import ast
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from scpo_ray.records import InputError, Interaction
from scpo_ray.settings.spelling import plain_name

MAX_PROBLEMS = 20
MAX_PRINTED_CHARACTERS = 1_000_000
MAX_SCORE = 1e30
"""Scores are kept in 32 bits: those, their sums and their differences stay finite in them."""

Row = dict[str, Any]


class Place(NamedTuple):
    """Where a row stands; `unit` is "line" in text files, "row" elsewhere. Both count from 1."""

    file: str
    number: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}"


@dataclass
class Notes:
    """What a reader notes beside the interactions it yields.

    `users`, `questions`: of the whole source in file order, where it lists them apart from the
    interactions (and so also those without one).
    `skipped`: (culture, reason) -> rows left out. `problems`: the first few of `num_problems`.
    `remedies`: column -> what to do where it is missing.
    """

    users: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    skipped: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0
    remedies: dict[str, str] = field(default_factory=dict)
    _missing: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)

    def problem(self, where: Place | str, what: object) -> None:
        """Notes what is wrong, a column that a file's rows lack at the first of them alone."""
        if isinstance(what, MissingColumns):
            missing = (where.file if isinstance(where, Place) else where, what.names)
            if missing in self._missing:
                return
            self._missing.add(missing)
            remedies = [self.remedies[name] for name in what.names if name in self.remedies]
            what = "; ".join([str(what), *remedies])
        self.num_problems += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"{where}: {what}")

    def raise_problems(self) -> None:
        """Raises: InputError with the first problems and the number of the others, if any."""
        if not self.num_problems:
            return
        more = self.num_problems - len(self.problems)
        count = f"{self.num_problems} problem{'s' if self.num_problems > 1 else ''}"
        lines = [*self.problems, f"(+{more} more)"] if more else self.problems
        raise InputError(f"the data cannot be used: {count}", lines)


@dataclass(frozen=True)
class RowSource:
    """One file or one split of a hub data set.

    `files` hold its contents on disk (two sources with equal contents are the same data); `label`
    names it within the data, independent of the machine.
    """

    label: str
    files: tuple[Path, ...]
    read: Callable[[Notes], Iterator[tuple[Place, Row]]]


@dataclass(frozen=True)
class InteractionSource:
    """Interactions that can be read; equal `files` contents and `settings` yield equal ones."""

    files: tuple[Path, ...]
    settings: dict[str, Any]
    read: Callable[[Notes], Iterator[tuple[Place, Interaction]]]


class BadField(ValueError):
    """A row's field is missing or of the wrong kind; the message names it, its value, the rule."""

    def __init__(self, name: str, value: object, rule: str) -> None:
        super().__init__(f"{name} = {shown(value)}: {rule}")


class MissingColumns(BadField):
    """A row lacks columns; the message names them and those that it has."""

    def __init__(self, names: Sequence[str], found: Iterable[str]) -> None:
        self.names = tuple(names)
        noun = "column" if len(names) == 1 else "columns"
        has = ", ".join(map(shown, found)) or "none"
        ValueError.__init__(self, f"no {noun} {', '.join(map(shown, names))}; it has {has}")


def shown(value: object) -> str:
    try:
        text = "null" if value is None else repr(value)
    except (RecursionError, ValueError):  # ValueError: a whole number of thousands of digits
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= 60 else text[:57] + "..."


def get_field(row: Row, name: str) -> Any:
    if name not in row:
        raise MissingColumns([name], row)
    return row[name]


def text_field(row: Row, name: str) -> str:
    value = get_field(row, name)
    if not isinstance(value, str):
        raise BadField(name, value, "must be text")
    return value


def id_field(row: Row, name: str) -> str:
    """A row's own id, as it is: text that is not blank, or a whole number."""
    value = get_field(row, name)
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 1_024:
        return str(value)
    if not isinstance(value, str) or not plain_name(value) or not is_unicode(value):
        raise BadField(name, value, "must be text, not blank")
    return value


def name_field(row: Row, name: str) -> str:
    """The name of a culture, a user or a question, in its one spelling; a whole number is one."""
    return plain_name(id_field(row, name))


def finite_number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadField(name, value, "must be a number")
    # Beyond it float() of a whole number raises; NaN fails the comparison as well.
    if not abs(value) <= sys.float_info.max:
        raise BadField(name, value, "must be finite")
    if abs(value) > MAX_SCORE:
        raise BadField(name, value, f"must be at most {MAX_SCORE:g}, with either sign")
    return float(value)


def is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printed_value(text: str) -> Any:
    """The lists, dicts, texts and numbers that Python printed as `text`; nothing is evaluated.

    Printed numbers include nan and inf, which no literal is.

    Raises: ValueError if it is nothing of the kind, or too long or deep.
    """
    if len(text) > MAX_PRINTED_CHARACTERS:
        raise ValueError(f"more than {MAX_PRINTED_CHARACTERS} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes that begin no escape
            return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"not a printed value: {error}") from None


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int() as number) if number.bit_length() > 1_024:
            pass  # beyond every float, and perhaps more digits than Python shows
        case ast.Constant(value=None | str() | int() | float()):
            return node.value
        case ast.Name(id="nan" | "inf"):
            return float(node.id)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            number = _value(operand)
            if isinstance(number, int | float):
                return -number
        case ast.List(elts=elements):
            return [_value(element) for element in elements]
        case ast.Dict(keys=keys, values=values) if None not in keys:
            named = [_value(key) for key in keys if key is not None]
            if len(set(map(repr, named))) == len(named) and all(isinstance(n, str) for n in named):
                return dict(zip(named, map(_value, values), strict=True))
    raise ValueError("not a printed value")


def usable(interaction: Interaction, notes: Notes) -> Interaction | None:
    """The interaction without responses that are no text, or None; each is noted as skipped."""
    culture = interaction.culture
    if not interaction.prompt.strip():
        notes.skipped[culture, "empty prompt"] += 1
        return None
    turns = [part for turn in interaction.history for part in turn]
    if not all(map(is_unicode, [interaction.prompt, *turns])):
        notes.skipped[culture, "prompt not valid Unicode"] += 1
        return None
    keep = []
    for index, response in enumerate(interaction.responses):
        if not response.strip():
            notes.skipped[culture, "empty response"] += 1
        elif not is_unicode(response):
            notes.skipped[culture, "response not valid Unicode"] += 1
        else:
            keep.append(index)
    if len(keep) < 2:
        notes.skipped[culture, "fewer than 2 responses"] += 1
        return None
    if len(keep) == len(interaction.responses):
        return interaction
    return replace(
        interaction,
        responses=tuple(interaction.responses[i] for i in keep),
        human_scores=tuple(interaction.human_scores[i] for i in keep),
        option_numbers=tuple(interaction.option_numbers[i] for i in keep if interaction.refusals),
        refusals=tuple(interaction.refusals[i] for i in keep if interaction.refusals),
    )
