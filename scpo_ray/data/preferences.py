"""Any preferences: files or a hub data set in the common shapes, into interactions."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from scpo_ray.data.files import check_files, file_source, hub_source
from scpo_ray.data.messages import (
    Turns,
    common_prefix,
    messages,
    messages_read,
    parsed_value,
    transcript,
)
from scpo_ray.data.rows import (
    BadField,
    InteractionSource,
    MissingColumns,
    Notes,
    Place,
    Row,
    RowSource,
    finite_number,
    get_field,
    id_field,
    name_field,
)
from scpo_ray.records import InputError, Interaction
from scpo_ray.settings.data import DataSection, Source
from scpo_ray.settings.section import Section

Side = Literal["train", "test"]
Language = Literal["first", "second"]


class SecondLanguage(Section):
    prompt: str | None = None
    """As the first language's, in another column of the same row; null: the same column."""

    chosen: str | None = None
    """The same of the preferred response."""

    rejected: str | None = None
    """The same of the other response."""

    responses: str | None = None
    """The same of a list of responses."""


class ColumnMap(Section):
    prompt: str | None = "prompt"
    """Text or chat messages; null where `chosen` and `rejected` hold whole conversations, as
    messages or as "Human:" and "Assistant:" turns."""

    chosen: str = "chosen"
    """The preferred response: text or chat messages (a list, or one as JSON or Python text)."""

    rejected: str = "rejected"
    """The other response."""

    chosen_votes: str | None = None
    """How many people gave or preferred `chosen`, with `rejected_votes`: their shares are then
    what win probabilities are held against."""

    rejected_votes: str | None = None
    """The same of `rejected`; fewer, and 0 or more."""

    chosen_share: str | None = None
    """In place of votes: the share of people who preferred `chosen` to `rejected`, above 0.5 and at
    most 1. Win probabilities are held against it, and `train.soft_labels` learns it."""

    responses: str | None = None
    """A list of responses, with `scores`; then `chosen` and `rejected` are not read."""

    scores: str | None = None
    """A list of numbers, one per response; a higher one is preferred."""

    culture: str = "culture"
    """The group label."""

    user: str | None = None
    """Who preferred; intervals take whole users."""

    question: str | None = None
    """Groups rows where no user is known; intervals then take whole questions."""

    id: str | None = None
    """A unique name of the row; null: the file's name and line."""

    second_language: SecondLanguage | None = None
    """Where the same texts stand in another language: read with `data.language: second`."""

    def in_language(self, language: Language) -> "ColumnMap":
        """The columns that a language's texts are read from."""
        if language == "first" or self.second_language is None:
            return self
        return self.model_copy(update=self.second_language.model_dump(exclude_none=True))

    @model_validator(mode="after")
    def responses_have_scores(self) -> Self:
        if (self.responses is None) != (self.scores is None):
            raise ValueError("responses and scores are set together or not at all")
        if (self.chosen_votes is None) != (self.rejected_votes is None):
            raise ValueError("chosen_votes and rejected_votes are set together or not at all")
        if self.responses is not None and self.chosen_votes is not None:
            raise ValueError("chosen_votes are of chosen and rejected, not of responses")
        if self.responses is not None and self.chosen_share is not None:
            raise ValueError("chosen_share is of chosen and rejected, not of responses")
        if self.chosen_votes is not None and self.chosen_share is not None:
            raise ValueError("set either chosen_share or chosen_votes and rejected_votes")
        return self


class PreferencesConfig(DataSection):
    source: Literal["preferences"]
    """Any preferences: files of yours or a hub data set, columns named by `columns`."""

    train_files: list[str] = []
    """JSONL, CSV or Parquet, by ending; .gz too for the first two."""

    test_files: list[str] = []
    """Held-out files; with them `split.by` is "source"."""

    hub: str | None = None
    """A hub data set instead of files, as "owner/name"."""

    hub_train_split: str = "train"
    """The hub data set's split to train on."""

    hub_test_split: str | None = None
    """The hub data set's held-out split; with it `split.by` is "source"."""

    columns: ColumnMap = ColumnMap()
    """Which column holds what."""

    language: Language = "first"
    """Which language's texts are read, where `columns.second_language` names columns of another:
    the same people and preferences, so that language and culture can be told apart."""

    @model_validator(mode="after")
    def one_place_to_read(self) -> Self:
        if bool(self.train_files) == bool(self.hub):
            raise ValueError("set either train_files or hub")
        has_test = bool(self.test_files) if self.train_files else self.hub_test_split is not None
        if self.test_files and self.hub:
            raise ValueError("test_files go with train_files, not with hub")
        if has_test != (self.split.by == "source"):
            raise ValueError(
                'test files (or hub_test_split) and split.by "source" go together, got '
                f"split.by {self.split.by!r} {'with' if has_test else 'without'} a test part"
            )
        if self.language == "second" and self.columns.second_language is None:
            raise ValueError('language "second" needs columns.second_language')
        if self.split.by == "user" and self.columns.user is None:
            raise ValueError(
                'split.by "user" needs columns.user, the column that says who preferred; where '
                'there is none: split.by "question" and columns.question'
            )
        if self.split.by == "question" and self.columns.question is None:
            raise ValueError(
                'split.by "question" needs columns.question, the column that groups the rows'
            )
        return self

    @property
    def scores_are_votes(self) -> bool:
        return self.columns.chosen_votes is not None or self.columns.chosen_share is not None


def open_preferences(config: PreferencesConfig) -> InteractionSource:
    """The interactions of the configured files or hub data set.

    A row is `chosen` and `rejected` (scores 1 and 0; or votes, or shares) or `responses` and
    `scores`. Its texts are strings, or chat messages: a prompt and its completions (TRL explicit),
    or whole conversations that differ in the last reply (TRL implicit, OpenRLHF). Lists may stand
    as text, as JSON or as Python prints them; conversations also as "Human:" and "Assistant:"
    turns (hh-rlhf).

    Raises: InputError if a file is missing or of no known kind, or the hub cannot be reached.
    """
    parts = _hub_parts(config) if config.hub else _file_parts(config)
    return InteractionSource(
        files=tuple(file for part, _ in parts for file in part.files),
        settings={
            "columns": config.columns.in_language(config.language).model_dump(),
            "parts": [(part.label, side) for part, side in parts],
        },
        read=partial(_read, parts, config.columns.in_language(config.language)),
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
    columns = config.columns.in_language(config.language)
    wanted = _needed(columns)
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


def _needed(columns: ColumnMap) -> list[str]:
    """The columns that every row must have."""
    answers = (
        [columns.chosen, columns.rejected]
        if columns.responses is None
        else [columns.responses, columns.scores]
    )
    votes = [columns.chosen_votes, columns.rejected_votes, columns.chosen_share]
    needed = [*answers, *votes, columns.culture, columns.user, columns.question, columns.id]
    return [name for name in dict.fromkeys(needed) if name is not None]


def _read(
    parts: list[tuple[RowSource, Side | None]], columns: ColumnMap, notes: Notes
) -> Iterator[tuple[Place, Interaction]]:
    needed = frozenset(_needed(columns))
    if columns.user is not None:
        remedy = 'without users: no columns.user, split.by "question" and columns.question'
        notes.remedies[columns.user] = remedy
    for source, side in parts:
        for place, row in source.read(notes):
            try:
                if not needed <= row.keys():
                    missing = [name for name in _needed(columns) if name not in row]
                    raise MissingColumns(missing, row)
                name = f"{source.label}:{place.number}"
                yield place, _interaction(row, columns, name, side)
            except BadField as error:
                notes.problem(place, error)


def _interaction(row: Row, columns: ColumnMap, default_id: str, side: Side | None) -> Interaction:
    culture = get_field(row, columns.culture)
    if not isinstance(culture, str):
        raise BadField(columns.culture, culture, "must be text")
    if columns.responses is not None and columns.scores is not None:
        fields = [(columns.responses, v) for v in list_field(row, columns.responses)]
        scores = tuple(finite_number(columns.scores, v) for v in list_field(row, columns.scores))
        if len(fields) != len(scores):
            rule = f"must be one per response, got {len(scores)} for {len(fields)}"
            raise BadField(columns.scores, list(scores), rule)
    else:
        fields = [(name, get_field(row, name)) for name in (columns.chosen, columns.rejected)]
        scores = _votes(row, columns)
    turns, responses = _texts(row, columns.prompt, fields)
    return Interaction(
        interaction_id=default_id if columns.id is None else id_field(row, columns.id),
        culture=name_field(row, columns.culture),
        user=None if columns.user is None else name_field(row, columns.user),
        question=None if columns.question is None else name_field(row, columns.question),
        prompt=turns[-1][1],
        responses=responses,
        human_scores=scores,
        history=turns[:-1],
        split=side,
    )


def _votes(row: Row, columns: ColumnMap) -> tuple[float, float]:
    """The scores of `chosen` and `rejected`: their votes, their shares, or 1 and 0."""
    if columns.chosen_share is not None:
        share = _number_field(row, columns.chosen_share)
        if not 0.5 < share <= 1:
            raise BadField(columns.chosen_share, share, "must be above 0.5 and at most 1")
        return share, 1 - share
    if columns.chosen_votes is None or columns.rejected_votes is None:
        return 1.0, 0.0
    names = (columns.chosen_votes, columns.rejected_votes)
    chosen, rejected = (_number_field(row, name) for name in names)
    if rejected < 0:
        raise BadField(columns.rejected_votes, rejected, "must be 0 or more")
    if chosen <= rejected:
        rule = f"must be more than {columns.rejected_votes}, got {rejected:g}"
        raise BadField(columns.chosen_votes, chosen, rule)
    return chosen, rejected


def _texts(
    row: Row, prompt_column: str | None, fields: list[tuple[str, Any]]
) -> tuple[Turns, tuple[str, ...]]:
    """The turns up to the prompt, and the responses of `fields` (column, value) to it."""
    fields = [(name, messages_read(name, value)) for name, value in fields]
    prompt = None if prompt_column is None else row.get(prompt_column)
    if prompt == "" and not any(isinstance(value, str) for _, value in fields):
        prompt = None  # what CSV has for null
    if prompt is not None:
        turns = prompt_turns(str(prompt_column), prompt)
        return turns, tuple(reply(name, value, turns) for name, value in fields)
    conversations = [_conversation(prompt_column, name, value) for name, value in fields]
    turns = common_prefix(conversations)
    name = fields[0][0] if fields else "responses"
    if not turns or turns[-1][0] != "user":
        rule = "without a prompt, conversations must share their turns up to a user's message"
        raise BadField(name, fields[0][1] if fields else [], rule)
    return turns, tuple(
        _last_reply(name, value, conversation, turns)
        for (name, value), conversation in zip(fields, conversations, strict=True)
    )


def _conversation(prompt_column: str | None, name: str, value: Any) -> Turns:
    if not isinstance(value, str):
        return messages(name, value)
    turns = transcript(value)
    if turns is None:
        rule = f'must be set where {name} is plain text without "Human:" and "Assistant:" turns'
        raise BadField(prompt_column or "columns.prompt", None, rule)
    return turns


def prompt_turns(name: str, prompt: Any) -> Turns:
    """The turns up to the prompt, from a text, a transcript or messages; the last is the user's.

    Raises: BadField.
    """
    prompt = messages_read(name, prompt)
    if isinstance(prompt, str):
        turns = transcript(prompt)
        if turns is None:
            return (("user", prompt),)
        if turns[-1] == ("assistant", ""):  # "... Assistant:", for the reply to go on from
            turns = turns[:-1]
    else:
        turns = messages(name, prompt)
    if turns[-1][0] != "user":
        raise BadField(name, prompt, "must end with a user's message")
    return turns


def reply(name: str, value: Any, turns: Turns) -> str:
    """The one reply in `value`: a text, or messages with or without the `turns` before it.

    Raises: BadField.
    """
    if not isinstance(value, str):
        return _last_reply(name, value, messages(name, value), turns)
    dialogue = transcript(value)
    # A reply may itself be a dialogue: only one that begins with the prompt's turns is read as one.
    stripped = tuple((role, text.strip()) for role, text in turns)
    if dialogue is None or dialogue[: len(turns)] != stripped:
        return value
    return _last_reply(name, value, dialogue, stripped)


def _last_reply(name: str, value: Any, conversation: Turns, turns: Turns) -> str:
    rest = conversation[len(turns) :] if conversation[: len(turns)] == turns else conversation
    if len(rest) != 1 or rest[0][0] != "assistant":
        raise BadField(name, value, "must hold one assistant's message after the prompt")
    return rest[0][1]


def _number_field(row: Row, name: str) -> float:
    value = get_field(row, name)
    if isinstance(value, str):  # as all that CSV has
        try:
            value = parsed_value(value)
        except ValueError:
            raise BadField(name, value, "must be a number") from None
    return finite_number(name, value)


def list_field(row: Row, name: str) -> list[Any]:
    """A list, or one as text. Raises: BadField."""
    value = get_field(row, name)
    if isinstance(value, str):
        try:
            value = parsed_value(value)
        except ValueError:
            raise BadField(name, row[name], "must be a list, or one as JSON text") from None
    if not isinstance(value, list):
        raise BadField(name, row[name], "must be a list, or one as JSON text")
    return value


SOURCE = Source("preferences", version=1, settings=PreferencesConfig, open=open_preferences)
