"""Any preferences: files or a hub data set in the common shapes, into interactions."""

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from scpo_ray.data.rows import (
    BadField,
    Notes,
    Place,
    Row,
    RowSource,
    Source,
    check_files,
    file_source,
    finite_number,
    get_field,
    hub_source,
    name_field,
    usable,
)
from scpo_ray.records import InputError, Interaction
from scpo_ray.settings.data import ColumnMap, PreferencesConfig

Side = Literal["train", "test"]
Turns = tuple[tuple[str, str], ...]
"""(role, text) of each chat message."""


def open_preferences(config: PreferencesConfig) -> Source:
    """The interactions of the configured files or hub data set.

    A row is `chosen` and `rejected` (scores 1 and 0) or `responses` and `scores`. Its texts are
    strings, or chat messages: a prompt and its completions (TRL explicit), or whole conversations
    that differ in the last reply (TRL implicit, OpenRLHF). In CSV, lists are JSON text.

    Raises: InputError if a file is missing or of no known kind, or the hub cannot be reached.
    """
    parts = _hub_parts(config) if config.hub else _file_parts(config)
    return Source(
        files=tuple(file for part, _ in parts for file in part.files),
        settings={
            "source": "preferences",
            "columns": config.columns.model_dump(),
            "parts": [(part.label, side) for part, side in parts],
        },
        read=partial(_read, parts, config.columns),
    )


def _hub_parts(config: PreferencesConfig) -> list[tuple[RowSource, Side | None]]:
    path, test_split = str(config.hub), config.hub_test_split
    train = hub_source(path, None, config.hub_train_split, "data.hub")
    if test_split is None:
        return [(train, None)]
    return [(train, "train"), (hub_source(path, None, test_split, "data.hub"), "test")]


def _file_parts(config: PreferencesConfig) -> list[tuple[RowSource, Side | None]]:
    train, test = [Path(f) for f in config.train_files], [Path(f) for f in config.test_files]
    check_files(train, "data.train_files")
    check_files(test, "data.test_files")
    paths = train + test
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    if twice:
        raise InputError("data: each file is read once", [f"{path}: named twice" for path in twice])
    columns = config.columns
    answers = (
        [columns.chosen, columns.rejected]
        if columns.responses is None
        else [columns.responses, columns.scores]
    )
    needed = [*answers, columns.culture, columns.user, columns.question, columns.id]
    wanted = [name for name in dict.fromkeys(needed) if name is not None]
    optional = [columns.prompt] if columns.prompt and columns.prompt not in wanted else []
    # Rows without an id are named by their file: by its name, or by its path where two share it.
    names = [path.name for path in paths]
    common = os.path.commonpath([path.absolute().parent for path in paths])
    parts: list[tuple[RowSource, Side | None]] = []
    for index, path in enumerate(paths):
        unique = names.count(path.name) == 1
        label = path.name if unique else path.absolute().relative_to(common).as_posix()
        side: Side | None = ("train" if index < len(train) else "test") if test else None
        parts.append((file_source(path, label, wanted, optional), side))
    return parts


def _read(
    parts: list[tuple[RowSource, Side | None]], columns: ColumnMap, notes: Notes
) -> Iterator[tuple[Place, Interaction]]:
    for source, side in parts:
        in_text = any(file.name.lower().endswith((".csv", ".csv.gz")) for file in source.files)
        for place, row in source.read(notes):
            try:
                if in_text:
                    row = _parsed_cells(row, columns)
                name = f"{source.label}:{place.number}"
                interaction = _interaction(row, columns, name, side)
            except BadField as error:
                notes.problem(place, error)
                continue
            kept = usable(interaction, notes)
            if kept is not None:
                yield place, kept


def _interaction(row: Row, columns: ColumnMap, default_id: str, side: Side | None) -> Interaction:
    culture = get_field(row, columns.culture)
    if not isinstance(culture, str):
        raise BadField(columns.culture, culture, "must be text")
    if columns.responses is not None and columns.scores is not None:
        fields = [(columns.responses, v) for v in _list_field(row, columns.responses)]
        scores = tuple(finite_number(columns.scores, v) for v in _list_field(row, columns.scores))
        if len(fields) != len(scores):
            rule = f"must be one per response, got {len(scores)} for {len(fields)}"
            raise BadField(columns.scores, list(scores), rule)
    else:
        fields = [(name, get_field(row, name)) for name in (columns.chosen, columns.rejected)]
        scores = (1.0, 0.0)
    turns, responses = _texts(row, columns.prompt, fields)
    return Interaction(
        interaction_id=default_id if columns.id is None else name_field(row, columns.id),
        culture=name_field(row, columns.culture),
        user=None if columns.user is None else name_field(row, columns.user),
        question=None if columns.question is None else name_field(row, columns.question),
        prompt=turns[-1][1],
        responses=responses,
        human_scores=scores,
        history=turns[:-1],
        split=side,
    )


def _texts(
    row: Row, prompt_column: str | None, fields: list[tuple[str, Any]]
) -> tuple[Turns, tuple[str, ...]]:
    """The turns up to the prompt, and the responses of `fields` (column, value) to it."""
    prompt = None if prompt_column is None else row.get(prompt_column)
    if prompt is not None:
        turns = _prompt_turns(str(prompt_column), prompt)
        return turns, tuple(_reply(name, value, turns) for name, value in fields)
    conversations = []
    for name, value in fields:
        if isinstance(value, str):
            raise BadField(
                prompt_column or "columns.prompt", None, f"must be set where {name} is plain text"
            )
        conversations.append(_messages(name, value))
    turns = _common_prefix(conversations)
    name = fields[0][0] if fields else "responses"
    if not turns or turns[-1][0] != "user":
        rule = "without a prompt, conversations must share their turns up to a user's message"
        raise BadField(name, fields[0][1] if fields else [], rule)
    return turns, tuple(_reply(name, value, turns) for name, value in fields)


def _prompt_turns(name: str, prompt: Any) -> Turns:
    if isinstance(prompt, str):
        return (("user", prompt),)
    turns = _messages(name, prompt)
    if turns[-1][0] != "user":
        raise BadField(name, prompt, "must end with a user's message")
    return turns


def _reply(name: str, value: Any, turns: Turns) -> str:
    """The one reply in `value`: a text, or messages with or without the `turns` before it."""
    if isinstance(value, str):
        return value
    messages = _messages(name, value)
    rest = messages[len(turns) :] if messages[: len(turns)] == turns else messages
    if len(rest) != 1 or rest[0][0] != "assistant":
        raise BadField(name, value, "must hold one assistant's message after the prompt")
    return rest[0][1]


def _messages(name: str, value: Any) -> Turns:
    if not isinstance(value, list) or not value:
        raise BadField(name, value, "must be text or a list of chat messages")
    for message in value:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise BadField(name, message, "a chat message must have role and content as text")
    return tuple((message["role"], message["content"]) for message in value)


def _common_prefix(conversations: list[Turns]) -> Turns:
    """What all share, short of each one's last message (equal replies are replies still)."""
    if not conversations:
        return ()
    shared = min(conversations, key=len)[:-1]
    for conversation in conversations:
        while conversation[: len(shared)] != shared:
            shared = shared[:-1]
    return shared


def _list_field(row: Row, name: str) -> list[Any]:
    value = get_field(row, name)
    if not isinstance(value, list):
        raise BadField(name, value, "must be a list")
    return value


def _parsed_cells(row: Row, columns: ColumnMap) -> Row:
    """The row with lists in place of their JSON text; a text that is no such list stays one."""
    parsed = dict(row)
    for name in (columns.responses, columns.scores):
        if name is not None:
            try:
                parsed[name] = json.loads(row[name])
            except (ValueError, RecursionError):
                raise BadField(name, row[name], "must be a list as JSON text") from None
    texts = [columns.prompt]
    if columns.responses is None:
        texts += [columns.chosen, columns.rejected]
    for name in texts:
        if name is not None and row.get(name, "").startswith('[{"'):
            try:
                parsed[name] = json.loads(row[name])
            except (ValueError, RecursionError):
                continue
    return parsed
