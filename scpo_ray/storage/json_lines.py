"""Files that grow by a line at a time, each a JSON object; a crash costs the last line at most."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scpo_ray.records import InputError

log = logging.getLogger(__name__)


def read_json_lines(path: Path, *, mend: bool = True) -> list[dict[str, Any]]:
    """The objects in a file, one a line; a last line that a crash cut short is left out.

    Args:
        mend: cut it off the file too; not where another process may be writing it.

    Raises: InputError naming the line that is none.
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
        try:
            parsed = json.loads(line)
        except ValueError:
            raise InputError(f"{path}: damaged", [f"line {number}: not JSON"]) from None
        if not isinstance(parsed, dict):
            raise InputError(f"{path}: damaged", [f"line {number}: not an object"])
        lines.append(parsed)
    return lines


def append_json_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Adds a line for each object. Raises: InputError if the file cannot be written."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(line)}\n" for line in lines)
    except OSError as error:
        raise InputError(f"{path}: cannot be written", [error.strerror or str(error)]) from error
