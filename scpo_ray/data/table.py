"""Interactions in columns on disk: written as a stream, memory-mapped when read."""

import json
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Literal, overload
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scpo_ray.data.hashes import text_hashes
from scpo_ray.data.rows import Notes, Place, shown, usable
from scpo_ray.records import InputError, Interaction, Text, TextSource
from scpo_ray.settings.spelling import looking_alike, plain_name
from scpo_ray.storage.disk import LEFT_BEHIND_S, clear_leftovers, remove, sign, signed_content, sync

FORMAT_NUMBER = 4
"""Part of every cache file's name: another layout or meaning of the columns raises it."""

MAX_RESPONSES = 256
"""To one prompt, 32,640 pairs: more is no answer sheet but a fault, or a trap."""

BATCH_ROWS = 16_384
BATCH_CHARACTERS = 16_000_000

FORMAT_MARKS = {
    "brackets": r"^\s*[\[({]|[\])}]\s*$",
    "quotes": "^\\s*[\"'\u201c\u2018\u00ab]|[\"'\u201d\u2019\u00bb]\\s*$",
    "list": r"(?s)^\s*\[.*,.*\]\s*$",
}
"""Name -> pattern: the response begins or ends with brackets, with quotes, is a printed list."""

SPLIT_LABELS: tuple[Literal["train", "test"], ...] = ("train", "test")

_SCHEMA = pa.schema(
    [
        ("interaction_id", pa.string()),
        ("culture_code", pa.int32()),
        ("user_code", pa.int64()),
        ("question_code", pa.int64()),
        ("split_label", pa.int8()),
        ("file_code", pa.int32()),
        ("file_number", pa.int64()),
        ("prompt", pa.string()),
        ("history", pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())]))),
        ("responses", pa.list_(pa.string())),
        ("human_scores", pa.list_(pa.float64())),
        ("option_numbers", pa.list_(pa.int64())),
        ("refusals", pa.list_(pa.bool_())),
        ("text_hashes", pa.list_(pa.uint64())),
        ("response_lengths", pa.list_(pa.int32())),
        ("format_marks", pa.list_(pa.uint8())),
    ]
)


class CorruptTableError(Exception):
    """The file is not a whole table of this format."""


@dataclass(frozen=True)
class InteractionTable:
    """N interactions with R responses in all, on disk.

    What is a property below is read anew each time, so that nobody holds what one of many uses
    needed.

    Attributes:
        cultures, users, questions: names, in the order of the codes. `users` are those of the
            whole source in file order, also those without an interaction; so are `questions`
            where the source lists them.
        skipped: culture -> reason -> rows left out.
        alike: "cultures", "users", "questions" -> some of the names that look alike.
        files: name and unit ("line") of what was read; the rows' places are columns.
        offsets: (N + 1,) int64; interaction i has the responses offsets[i] to offsets[i + 1].
        columns: name -> memory-mapped Arrow column.
    """

    cultures: tuple[str, ...]
    users: tuple[str, ...]
    questions: tuple[str, ...]
    skipped: dict[str, dict[str, int]]
    alike: dict[str, list[list[str]]]
    files: tuple[tuple[str, str], ...]
    offsets: NDArray[np.int64]
    columns: dict[str, Any]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def culture_codes(self) -> NDArray[np.int32]:
        """(N,) int32."""
        return self._numbers("culture_code")

    @property
    def user_codes(self) -> NDArray[np.int64]:
        """(N,) int64, -1 where there is none."""
        return self._numbers("user_code")

    @property
    def question_codes(self) -> NDArray[np.int64]:
        """(N,) int64, -1 where there is none."""
        return self._numbers("question_code")

    @property
    def split_labels(self) -> NDArray[np.int8]:
        """(N,) int8, index into SPLIT_LABELS, -1 where the source says nothing."""
        return self._numbers("split_label")

    @property
    def cluster_codes(self) -> NDArray[np.int64]:
        """(N,) int64: the user, else the question, else the interaction itself; never shared."""
        codes = self.user_codes
        nameless = np.flatnonzero(codes < 0)
        if len(nameless):
            questions = self.question_codes[nameless]
            codes = codes.copy()
            codes[nameless] = len(self.users) + np.where(
                questions >= 0, questions, len(self.questions) + nameless
            )
        return codes

    @property
    def human_scores(self) -> NDArray[np.float64]:
        """(R,) float64."""
        return self._numbers("human_scores")

    @property
    def text_hashes(self) -> NDArray[np.uint64]:
        """(R,) uint64, of history, prompt and response: equal hashes are equal texts."""
        return self._numbers("text_hashes")

    @property
    def option_numbers(self) -> NDArray[np.int64]:
        """(R,) int64, place in the survey's list of options; empty where there is none."""
        return self._numbers("option_numbers").astype(np.int64, copy=False)

    @property
    def refusals(self) -> NDArray[np.bool_]:
        """(R,) bool, whether the option is a refusal to answer; empty as `option_numbers`."""
        return self._numbers("refusals").astype(np.bool_, copy=False)

    @property
    def response_lengths(self) -> NDArray[np.int32]:
        """(R,) int32, in characters."""
        return self._numbers("response_lengths").astype(np.int32, copy=False)

    @property
    def format_marks(self) -> NDArray[np.uint8]:
        """(R,) uint8: bit b is set where the response has the b-th of FORMAT_MARKS."""
        return self._numbers("format_marks").astype(np.uint8, copy=False)

    def text(self, row: int, response: int) -> Text:
        turns = self.columns["history"][row].as_py()
        return Text(
            history=tuple((turn["role"], turn["text"]) for turn in turns),
            prompt=self.columns["prompt"][row].as_py(),
            response=self.columns["responses"][row].values[response].as_py(),
        )

    def place(self, row: int) -> Place:
        """Where the row was read; its file by name alone, for it may have been moved since."""
        name, unit = self.files[self.columns["file_code"][row].as_py()]
        return Place(name, self.columns["file_number"][row].as_py(), unit)

    def _numbers(self, name: str) -> NDArray[Any]:
        return _joined(self.columns[name].chunks)


class TableTexts(TextSource):
    """Texts of a table: the t-th is response number `positions[t]` of all R."""

    def __init__(self, table: InteractionTable, positions: NDArray[np.int64]) -> None:
        self.table = table
        self.positions = positions
        self.hashes = table.text_hashes[positions]

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> Text: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Text]: ...
    def __getitem__(self, index: int | slice) -> Text | Sequence[Text]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self._row(index)
        return self.table.text(row, int(self.positions[index] - self.table.offsets[row]))

    def place(self, index: int) -> str:
        return str(self.table.place(self._row(index)))

    def _row(self, index: int) -> int:
        position = self.positions[index]
        return int(np.searchsorted(self.table.offsets, position, side="right")) - 1


class TableIds(Sequence[str]):
    """The interactions' ids, read from disk when asked for."""

    def __init__(self, table: InteractionTable) -> None:
        self.column = table.columns["interaction_id"]

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return str(self.column[int(index)].as_py())


def write_table(rows: Iterable[tuple[Place, Interaction]], path: Path, notes: Notes) -> None:
    """Writes interactions as they come, under `path` once they are whole.

    Whatever their source is: unusable texts are left out and counted, and each name has one
    spelling.

    `notes` are the reader's: read after the last row, for it writes them on the way; its `users`
    and `questions` (in file order) stand before those met in the rows.

    Raises: InputError if `notes` hold a problem, two interactions share an id, a user is in two
        cultures, or no row came. OSError if the disk is full or not writable. Then `path` is as
        it was.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    clear_leftovers(path.parent, f".{path.name}.*.tmp", older_than_s=LEFT_BEHIND_S)
    try:
        with temporary.open("xb") as sink:
            writer = _Writer(sink, notes)
            for place, interaction in rows:
                kept = usable(interaction, notes)
                if kept is not None:
                    writer.add(place, kept)
            writer.finish()
        sign(temporary)
        sync(temporary)
        writer.note_duplicates(temporary)
        notes.raise_problems()
        if not writer.num_rows:
            reasons = [
                f"{c}: {r}: {n}" if c else f"{r}: {n}" for (c, r), n in notes.skipped.items()
            ]
            raise InputError("no interaction can be used; skipped:", reasons)
        if path.is_dir():
            remove(path)  # Whatever it is, it is no table.
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def open_table(path: Path) -> InteractionTable:
    """The table at `path`; texts are read from disk when asked for.

    Raises: CorruptTableError if the file is not whole or of another format.
    """
    try:
        reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(signed_content(path))))
        last = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
        summary = json.loads(last.custom_metadata[b"summary"])
        table = reader.read_all()
        if (summary["format"], summary["num_rows"]) != (FORMAT_NUMBER, len(table)):
            raise CorruptTableError(f"{path}: format or number of rows is wrong")
        table.validate()
        columns = dict(zip(table.column_names, table.columns, strict=True))
        counts = _joined(pc.list_value_length(columns["responses"]).chunks)
        return InteractionTable(
            cultures=tuple(summary["cultures"]),
            users=tuple(summary["users"]),
            questions=tuple(summary["questions"]),
            skipped=summary["skipped"],
            alike=summary["alike"],
            files=tuple((name, unit) for name, unit in summary["files"]),
            offsets=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
            columns=columns,
        )
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError) as error:
        raise CorruptTableError(f"{path}: {error}") from error


class _Writer:
    """The record batch in the making and the names met so far."""

    def __init__(self, sink: BinaryIO, notes: Notes) -> None:
        self.notes = notes
        self.stream = pa.ipc.new_file(sink, _SCHEMA)
        self.rows: list[tuple[Any, ...]] = []
        self.num_rows = 0
        self.num_characters = 0
        self.cultures: dict[str, int] = {}
        self.users = _numbered(notes.users)
        self.questions = _numbered(notes.questions)
        self.user_cultures: dict[int, tuple[int, Place]] = {}
        # Ids are compared by 64-bit hash: ten million strings in a set would be a gigabyte.
        self.id_hashes = array("Q")
        self.files: dict[tuple[str, str], int] = {}
        self.place_files, self.place_numbers = array("i"), array("q")

    def add(self, place: Place, interaction: Interaction) -> None:
        num_responses = len(interaction.responses)
        if num_responses > MAX_RESPONSES:
            pairs = num_responses * (num_responses - 1) // 2
            what = f"{num_responses} responses make {pairs} pairs: must be at most {MAX_RESPONSES}"
            self.notes.problem(place, what)
            return
        scores = interaction.human_scores
        if len(scores) != num_responses or not all(map(math.isfinite, scores)):
            rule = f"must be finite, one for each of {num_responses} responses"
            self.notes.problem(place, f"scores = {shown(list(scores))}: {rule}")
            return
        culture = self.cultures.setdefault(plain_name(interaction.culture), len(self.cultures))
        user = question = -1
        if interaction.user is not None:
            user = self.users.setdefault(plain_name(interaction.user), len(self.users))
            self._check_culture(place, interaction, user, culture)
        if interaction.question is not None:
            name = plain_name(interaction.question)
            question = self.questions.setdefault(name, len(self.questions))
        label = -1 if interaction.split is None else SPLIT_LABELS.index(interaction.split)
        self.rows.append(
            (
                interaction.interaction_id,
                culture,
                user,
                question,
                label,
                self._note_place(place, interaction.interaction_id),
                place.number,
                interaction.prompt,
                interaction.history,
                interaction.responses,
                interaction.human_scores,
                interaction.option_numbers,
                interaction.refusals,
                text_hashes(interaction),
            )
        )
        self.num_rows += 1
        self.num_characters += len(interaction.prompt) + sum(map(len, interaction.responses))
        self.num_characters += sum(len(text) for _, text in interaction.history)
        if len(self.rows) >= BATCH_ROWS or self.num_characters >= BATCH_CHARACTERS:
            self._write_batch()

    def finish(self) -> None:
        if self.rows:
            self._write_batch()
        skipped: dict[str, Counter[str]] = defaultdict(Counter)
        for (culture, reason), count in self.notes.skipped.items():
            skipped[plain_name(culture)][reason] += count
        names = {"cultures": self.cultures, "users": self.users, "questions": self.questions}
        summary = {
            "format": FORMAT_NUMBER,
            "num_rows": self.num_rows,
            "cultures": list(self.cultures),
            "users": list(self.users),
            "questions": list(self.questions),
            "skipped": skipped,
            "alike": {kind: looking_alike(known) for kind, known in names.items()},
            "files": [(Path(file).name, unit) for file, unit in self.files],
        }
        # Names are known at the end only, when the schema's own metadata is long written.
        empty = pa.RecordBatch.from_pylist([], schema=_SCHEMA)
        self.stream.write_batch(empty, custom_metadata={"summary": json.dumps(summary)})
        self.stream.close()

    def note_duplicates(self, path: Path) -> None:
        """Adds each id that came twice to the problems, with both places."""
        hashes = np.frombuffer(self.id_hashes, dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        again = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        if not len(again):
            return
        ids = TableIds(open_table(path))
        for position in again:
            first, second = int(order[position]), int(order[position + 1])
            what = f"duplicate id {ids[second]!r}, also at {self._place(first)}"
            self.notes.problem(self._place(second), what)

    def _check_culture(self, place: Place, interaction: Interaction, user: int, code: int) -> None:
        known, first_place = self.user_cultures.setdefault(user, (code, place))
        if known != code:
            other = list(self.cultures)[known]
            self.notes.problem(
                place,
                f"user {interaction.user!r} is in culture {interaction.culture!r}, but in "
                f"{other!r} at {first_place}: a user has one culture",
            )

    def _note_place(self, place: Place, interaction_id: str) -> int:
        """The code of the place's file."""
        digest = blake2b(interaction_id.encode(), digest_size=8).digest()
        self.id_hashes.append(int.from_bytes(digest, "little"))
        file = self.files.setdefault((place.file, place.unit), len(self.files))
        self.place_files.append(file)
        self.place_numbers.append(place.number)
        return file

    def _place(self, row: int) -> Place:
        file, unit = list(self.files)[self.place_files[row]]
        return Place(file, self.place_numbers[row], unit)

    def _write_batch(self) -> None:
        columns = list(zip(*self.rows, strict=True))
        arrays = [
            pa.array(column, type=field.type)
            for column, field in zip(columns, _SCHEMA, strict=False)
        ]
        responses = arrays[_SCHEMA.get_field_index("responses")]
        flat = responses.flatten()
        marks = np.zeros(len(flat), dtype=np.uint8)
        for bit, pattern in enumerate(FORMAT_MARKS.values()):
            found = pc.match_substring_regex(flat, pattern).to_numpy(zero_copy_only=False)
            marks |= found.astype(np.uint8) << bit
        arrays.append(pa.ListArray.from_arrays(responses.offsets, pc.utf8_length(flat)))
        arrays.append(pa.ListArray.from_arrays(responses.offsets, pa.array(marks)))
        self.stream.write_batch(pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))
        self.rows.clear()
        self.num_characters = 0


def _numbered(names: Iterable[str]) -> dict[str, int]:
    codes: dict[str, int] = {}
    for name in names:
        codes.setdefault(plain_name(name), len(codes))
    return codes


def _joined(chunks: Sequence[Any]) -> NDArray[Any]:
    """The numbers of a column's chunks, of lists all that are in them."""
    flat = [c.flatten() if pa.types.is_list(c.type) else c for c in chunks]
    # `to_numpy` would load pandas first, and truth values are packed, which dlpack does not know.
    plain = [c.cast("uint8") if pa.types.is_boolean(c.type) else c for c in flat]
    return np.concatenate([np.from_dlpack(c) for c in plain])
