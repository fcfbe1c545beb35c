"""PRISM: a survey of people and the scored replies they got, into interactions."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from scpo_ray.data.files import check_files, file_source, hub_source
from scpo_ray.data.rows import (
    BadField,
    InteractionSource,
    Notes,
    Place,
    Row,
    RowSource,
    finite_number,
    get_field,
    id_field,
    name_field,
    text_field,
)
from scpo_ray.records import Interaction
from scpo_ray.settings.data import PAPER_CULTURES, DataSection, Source

NO_COUNTRY = "interaction of a user without country"


class PrismConfig(DataSection):
    licence: ClassVar[str] = "CC-BY-4.0 for what people wrote, CC-BY-NC-4.0 for what models wrote"

    source: Literal["prism"] = "prism"
    """PRISM: people from 75 countries scored the replies of language models."""

    path: str = "HannahRoseKirk/prism-alignment"
    """A folder with survey.jsonl and utterances.jsonl (plain or .gz), or a hub data set."""

    cultures: list[str] | None = list(PAPER_CULTURES)
    """Countries where the users live (`reside_country`); the default is the paper's seven."""

    history: bool = False
    """Put the conversation's earlier turns before the prompt (the paper does not)."""


class Utterance(NamedTuple):
    """One reply; `turn` and `chosen` are read for the history alone."""

    place: Place
    utterance_id: str
    interaction_id: str
    user: str
    prompt: str
    response: str
    score: float
    turn: int
    chosen: bool


def open_prism(config: PrismConfig) -> InteractionSource:
    """PRISM's interactions: a turn of a conversation, its replies and their scores.

    Raises: InputError if neither a folder with the two files nor a hub data set is at the path.
    """
    survey, utterances = _open_files(config.path)
    return InteractionSource(
        files=survey.files + utterances.files,
        settings={"history": config.history},
        read=partial(_read, survey, utterances, config.history),
    )


def _open_files(path: str) -> tuple[RowSource, RowSource]:
    folder = Path(path)
    if not folder.exists():
        survey = hub_source(path, "survey", "train", "data.path")
        return survey, hub_source(path, "utterances", "train", "data.path")
    files = []
    for name in ("survey.jsonl", "utterances.jsonl"):
        plain, packed = folder / name, folder / f"{name}.gz"
        files.append(packed if packed.is_file() and not plain.is_file() else plain)
    check_files(files, "data.path")
    survey_file, utterances_file = files
    return (
        file_source(survey_file, "survey", columns=(), optional=()),
        file_source(utterances_file, "utterances", columns=(), optional=()),
    )


def _read(
    survey: RowSource, utterances: RowSource, history: bool, notes: Notes
) -> Iterator[tuple[Place, Interaction]]:
    countries = _read_survey(survey, notes)
    # Every utterance of a user whose survey row is bad would be one more problem.
    notes.raise_problems()
    notes.users.extend(countries)
    return _interactions(utterances, countries, history, notes)


def _read_survey(survey: RowSource, notes: Notes) -> dict[str, str]:
    """User -> country where they live, in file order; "" where they do not say."""
    countries: dict[str, str] = {}
    places: dict[str, Place] = {}
    for place, row in survey.read(notes):
        try:
            user = name_field(row, "user_id")
            country = _country(row)
        except BadField as error:
            notes.problem(place, error)
            continue
        if user in countries:
            notes.problem(place, f"duplicate user_id {user!r}, also at {places[user]}")
            continue
        countries[user], places[user] = country, place
        if not country:
            notes.skipped["", "user without country"] += 1
    return countries


def _country(row: Row) -> str:
    location = get_field(row, "location")
    if not isinstance(location, dict):
        raise BadField("location", location, "must be an object with reside_country")
    country = get_field(location, "reside_country")
    if country is None or (isinstance(country, str) and not country.strip()):
        return ""
    return name_field(location, "reside_country")


def _interactions(
    source: RowSource, countries: dict[str, str], history: bool, notes: Notes
) -> Iterator[tuple[Place, Interaction]]:
    for utterances in _conversations(source, countries, history, notes):
        turns: dict[str, list[Utterance]] = {}
        for utterance in utterances:
            turns.setdefault(utterance.interaction_id, []).append(utterance)
        for turn in turns.values():
            first = turn[0]
            if not _agree(turn, notes):
                continue
            country = countries[first.user]
            if not country:
                notes.skipped["", NO_COUNTRY] += 1
                continue
            before = _history(list(turns.values()), first.turn, notes) if history else ()
            interaction = Interaction(
                interaction_id=first.interaction_id,
                culture=country,
                user=first.user,
                question=None,
                prompt=first.prompt,
                responses=tuple(u.response for u in turn),
                human_scores=tuple(u.score for u in turn),
                history=before,
            )
            yield first.place, interaction


def _conversations(
    source: RowSource, countries: dict[str, str], history: bool, notes: Notes
) -> Iterator[list[Utterance]]:
    """Each conversation's utterances, as soon as its last one is read.

    The file is read twice, first to learn where each ends: then only unfinished ones are held.
    """
    left = Counter(
        row["conversation_id"]
        for _, row in source.read(Notes())
        if isinstance(row.get("conversation_id"), str)
    )
    unfinished: dict[str, list[Utterance]] = {}
    for place, row in source.read(notes):
        try:
            conversation = text_field(row, "conversation_id")
            utterance = _utterance(place, row, history)
            if utterance.user not in countries:
                raise BadField("user_id", utterance.user, "is not in the survey")
        except BadField as error:
            notes.problem(place, error)
            continue
        unfinished.setdefault(conversation, []).append(utterance)
        left[conversation] -= 1
        if not left[conversation]:
            yield unfinished.pop(conversation)


def _utterance(place: Place, row: Row, history: bool) -> Utterance:
    turn = get_field(row, "turn") if history else 0
    chosen = get_field(row, "if_chosen") if history else False
    if not isinstance(turn, int) or isinstance(turn, bool):
        raise BadField("turn", turn, "must be a whole number")
    if not isinstance(chosen, bool):
        raise BadField("if_chosen", chosen, "must be true or false")
    return Utterance(
        place=place,
        utterance_id=id_field(row, "utterance_id"),
        interaction_id=id_field(row, "interaction_id"),
        user=name_field(row, "user_id"),
        prompt=text_field(row, "user_prompt"),
        response=text_field(row, "model_response"),
        score=finite_number("score", get_field(row, "score")),
        turn=turn,
        chosen=chosen,
    )


def _agree(turn: list[Utterance], notes: Notes) -> bool:
    """Whether one interaction's utterances are of one user and prompt, each there once."""
    first = turn[0]
    problems_before = notes.num_problems
    places: dict[str, Place] = {}
    for utterance in turn:
        for field, value, expected in (
            ("user_id", utterance.user, first.user),
            ("user_prompt", utterance.prompt, first.prompt),
        ):
            if value != expected:
                rule = f"differs within interaction {first.interaction_id!r} from {first.place}"
                notes.problem(utterance.place, BadField(field, value, rule))
        known = places.setdefault(utterance.utterance_id, utterance.place)
        if known != utterance.place:
            what = f"duplicate utterance_id {utterance.utterance_id!r}, also at {known}"
            notes.problem(utterance.place, what)
    return notes.num_problems == problems_before


def _history(
    turns: list[list[Utterance]], turn_number: int, notes: Notes
) -> tuple[tuple[str, str], ...]:
    """The prompts before the turn, each with the reply its user went on with."""
    before: list[tuple[str, str]] = []
    for turn in sorted(turns, key=lambda turn: turn[0].turn):
        if turn[0].turn >= turn_number:
            break
        chosen = [utterance for utterance in turn if utterance.chosen]
        if len(chosen) != 1:
            what = f"if_chosen is true for {len(chosen)} replies of {turn[0].interaction_id!r}"
            notes.problem(turn[0].place, f"{what}: must be 1")
            continue
        before += [("user", turn[0].prompt), ("assistant", chosen[0].response)]
    return tuple(before)


SOURCE = Source("prism", version=1, settings=PrismConfig, open=open_prism)
