"""Files that grow by a line at a time, each a JSON object with its checksum; a crash costs the
last line at most."""

import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scpo_ray.records import InputError

log = logging.getLogger(__name__)


def read_json_lines(path: Path, *, mend: bool = True, remedy: str = "") -> list[dict[str, Any]]:
    """The objects in a file, one a line; those that are not what was written are left out.

    A last line that a crash cut short is one of them; each is said.

    Args:
        mend: cut such a last line off the file too; not where another process may be writing it.
        remedy: where every line is needed: what to do about a damaged one.

    Raises: InputError with `remedy`, if there is one, naming the line that is damaged.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if mend and len(whole) < len(content):
        log.warning("%s: its last line was cut short by a crash: removed", path)
        with path.open("r+b") as file:
            file.truncate(len(whole))
    lines = []
    for number, line in enumerate(whole.splitlines(), start=1):
        written = _written(line)
        if written is None and remedy:
            raise InputError(f"{path}: damaged", [f"line {number}: not what was written", remedy])
        if written is None:
            log.warning("%s: line %d is not what was written: left out", path, number)
        else:
            lines.append(written)
    return lines


def append_json_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Adds a line for each object. Raises: InputError if the file cannot be written."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{_signed(json.dumps(line))}\n" for line in lines)
    except OSError as error:
        raise InputError(f"{path}: cannot be written", [error.strerror or str(error)]) from error


def _signed(text: str) -> str:
    """An object with the checksum of its text as its last member."""
    comma = ", " if len(text) > len("{}") else ""
    return f'{text[:-1]}{comma}"crc32": "{zlib.crc32(text.encode()):08x}"}}'


def _written(line: bytes) -> dict[str, Any] | None:
    """The object that a line was written from; None if it was written from none."""
    signed = line.decode(errors="replace")
    text = signed[: -len('"crc32": "01234567"}')].removesuffix(", ") + "}"
    if _signed(text) != signed:
        return None
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None
