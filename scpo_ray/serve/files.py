"""The rewards of a file's rows, part by part: stopped, the same call goes on with the rest."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scpo_ray.data.files import check_files, file_source
from scpo_ray.data.rows import BadField, Notes
from scpo_ray.records import InputError, Text
from scpo_ray.report.overviews import FileScores
from scpo_ray.serve.core import CultureRewards
from scpo_ray.serve.parts import Parts, join, parts_of, read_rows, split, write_scored
from scpo_ray.serve.rewardbench import TIES, TiesPrompt, by_subset, ties_prompt, ties_score
from scpo_ray.serve.rows import Asks, candidates, new_columns
from scpo_ray.storage.disk import file_digest

log = logging.getLogger(__name__)

Gained = list[dict[str, Any]]
ScoreParts = Callable[[Sequence[Path]], Iterable[tuple[int, Gained]]]
"""From the files of parts to each one's place among them and its rows' new columns, in any
order."""


def score_file(
    file: Path,
    output: Path,
    asks: Asks,
    rewards: CultureRewards,
    score_parts: ScoreParts,
) -> FileScores:
    """Writes the file's rows, every column kept, with the rewards that are asked for.

    All rows are looked at before the first is scored.

    Args:
        output: a .jsonl or .parquet file that is not there yet.
        rewards: whose models are asked.
        score_parts: who computes the parts.

    Raises: InputError naming the rows that are at fault, or as `CultureRewards.rewards`.
    """
    check_files([file], "file")
    parts = parts_of(file, output)
    asked = {"file": file_digest(file), "models": rewards.fingerprints, "asks": asdict(asks)}
    num_parts = parts.begin(asked)
    if num_parts is None:
        num_parts = _split(file, parts, asks, rewards.cultures)
        parts.all_split(asked, num_parts)
    missing = [n for n in range(num_parts) if not parts.scored_file(n).exists()]
    if len(missing) < num_parts:
        log.info("%s: goes on at part %d of %d", output, num_parts - len(missing) + 1, num_parts)
    files = [parts.raw_file(number) for number in missing]
    bar = tqdm(total=len(missing), desc="score", unit="part", disable=None, leave=False)
    with bar:
        for place, gained in score_parts(files):
            write_scored(parts, missing[place], gained)
            bar.update()
    num_rows, subsets = _counted(parts, num_parts, asks)
    join(parts, num_parts, output)
    return FileScores(str(output), num_rows, asks.columns, subsets)


def scored_here(
    files: Sequence[Path], asks: Asks, rewards: CultureRewards
) -> Iterator[tuple[int, Gained]]:
    """A `ScoreParts`: one part after the other, in this process."""
    for place, file in enumerate(files):
        yield place, new_columns(read_rows(file), asks, rewards.cultures, rewards.rewards)


def file_texts(file: Path) -> list[Text]:
    """The responses of a file's rows under their prompts. Raises: InputError naming the rows at
    fault."""
    check_files([file], "file")
    notes, texts, asks = Notes(), list[Text](), Asks((), (), "rows", False)
    for place, row in file_source(file, file.name, ("prompt",), ()).read(notes):
        try:
            found = candidates(row, asks, ())
        except (InputError, ValueError) as error:
            notes.problem(place, " ".join(str(error).split()))
            continue
        *history, (_, prompt) = [(m["role"], m["content"]) for m in found.messages]
        texts += [Text(tuple(history), prompt, response) for response in found.responses]
    notes.raise_problems()
    return texts


def _split(file: Path, parts: Parts, asks: Asks, cultures: Sequence[str]) -> int:
    """Cuts the file into parts; their number. Raises: InputError naming the rows at fault."""
    notes, num_parts, taken = Notes(), 0, set(asks.columns)
    for rows in split(file, parts, notes):
        num_parts += 1
        for place, row in rows:
            try:
                candidates(row, asks, cultures)
                if taken & row.keys():
                    name = sorted(taken & row.keys())[0]
                    raise BadField(name, row[name], "this column is what is computed; rename it")
            except InputError as error:
                notes.problem(place, ": ".join([error.title, *error.problems]))
            except ValueError as error:
                notes.problem(place, error)
    notes.raise_problems()
    return num_parts


def _counted(
    parts: Parts, num_parts: int, asks: Asks
) -> tuple[int, dict[str, dict[str, tuple[float, int]]]]:
    """The number of rows; of RewardBench 2, column -> subset -> its score and number of prompts."""
    num_rows = 0
    shares: dict[str, list[tuple[str, float]]] = {}
    ties: dict[str, list[TiesPrompt]] = {}
    for number in range(num_parts):
        rows = read_rows(parts.scored_file(number))
        num_rows += len(rows)
        if asks.form != "rewardbench2":
            continue
        for suffix, _ in asks.targets:
            column = f"right{suffix}"
            of_shares, of_ties = shares.setdefault(column, []), ties.setdefault(column, [])
            for row in rows:
                subset = str(row.get("subset", "all"))
                if subset == TIES:
                    scores = row[f"score{suffix}"]
                    of_ties.append(ties_prompt(str(row["id"]), scores, int(row["num_correct"])))
                else:
                    of_shares.append((subset, row[column]))
    found = {column: by_subset(rows) for column, rows in shares.items()}
    for column, prompts in ties.items():
        if prompts:
            found[column][TIES] = (ties_score(prompts), len(prompts))
    return num_rows, found
