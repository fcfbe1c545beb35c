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

_CHECKSUM = "crc32"


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
            for line in lines:
                # A checksum that stands in the object already speaks of another line.
                text = json.dumps({k: v for k, v in line.items() if k != _CHECKSUM})
                comma = ", " if len(text) > 2 else ""
                file.write(f'{text[:-1]}{comma}"{_CHECKSUM}": "{_checksum(text)}"}}\n')
    except OSError as error:
        raise InputError(f"{path}: cannot be written", [error.strerror or str(error)]) from error


def _written(line: bytes) -> dict[str, Any] | None:
    """The object that a line was written from; None if it was written from none."""
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict):
        return None
    checksum = parsed.pop(_CHECKSUM, None)
    return parsed if checksum == _checksum(json.dumps(parsed)) else None


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
