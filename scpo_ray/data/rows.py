"""Rows of files and hub data sets, and notes of what was wrong with them."""

import ast
import csv
import gzip
import io
import json
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

from scpo_ray.records import InputError, Interaction
from scpo_ray.settings.spelling import plain_name

MAX_PROBLEMS = 20
MAX_ROW_BYTES = 64_000_000
MAX_PRINTED_CHARACTERS = 1_000_000
MAX_ROWS = 100_000_000
"""A file with more, of a row or of rows, is damaged or a trap; it is refused before it is read."""

FILE_KINDS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")

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


def file_source(
    path: Path, label: str, columns: Sequence[str], optional: Sequence[str]
) -> RowSource:
    """The rows of a JSONL, CSV or Parquet file, told apart by `path`'s ending.

    `columns` are read (a table without one of them is a problem), `optional` ones where they exist.
    """
    name = path.name.lower()
    if name.endswith((".jsonl", ".jsonl.gz")):
        read = partial(_read_jsonl, path)
    elif name.endswith((".csv", ".csv.gz")):
        read = partial(_read_csv, path, columns)
    elif name.endswith(".parquet"):
        read = partial(_read_parquet, path, columns, optional)
    else:
        raise InputError(f"{path}: the ending must be one of {', '.join(FILE_KINDS)}")
    return RowSource(label, (path,), partial(_not_empty, path, read))


def check_files(paths: Sequence[Path], setting: str) -> None:
    """Raises: InputError naming each of `paths` that is no file."""
    problems = [
        f"{setting}: {path}: {'is not a file' if path.exists() else 'no such file'}"
        for path in paths
        if not path.is_file()
    ]
    if problems:
        raise InputError("files cannot be read", problems)


def hub_source(path: str, config_name: str | None, split: str, setting: str) -> RowSource:
    """One split of a Hugging Face data set, downloaded once into the library's own cache.

    Raises: InputError if it cannot be reached, or has no such config or split.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        rows = datasets.load_dataset(path, config_name, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{setting} = {path}: neither a local folder nor a hub data set that can be reached",
            [f"split {split!r}: {reason}"],
        ) from None

    def read(notes: Notes) -> Iterator[tuple[Place, Row]]:
        for number, row in enumerate(rows, start=1):
            yield Place(f"{path} ({split})", number, "row"), row

    return RowSource(split, tuple(Path(file["filename"]) for file in rows.cache_files), read)


def _not_empty(
    path: Path, read: Callable[[Notes], Iterator[tuple[Place, Row]]], notes: Notes
) -> Iterator[tuple[Place, Row]]:
    problems_before, empty = notes.num_problems, True
    for item in read(notes):
        empty = False
        yield item
    if empty and notes.num_problems == problems_before:
        notes.problem(str(path), "the file is empty: it has no rows")


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _read_jsonl(path: Path, notes: Notes) -> Iterator[tuple[Place, Row]]:
    number = 0
    try:
        with _open(path) as stream:
            lines = iter(partial(stream.readline, MAX_ROW_BYTES + 1), b"")
            for number, raw in enumerate(lines, start=1):
                if not raw.strip():
                    continue
                place = Place(str(path), number)
                if len(raw) > MAX_ROW_BYTES:
                    notes.problem(place, f"a row of more than {MAX_ROW_BYTES} bytes")
                    return
                try:
                    # Encoded lone surrogates pass here: their rows are skipped and counted.
                    row = json.loads(raw.decode("utf-8", "surrogatepass").removeprefix("\ufeff"))
                except UnicodeDecodeError as error:
                    notes.problem(place, f"not UTF-8: {error.reason} at byte {error.start}")
                except (ValueError, RecursionError) as error:
                    notes.problem(place, f"not JSON: {error}: {shown(raw)}")
                else:
                    if isinstance(row, dict):
                        yield place, row
                    else:
                        notes.problem(place, f"must be a JSON object, got {shown(row)}")
    except (EOFError, zlib.error, OSError) as error:
        notes.problem(Place(str(path), number + 1), _unreadable(error))


def _read_csv(path: Path, columns: Sequence[str], notes: Notes) -> Iterator[tuple[Place, Row]]:
    # The library's limit of 131,072 characters a field is the whole process's; text may be longer.
    csv.field_size_limit(MAX_ROW_BYTES)
    number = 0
    try:
        with (
            _open(path) as raw,
            io.TextIOWrapper(raw, "utf-8-sig", "surrogatepass", newline="") as stream,
        ):
            reader = csv.reader(_bounded_lines(stream), strict=True)
            header = next(reader, None)
            if header is None or not _has_columns(path, columns, header, notes):
                return
            number = reader.line_num
            for cells in reader:
                place = Place(str(path), number + 1)
                number = reader.line_num
                if len(cells) == len(header):
                    yield place, dict(zip(header, cells, strict=True))
                elif cells:
                    notes.problem(place, f"{len(cells)} cells under {len(header)} column names")
    except UnicodeDecodeError as error:
        # The text is decoded in blocks, some lines ahead of the reader.
        notes.problem(Place(str(path), _undecodable_line(path)), f"not UTF-8: {error.reason}")
    except (EOFError, zlib.error, OSError, csv.Error) as error:
        notes.problem(Place(str(path), number + 1), _unreadable(error))


def _bounded_lines(stream: TextIO) -> Iterator[str]:
    """The lines, ends included. Raises: csv.Error at one longer than any row should be."""
    for line in iter(partial(stream.readline, MAX_ROW_BYTES + 1), ""):
        if len(line) > MAX_ROW_BYTES:
            raise csv.Error(f"a line of more than {MAX_ROW_BYTES} characters")
        yield line


def _undecodable_line(path: Path) -> int:
    """The number of the first line that is not UTF-8."""

    def is_utf8(line: bytes) -> bool:
        try:
            line.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return False
        return True

    with _open(path) as stream:
        return 1 + sum(1 for _ in takewhile(is_utf8, stream))


def _read_parquet(
    path: Path, columns: Sequence[str], optional: Sequence[str], notes: Notes
) -> Iterator[tuple[Place, Row]]:
    # Only here: settings are read with every source's file, and need none of it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if not _has_columns(path, columns, names, notes):
                return
            if file.metadata.num_rows > MAX_ROWS:
                notes.problem(str(path), f"{file.metadata.num_rows} rows: at most {MAX_ROWS}")
                return
            wanted = [*columns, *(name for name in optional if name in names)]
            for batch in file.iter_batches(batch_size=1_024, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield Place(str(path), number, "row"), row
    except (pa.ArrowException, OSError, UnicodeDecodeError, RecursionError) as error:
        notes.problem(Place(str(path), number + 1, "row"), f"not a whole Parquet file: {error}")


def _has_columns(path: Path, columns: Sequence[str], names: Sequence[str], notes: Notes) -> bool:
    missing = [column for column in columns if column not in names]
    if missing:
        notes.problem(str(path), MissingColumns(missing, names))
    twice = [column for column in columns if names.count(column) > 1]
    if twice:
        notes.problem(str(path), f"more than one column {', '.join(map(repr, twice))}")
    return not missing and not twice


def _unreadable(error: Exception) -> str:
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        return f"the gzip file is cut short or damaged: {error}"
    return f"cannot be read: {error}"
