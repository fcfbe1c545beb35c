"""Two files of anybody's scores of responses, and people's scores of the same, into test pairs."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scpo_ray.data.files import check_files, file_source
from scpo_ray.data.messages import messages, messages_read
from scpo_ray.data.pairing import make_pairs
from scpo_ray.data.preferences import list_field
from scpo_ray.data.rows import BadField, MissingColumns, Notes, finite_number, name_field
from scpo_ray.records import InputError, Pairs

NEEDED = ("prompt", "responses", "scores")
OPTIONAL = ("human_scores", "culture", "user", "question")
ONE_CULTURE = "all"
"""The culture of files that name none."""

Key = tuple[str | None, str, str]
"""Culture (None where the file names none), prompt, response: what a model's score is of."""


@dataclass(frozen=True)
class ScoredPairs:
    """The test pairs of two models' files.

    Attributes:
        pairs: index the scores; clusters are users, or else questions, or else prompts.
        scores, other_scores: (T,) float64 of the first and of the second file's model: as they
            stand there, for what is far from 0 in float32 is rounded by more than models differ.
        lengths: (T,) int64, characters of the responses.
        left_out: reason -> rows of people's scores that are in no number.
        clusters: what the clusters are: of "users", "questions", "prompts" those that occur.
    """

    pairs: Pairs
    scores: NDArray[np.float64]
    other_scores: NDArray[np.float64]
    lengths: NDArray[np.int64]
    left_out: dict[str, int]
    clusters: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    culture: str | None
    user: str | None
    question: str | None
    prompt: str
    words: str
    responses: tuple[str, ...]
    scores: tuple[float, ...]
    human_scores: tuple[float, ...] | None


def read_scored_pairs(first: Path, second: Path) -> ScoredPairs:
    """The pairs of responses that people scored differently and both models scored.

    A row is a prompt (text or chat messages), its `responses` and a model's `scores` of them, and
    may have `human_scores` (higher is preferred), `culture`, `user`, `question`. People's scores
    are those of the first file that has any; the models' are found by prompt and response, and by
    culture where the file names one. Lists may stand as JSON text.

    Raises: InputError naming the bad rows, or why nothing can be compared.
    """
    check_files([first, second], "--scores")
    notes = Notes()
    files = [_read(path, notes) for path in (first, second)]
    notes.raise_problems()
    people = next((rows for rows in files if any(r.human_scores is not None for r in rows)), None)
    if people is None:
        rule = "one of the files must have a column human_scores, a number for each response"
        raise InputError(f"{first}, {second}: nobody says what is preferred", [rule])
    known = [_model_scores(rows, path) for rows, path in zip(files, (first, second), strict=True)]
    left_out: Counter[str] = Counter()
    used, lacking = _usable(people, known, left_out)
    if lacking:
        left_out.update(_why_lacking(lacking, next(rows for rows in files if rows is not people)))
    clusters = [_cluster(row) for row, _ in used]
    pairs = _pairs([row for row, _ in used], clusters)
    if num_tied := len(used) - len(np.unique(pairs.interactions)):
        left_out["all its human scores are equal, to about seven digits"] = num_tied
    if not len(pairs):
        raise InputError(
            f"{first}, {second}: no pair of responses to compare",
            [f"{reason}: {number} rows" for reason, number in left_out.items()],
        )
    scores = np.array([s for _, of in used for s in of], dtype=np.float64).reshape(-1, 2)
    lengths = np.array([len(text) for row, _ in used for text in row.responses], dtype=np.int64)
    kinds = tuple(dict.fromkeys(kind for kind, _ in clusters))
    return ScoredPairs(pairs, scores[:, 0], scores[:, 1], lengths, dict(left_out), kinds)


def _read(path: Path, notes: Notes) -> list[_Row]:
    rows = []
    for place, row in file_source(path, path.name, NEEDED, OPTIONAL).read(notes):
        try:
            rows.append(_row(row))
        except BadField as error:
            notes.problem(place, error)
    return rows


def _row(row: dict[str, Any]) -> _Row:
    missing = [name for name in NEEDED if name not in row]
    if missing:
        raise MissingColumns(missing, row)
    responses = list_field(row, "responses")
    if len(responses) < 2 or not all(isinstance(text, str) for text in responses):
        raise BadField("responses", responses, "must be two texts or more")
    if len(set(responses)) < len(responses):
        raise BadField("responses", responses, "must differ from each other")
    named = {
        name: name_field(row, name) if row.get(name) not in (None, "") else None
        for name in ("culture", "user", "question")
    }
    prompt, words = _prompt(row["prompt"])
    has_people = row.get("human_scores") not in (None, "")
    return _Row(
        **named,
        prompt=prompt,
        words=words,
        responses=tuple(responses),
        scores=_numbers(row, "scores", len(responses)),
        human_scores=_numbers(row, "human_scores", len(responses)) if has_people else None,
    )


def _prompt(value: Any) -> tuple[str, str]:
    """As one text, of chat messages each role and text; and what is said alone, without roles."""
    read = messages_read("prompt", value)
    if isinstance(read, str):
        return read, read
    turns = messages("prompt", read)
    return "\n".join(f"{role}: {text}" for role, text in turns), "\n".join(t for _, t in turns)


def _numbers(row: dict[str, Any], name: str, count: int) -> tuple[float, ...]:
    values = tuple(finite_number(name, value) for value in list_field(row, name))
    if len(values) != count:
        raise BadField(
            name, list(values), f"must be one per response, got {len(values)} for {count}"
        )
    return values


def _model_scores(rows: Sequence[_Row], path: Path) -> dict[Key, float]:
    known: dict[Key, float] = {}
    for row in rows:
        for text, score in zip(row.responses, row.scores, strict=True):
            key = (row.culture, row.prompt, text)
            if known.setdefault(key, score) != score:
                raise InputError(
                    f"{path}: a response has two scores, {known[key]:g} and {score:g}",
                    [f"prompt {row.prompt[:80]!r}, response {text[:80]!r}"],
                )
    return known


def _usable(
    people: Sequence[_Row], known: Sequence[dict[Key, float]], left_out: Counter[str]
) -> tuple[list[tuple[_Row, list[tuple[float, float]]]], list[tuple[_Row, str]]]:
    """Rows that people scored, with both models' scores of each response; and those of which a
    response is in their own file alone, with the first such response."""
    used, lacking = [], []
    for row in people:
        if row.human_scores is None:
            left_out["without human_scores"] += 1
            continue
        found = [[_score(row, text, scores) for scores in known] for text in row.responses]
        both = [(a, b) for a, b in found if a is not None and b is not None]
        if len(both) < len(found):
            lacking.append((row, row.responses[[None in pair for pair in found].index(True)]))
        else:
            used.append((row, both))
    return used, lacking


def _why_lacking(lacking: Sequence[tuple[_Row, str]], other: Sequence[_Row]) -> Iterator[str]:
    """For each response that the other file lacks, what differs where the rest of it is there."""
    cultures: dict[tuple[str, str], dict[str | None, None]] = defaultdict(dict)
    forms = set()
    for row in other:
        for text in row.responses:
            cultures[row.prompt, text][row.culture] = None
            forms.add((row.words, text))
    for row, text in lacking:
        if found := cultures.get((row.prompt, text)):
            there = ", ".join(str(name) for name in list(found)[:3])
            there += f" and {len(found) - 3} more" if len(found) > 3 else ""
            mine = "no culture" if row.culture is None else row.culture
            yield f"a response is scored for {mine} in one file, for {there} in the other"
        elif (row.words, text) in forms:
            yield "its prompt is text in one file and chat messages (or other roles) in the other"
        else:
            yield "a response is scored in one file alone"


def _score(row: _Row, text: str, scores: dict[Key, float]) -> float | None:
    own = scores.get((row.culture, row.prompt, text))
    return scores.get((None, row.prompt, text)) if own is None else own


def _cluster(row: _Row) -> tuple[str, str]:
    """What the row came into the data with. Where nobody is named, rows of one prompt may be of one
    person or of many, and are alike in any case: the models' scores of them are the same."""
    if row.user is not None:
        return "users", row.user
    return ("prompts", row.prompt) if row.question is None else ("questions", row.question)


def _pairs(rows: Sequence[_Row], clusters: Sequence[tuple[str, str]]) -> Pairs:
    offsets = np.cumsum([0, *(len(row.responses) for row in rows)], dtype=np.int64)
    human_scores = np.array([s for row in rows for s in row.human_scores or ()], dtype=np.float64)
    # Within a row all texts differ, so each is a text of its own.
    hashes = np.arange(len(human_scores), dtype=np.uint64)
    found = make_pairs(offsets, human_scores, hashes, np.arange(len(rows)), min_gap=0.0)
    cultures = list(dict.fromkeys(row.culture or ONE_CULTURE for row in rows))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    culture_codes = np.array([cultures.index(r.culture or ONE_CULTURE) for r in rows], np.int32)
    cluster_codes = np.array([numbers[name] for name in clusters], np.int64)
    starts = offsets[found.interactions]
    chosen, rejected = starts + found.chosen_responses, starts + found.rejected_responses
    return Pairs(
        interactions=found.interactions,
        chosen=chosen,
        rejected=rejected,
        chosen_responses=found.chosen_responses,
        rejected_responses=found.rejected_responses,
        chosen_scores=human_scores[chosen].astype(np.float32),
        rejected_scores=human_scores[rejected].astype(np.float32),
        culture_codes=culture_codes[found.interactions],
        cluster_codes=cluster_codes[found.interactions],
        cultures=tuple(cultures),
    )
