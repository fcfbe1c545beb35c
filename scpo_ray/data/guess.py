"""Which column of a file of preferences holds what, by its name and by what stands in it."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scpo_ray.data.files import first_rows
from scpo_ray.data.messages import messages_read, parsed_value, transcript
from scpo_ray.data.rows import BadField, Notes, Row, shown
from scpo_ray.records import InputError
from scpo_ray.settings.spelling import plain_name

NUM_ROWS = 100_000
"""Rows that are looked at, at most: files are often sorted by country."""

_NAMES = {
    "chosen": ("chosen", "chosen_response", "response_chosen", "preferred", "accepted", "winner"),
    "rejected": ("rejected", "rejected_response", "response_rejected", "dispreferred", "loser"),
    "responses": ("responses", "completions", "candidates", "answers", "outputs"),
    "scores": ("scores", "ratings", "human_scores"),
    "prompt": ("prompt", "instruction", "query", "question", "input", "context", "messages"),
    "culture": ("culture", "country", "reside_country", "nation", "nationality", "group"),
    "user": (
        *("user", "user_id", "annotator", "annotator_id", "worker", "worker_id", "rater"),
        *("rater_id", "participant", "participant_id", "respondent", "respondent_id", "person"),
    ),
    "question": ("question_id", "prompt_id", "item_id", "question"),
}
_MAX_CULTURES = 300
_MAX_CULTURE_LENGTH = 60
_MIN_ROWS_EACH = 3


@dataclass(frozen=True)
class Guess:
    """Settings for a file of preferences.

    Attributes:
        columns: as in `ColumnMap`, what differs from its defaults.
        split_by: "user" where there is a column of users.
        cultures: culture -> rows among those looked at, the most first.
        reasons: a sentence for each column that was told by its contents or stands for another.
    """

    columns: dict[str, str | None]
    split_by: Literal["user", "question"]
    cultures: dict[str, int]
    reasons: list[str]


def guess_columns(path: Path) -> Guess:
    """Looks at a file's first rows.

    Raises: InputError if it cannot be read, or the columns found hold no preferences with a
    culture each; it lists them.
    """
    notes = Notes()
    rows = first_rows(path, NUM_ROWS, notes)
    notes.raise_problems()
    return guessed(rows, str(path))


def guessed(rows: Sequence[Row], name: str) -> Guess:
    """What the rows of the file `name` hold. Raises: InputError; see `guess_columns`."""
    there = list(dict.fromkeys(column for row in rows for column in row))
    found = {what: _by_name(there, names) for what, names in _NAMES.items()}
    reasons: list[str] = []
    columns = _answers(found, rows)
    problems = [] if columns is not None else [_NO_ANSWERS]
    columns = columns or {}
    taken = {column for column in (*columns.values(), found["prompt"]) if column}
    culture = found["culture"]
    if culture is None:
        alike = [c for c in there if c not in taken and _groups(rows, c)]
        if len(alike) == 1:
            culture = alike[0]
            reasons.append(f"culture: {culture!r}, the only column of few names, each often")
        else:
            or_these = f"; it may be {' or '.join(map(shown, alike))}" if alike else ""
            problems.append(f"which column says where people live?{or_these}")
    if problems:
        problems.append(f"it has {', '.join(map(shown, there)) or 'no column'}")
        problems.append("name them in data.columns of a config (docs/configuration.md)")
        raise InputError(f"{name}: not seen what its columns hold", problems)
    columns["culture"] = culture
    columns |= _prompt(found["prompt"], columns, rows, name, reasons)
    question = found["question"] or columns["prompt"]
    if found["user"] is not None:
        columns["user"] = found["user"]
    elif question is not None:
        columns["question"] = question
        reasons.append(f"no column of users: {question!r} groups the rows")
    else:
        raise InputError(
            f"{name}: no column of users and none of questions",
            ["intervals need one: add a column, or name it in data.columns"],
        )
    named = (row.get(str(culture)) for row in rows)
    cultures = Counter(plain_name(str(name)) for name in named if name)
    defaults = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    return Guess(
        {what: c for what, c in columns.items() if defaults.get(what, "") != c},
        "user" if found["user"] is not None else "question",
        dict(cultures.most_common()),
        reasons,
    )


_NO_ANSWERS = (
    "which columns hold the responses? As chosen and rejected, or as lists of responses and scores"
)


def _by_name(there: Collection[str], names: Sequence[str]) -> str | None:
    spelled = {re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_"): column for column in there}
    return next((spelled[name] for name in names if name in spelled), None)


def _answers(found: dict[str, str | None], rows: Sequence[Row]) -> dict[str, str | None] | None:
    if found["chosen"] is not None and found["rejected"] is not None:
        return {"chosen": found["chosen"], "rejected": found["rejected"]}
    responses, scores = found["responses"], found["scores"]
    if responses is None or scores is None:
        return None
    for row in rows:
        texts, numbers = _list(row.get(responses)), _list(row.get(scores))
        if texts is None or numbers is None or len(texts) != len(numbers):
            return None
    return {"responses": responses, "scores": scores}


def _list(value: Any) -> list[Any] | None:
    if isinstance(value, str):
        try:
            value = parsed_value(value)
        except ValueError:
            return None
    return value if isinstance(value, list) else None


def _groups(rows: Sequence[Row], column: str) -> bool:
    """Whether a column may say where people live: few short names, each of several rows."""
    values = [row.get(column) for row in rows]
    names = [v for v in values if isinstance(v, str) and 0 < len(v) <= _MAX_CULTURE_LENGTH]
    distinct = len(set(names))
    return (
        len(names) == len(values)
        and 1 < distinct <= _MAX_CULTURES
        and len(names) >= _MIN_ROWS_EACH * distinct
    )


def _prompt(
    column: str | None,
    columns: dict[str, str | None],
    rows: Sequence[Row],
    name: str,
    reasons: list[str],
) -> dict[str, str | None]:
    if column is not None:
        return {"prompt": column}
    chosen = columns.get("chosen")
    if chosen is None or not all(_is_conversation(chosen, row.get(chosen)) for row in rows):
        raise InputError(
            f"{name}: no column of prompts",
            ["name it in data.columns.prompt; null where the responses hold whole conversations"],
        )
    reasons.append(f"no column of prompts: {chosen!r} holds whole conversations")
    return {"prompt": None}


def _is_conversation(name: str, value: Any) -> bool:
    try:
        read = messages_read(name, value)
    except BadField:
        return False
    return isinstance(read, list) or (isinstance(read, str) and transcript(read) is not None)
