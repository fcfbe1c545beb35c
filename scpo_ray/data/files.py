"""Files and hub data sets into rows."""

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from scpo_ray.data.rows import MissingColumns, Notes, Place, Row, RowSource, shown
from scpo_ray.records import InputError

MAX_ROW_BYTES = 64_000_000
MAX_ROWS = 100_000_000
"""A file with more, of a row or of rows, is damaged or a trap; it is refused before it is read."""

FILE_KINDS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")


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


def first_rows(path: Path, count: int, notes: Notes) -> list[Row]:
    """Up to `count` rows of a file, with all of its columns.

    Raises: InputError if there is no such file or it is of no known kind.
    """
    check_files([path], "file")
    columns: list[str] = []
    if path.name.lower().endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            columns = pq.read_schema(path).names
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: not a whole Parquet file", [str(error)]) from None
    source = file_source(path, path.name, columns, [])
    return [row for _, row in islice(source.read(notes), count)]


def check_files(paths: Sequence[Path], setting: str) -> None:
    """Raises: InputError naming each of `paths` that is no file."""
    # Unlike Path's, these take what is too long for a path for no file.
    problems = [
        f"{setting}: {path}: {'is not a file' if os.path.exists(path) else 'no such file'}"
        for path in paths
        if not os.path.isfile(path)
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
                    text = raw.decode("utf-8", "surrogatepass").removeprefix("\ufeff")
                    row = json.loads(text, object_pairs_hook=_fields)
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


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields. Raises: ValueError at a name that stands in it twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shown(twice)} stands twice in one object")
    return fields


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
    except (ValueError, OverflowError) as error:  # a date or a time that Python has not
        notes.problem(Place(str(path), number + 1, "row"), f"a value cannot be read: {error}")


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
