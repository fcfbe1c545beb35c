"""GlobalOpinionQA: survey questions and each country's answers, into interactions."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from scpo_ray.data.files import check_files, file_source, hub_source
from scpo_ray.data.rows import (
    BadField,
    InteractionSource,
    Notes,
    Place,
    Row,
    RowSource,
    is_unicode,
    printed_value,
    shown,
    text_field,
)
from scpo_ray.records import Interaction
from scpo_ray.settings.countries import country_and_sample, country_name
from scpo_ray.settings.data import PAPER_CULTURES, DataSection, Source, SplitConfig
from scpo_ray.settings.spelling import plain_name

COLUMNS = ("question", "selections", "options")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

REFUSAL = re.compile(
    r"(other )?missing\b.*"
    r"|((dk|don['\u2019]?t know|no answer|refused|not asked|no opinion)\b[/;, ]*)+",
    re.IGNORECASE,
)
"""What the surveys write for people who gave no answer. "Hard to say", "Neither" and whatever a
person volunteered are answers."""

# Rounding in the published shares; more is not a share.
SHARE_TOLERANCE = 1e-6

_DEFAULTDICT = re.compile(r"\s*defaultdict\(\s*<class '\w+'>\s*,(?P<mapping>.*)\)\s*", re.DOTALL)


class QuestionSplitConfig(SplitConfig):
    by: Literal["question"] = "question"
    """A question is on one side in every country: its rows share their text."""


class OpinionsConfig(DataSection):
    source: Literal["opinions"]
    """GlobalOpinionQA: survey questions and how each country's people answered them."""

    holds_opinions: ClassVar[bool] = True

    licence: ClassVar[str] = "CC-BY-NC-SA-4.0"

    path: str = "Anthropic/llm_global_opinions"
    """A CSV file (plain or .gz) with the columns question, selections, options and source, or a
    hub data set."""

    cultures: list[str] | None = list(PAPER_CULTURES)
    """Countries, in PRISM's spelling or the survey's ("S. Africa"); the default is the paper's
    seven. null: all, of which some have too few questions."""

    national_only: bool = True
    """Leave out samples that do not stand for a country ("Non-national sample", "Old national
    sample"); false: each is a culture of its own."""

    min_share_gap: float = Field(0.05, ge=0, lt=1)
    """Two options make a pair where their shares are further apart than this."""

    options_as: Literal["texts", "letters"] = "texts"
    """What the model scores: an option's text, or its letter under a lettered list."""

    num_option_orders: int = Field(4, ge=1)
    """With letters: orders in which a question's options are listed, each with another option
    first (as many as it has options at most); the model's shares are the mean over them."""

    split: QuestionSplitConfig = QuestionSplitConfig()
    """How train, dev and test are told apart: by question, the same for all countries."""

    @staticmethod
    def culture_name(spelling: str) -> str:
        return country_name(spelling)

    @property
    def min_score_gap(self) -> float:
        return self.min_share_gap


@dataclass(frozen=True, slots=True)
class Question:
    """One row. `shares`: country -> share of each option, summing to 1. `number` counts from 1."""

    place: Place
    number: int
    text: str
    options: tuple[str, ...]
    shares: dict[str, tuple[float, ...]]

    @property
    def key(self) -> str:
        """What rows that ask the same have in common: their spaces and capitals may differ."""
        return plain_name(self.text).casefold()


def open_opinions(config: OpinionsConfig) -> InteractionSource:
    """One interaction for each question, country and order of the options.

    Responses are the question's options, scores the country's shares. With letters the orders
    follow each other, the source's own first, each the one before turned by one option.

    Raises: InputError if neither a file nor a hub data set is at the path.
    """
    if Path(config.path).exists() or config.path.lower().endswith((".csv", ".csv.gz")):
        check_files([Path(config.path)], "data.path")
        rows = file_source(Path(config.path), "opinions", columns=COLUMNS, optional=())
    else:
        rows = hub_source(config.path, None, "train", "data.path")
    return InteractionSource(
        files=rows.files,
        settings={
            "national_only": config.national_only,
            "options_as": config.options_as,
            "orders": config.num_option_orders if config.options_as == "letters" else 1,
        },
        read=partial(_read, rows, config),
    )


def is_refusal(option: str) -> bool:
    return REFUSAL.fullmatch(option.strip()) is not None


def _read(
    rows: RowSource, config: OpinionsConfig, notes: Notes
) -> Iterator[tuple[Place, Interaction]]:
    # All at once: the split is over every question, also those only a left-out sample answered.
    questions = _read_questions(rows, config, notes)
    notes.raise_problems()
    notes.questions.extend(dict.fromkeys(question.key for question in questions))
    return _interactions(questions, config)


def _read_questions(rows: RowSource, config: OpinionsConfig, notes: Notes) -> list[Question]:
    questions: list[Question] = []
    skipped: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, tuple[str, ...], str], Question] = {}
    for number, (place, row) in enumerate(rows.read(notes), start=1):
        try:
            text, options = text_field(row, "question"), _options(row)
            reason = _unusable(text, options, config)
            if reason:
                notes.skipped["", reason] += 1
                continue
            shares = _shares(row, len(options), config, skipped)
            question = Question(place, number, text, options, shares)
            _drop_repeated(question, first, skipped)
        except BadField as error:
            notes.problem(place, error)
            continue
        questions.append(question)
    countries = {country for question in questions for country in question.shares}
    for (country, reason), count in skipped.items():
        # A country of which nothing is left is not among the cultures that show their own.
        known = not country or country in countries
        notes.skipped[(country, reason) if known else ("", f"{country}: {reason}")] += count
    return questions


def _unusable(text: str, options: tuple[str, ...], config: OpinionsConfig) -> str | None:
    """Why a row is of no use to any country; None where it is."""
    if not text.strip():
        return "empty question"
    if len(options) < 2:
        return "question with fewer than 2 options"
    if not all(option.strip() for option in options):
        return "question with an empty option"
    if not all(map(is_unicode, [text, *options])):
        return "question not valid Unicode"
    if len(set(options)) < len(options):
        return "question with equal options"
    if config.options_as == "letters" and len(options) > len(LETTERS):
        return f"question with more than {len(LETTERS)} options, too many for letters"
    return None


def _options(row: Row) -> tuple[str, ...]:
    text = text_field(row, "options")
    values = _parsed(text)
    if not isinstance(values, list):
        raise BadField("options", text, "must be a printed list")
    for number, value in enumerate(values, start=1):
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            rule = f"option {number} is {shown(value)}: must be text or a number"
            raise BadField("options", text, rule)
    return tuple(str(value) for value in values)


def _shares(
    row: Row, num_options: int, config: OpinionsConfig, skipped: Counter[tuple[str, str]]
) -> dict[str, tuple[float, ...]]:
    text = text_field(row, "selections")
    match = _DEFAULTDICT.fullmatch(text)
    selections = _parsed(match["mapping"] if match else text)
    if not isinstance(selections, dict):
        raise BadField("selections", text, "must be a printed dict of country -> shares")
    found: dict[str, tuple[float, ...]] = {}
    for spelling, values in selections.items():
        if not isinstance(spelling, str) or not spelling.strip():
            raise BadField("selections", spelling, "a country must be text, not blank")
        sample = country_and_sample(spelling)[1]
        if sample and config.national_only:
            skipped["", f"distribution of a {sample} (data.national_only)"] += 1
            continue
        country = country_name(spelling)
        shares, reason = _distribution(f"selections[{spelling!r}]", values, num_options)
        if not reason and country in found:
            reason = "second distribution of the country"
        if reason:
            skipped[country, reason] += 1
        else:
            found[country] = shares
    return found


def _distribution(
    field: str, values: object, num_options: int
) -> tuple[tuple[float, ...], str | None]:
    """Shares that sum to 1, or why there are none. Raises: BadField where one is no share."""
    if values is None or values == []:
        return (), "missing distribution"
    if not isinstance(values, list):
        raise BadField(field, values, "must be a list of shares")
    numbers = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadField(field, value, "a share must be a number")
        if math.isfinite(value) and not 0 <= value <= 1 + SHARE_TOLERANCE:
            raise BadField(field, value, "a share must be from 0 to 1")
        numbers.append(float(value))
    if len(numbers) != num_options:
        return (), "shares and options differ in number"
    if not all(map(math.isfinite, numbers)):
        return (), "distribution with a share that is not finite"
    total = math.fsum(numbers)
    if not total:
        return (), "distribution of zeros"
    return tuple(number / total for number in numbers), None


def _drop_repeated(
    question: Question,
    first: dict[tuple[str, tuple[str, ...], str], Question],
    skipped: Counter[tuple[str, str]],
) -> None:
    """Leaves out what an earlier row says too. Raises: BadField where the two disagree."""
    for country in list(question.shares):
        earlier = first.setdefault((question.key, question.options, country), question)
        if earlier is question:
            continue
        if earlier.shares[country] != question.shares[country]:
            rule = f"duplicate, also at {earlier.place}, with other shares of {country!r}"
            raise BadField("question", question.text, rule)
        skipped[country, "distribution given twice"] += 1
        # The earlier row keeps its own: `first` never points here for this country.
        del question.shares[country]


def _interactions(
    questions: list[Question], config: OpinionsConfig
) -> Iterator[tuple[Place, Interaction]]:
    for question in questions:
        refusals = tuple(map(is_refusal, question.options))
        size = len(question.options)
        num_orders = min(config.num_option_orders, size) if config.options_as == "letters" else 1
        for country, shares in question.shares.items():
            for turn in range(num_orders):
                order = tuple((turn + place) % size for place in range(size))
                options = tuple(question.options[option] for option in order)
                prompt, responses = question.text, options
                name = f"q{question.number}:{country}"
                if config.options_as == "letters":
                    prompt, responses = lettered(question.text, options)
                    name = f"{name}:{turn}"
                yield (
                    question.place,
                    Interaction(
                        interaction_id=name,
                        culture=country,
                        user=None,
                        question=question.key,
                        prompt=prompt,
                        responses=responses,
                        human_scores=tuple(shares[option] for option in order),
                        option_numbers=order,
                        refusals=tuple(refusals[option] for option in order),
                    ),
                )


def lettered(question: str, options: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The question with its options under letters, and the letters."""
    letters = tuple(LETTERS[: len(options)])
    lines = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]
    return "\n".join([question, *lines]), letters


def _parsed(text: str) -> Any:
    """The value printed in `text`; `text` itself where it is none."""
    try:
        return printed_value(text)
    except ValueError:
        return text


SOURCE = Source("opinions", version=1, settings=OpinionsConfig, open=open_opinions)
