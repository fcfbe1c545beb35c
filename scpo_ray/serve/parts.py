"""A file's rows in parts on the disk, as they are and with what they gained; together at the end.

Beside the output, while it is made:

    .<output>.parts/asked.json           what is asked: another question begins anew
    .<output>.parts/rows-00000.jsonl     (or .parquet) the rows as the file has them
    .<output>.parts/scored-00000.jsonl   (or .parquet) the same with their new columns
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scpo_ray.data.files import MAX_ROWS, file_source
from scpo_ray.data.rows import MissingColumns, Notes, Place, Row
from scpo_ray.records import InputError
from scpo_ray.storage.disk import disk_errors, read_json, remove, whole_file, write_json

PART_ROWS = 1_000
JSONL, PARQUET = ".jsonl", ".parquet"


@dataclass(frozen=True)
class Parts:
    """The parts of one output. `raw`, `scored`: the endings of their files."""

    folder: Path
    raw: str
    scored: str

    def raw_file(self, number: int) -> Path:
        return self.folder / f"rows-{number:05d}{self.raw}"

    def scored_file(self, number: int) -> Path:
        return self.folder / f"scored-{number:05d}{self.scored}"

    def begin(self, asked: Mapping[str, Any]) -> int | None:
        """The number of parts of an earlier call that asked the same; None: there is none, and
        what was left of another is removed."""
        note = self.folder / "asked.json"
        try:
            known = json.loads(read_json(note, ""))
        except InputError:
            known = {}
        if known.get("asked") == json.loads(json.dumps(asked)):
            return int(known["num_parts"])
        with disk_errors(self.folder):
            remove(self.folder)
            self.folder.mkdir(parents=True)
        return None

    def all_split(self, asked: Mapping[str, Any], num_parts: int) -> None:
        """Says that every row of the file was good, and is in a part."""
        write_json(self.folder / "asked.json", {"asked": asked, "num_parts": num_parts})


def parts_of(file: Path, output: Path) -> Parts:
    """Raises: InputError if the output has no ending that can be written, or exists."""
    if output.suffix not in (JSONL, PARQUET):
        raise InputError(f"{output}: the ending must be one of {JSONL}, {PARQUET}")
    if output.exists():
        raise InputError(f"{output}: exists; name a new file")
    raw = PARQUET if file.name.lower().endswith(PARQUET) else JSONL
    return Parts(output.with_name(f".{output.name}.parts"), raw, output.suffix)


def split(file: Path, parts: Parts, notes: Notes) -> Iterator[list[tuple[Place, Row]]]:
    """Writes the parts of a file's rows, and yields the rows of each.

    What cannot be read is noted.
    """
    if parts.raw == PARQUET:
        yield from _split_parquet(file, parts, notes)
        return
    number, rows = 0, list[tuple[Place, Row]]()
    for placed in file_source(file, file.name, ("prompt",), ()).read(notes):
        rows.append(placed)
        if len(rows) == PART_ROWS:
            _write_jsonl(parts.raw_file(number), [row for _, row in rows])
            yield rows
            number, rows = number + 1, []
    if rows:
        _write_jsonl(parts.raw_file(number), [row for _, row in rows])
        yield rows


def _split_parquet(file: Path, parts: Parts, notes: Notes) -> Iterator[list[tuple[Place, Row]]]:
    number = 0
    try:
        with pq.ParquetFile(file) as opened:
            if opened.metadata.num_rows > MAX_ROWS:
                notes.problem(str(file), f"{opened.metadata.num_rows} rows: at most {MAX_ROWS}")
                return
            if "prompt" not in opened.schema_arrow.names:
                notes.problem(str(file), MissingColumns(["prompt"], opened.schema_arrow.names))
                return
            for batch in opened.iter_batches(batch_size=PART_ROWS):
                table = pa.Table.from_batches([batch])
                with whole_file(parts.raw_file(number)) as part:
                    pq.write_table(table, part)
                first = number * PART_ROWS + 1
                yield [
                    (Place(str(file), first + place, "row"), row)
                    for place, row in enumerate(table.to_pylist())
                ]
                number += 1
            if number == 0:
                notes.problem(str(file), "the file is empty: it has no rows")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        notes.problem(str(file), f"not a whole Parquet file: {error}")


def read_rows(file: Path) -> list[Row]:
    """The rows of a part."""
    if file.suffix == PARQUET:
        rows: list[Row] = pq.read_table(file).to_pylist()
        return rows
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write_scored(parts: Parts, number: int, gained: Sequence[Mapping[str, Any]]) -> None:
    """A part's rows with their new columns.

    Raises: InputError if no table holds them.
    """
    raw, target = parts.raw_file(number), parts.scored_file(number)
    if parts.scored == JSONL:
        rows = read_rows(raw)
        _write_jsonl(target, [{**row, **new} for row, new in zip(rows, gained, strict=True)])
        return
    try:
        if parts.raw == PARQUET:
            table = pq.read_table(raw)
        else:
            table = pa.Table.from_pylist(read_rows(raw))
        new = pa.Table.from_pylist(list(gained))
        for name in new.column_names:
            table = table.append_column(name, new[name])
        with whole_file(target) as part:
            pq.write_table(table, part)
    except pa.ArrowException as error:
        raise _no_table(error) from None


def join(parts: Parts, num_parts: int, output: Path) -> None:
    """Writes the output from all parts, which are then removed.

    Raises: InputError if their rows make no one table.
    """
    files = [parts.scored_file(number) for number in range(num_parts)]
    with whole_file(output) as whole:
        if parts.scored == JSONL:
            with whole.open("wb") as stream:
                for file in files:
                    stream.write(file.read_bytes())
        else:
            _join_tables(files, whole)
    remove(parts.folder)


def _join_tables(files: Sequence[Path], whole: Path) -> None:
    try:
        schema = pa.unify_schemas(
            [pq.read_schema(file) for file in files], promote_options="permissive"
        )
        with pq.ParquetWriter(whole, schema) as writer:
            for file in files:
                tables = [schema.empty_table(), pq.read_table(file)]
                writer.write_table(pa.concat_tables(tables, promote_options="permissive"))
    except pa.ArrowException as error:
        raise _no_table(error) from None


def _no_table(error: Exception) -> InputError:
    reason = (str(error).splitlines() or [""])[0]
    remedy = f"a column of several kinds can be written to a {JSONL} file"
    return InputError("the rows make no Parquet table", [reason, remedy])


def _write_jsonl(file: Path, rows: Sequence[Row]) -> None:
    with whole_file(file) as part, part.open("w", encoding="utf-8") as stream:
        # As ASCII: half a character and the separators of lines stay what they are.
        stream.writelines(f"{json.dumps(row, default=str)}\n" for row in rows)
