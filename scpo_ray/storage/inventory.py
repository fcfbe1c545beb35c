"""What lies in an output folder: its runs, and what can be deleted without losing a result."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from scpo_ray.records import InputError
from scpo_ray.storage.disk import disk_errors, read_json, remove
from scpo_ray.storage.run_dir import CHECKPOINTS, LOCK_FILE, RESULT_FILE, RUN_FILE, load_result

State = Literal["ended", "running", "stopped", "damaged"]


@dataclass(frozen=True)
class FoundRun:
    """A run's folder.

    Attributes:
        path: below the folder that was looked through.
        state: "stopped" runs go on with the command that began them; of "damaged" ones the result
            or the settings cannot be read.
        changed: ISO 8601, UTC, to the second: its end, or its beginning.
        accuracy: on all test pairs of the one culture it was trained for; None for a mixture.
    """

    path: str
    method: str
    cultures: list[str]
    seed: int | None
    state: State
    changed: str
    accuracy: float | None
    num_bytes: int


@dataclass(frozen=True)
class Deletable:
    """Files of one kind that no result needs. `loss`: what is done again without them."""

    kind: str
    loss: str
    paths: list[str]
    num_bytes: int


@dataclass(frozen=True)
class Inventory:
    """`below`: where `folder` has no runs, the output folders in it that have some."""

    folder: str
    runs: list[FoundRun]
    deletable: list[Deletable]
    below: list[str]


def inventory(folder: Path) -> Inventory:
    """The runs in an output folder, an experiment's or a run's own, and what could be deleted.

    Raises: InputError if there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    patterns = (RUN_FILE, f"*/{RUN_FILE}", f"*/*/{RUN_FILE}")
    places = sorted(file.parent for pattern in patterns for file in folder.glob(pattern))
    runs = [_found(place, folder) for place in places]
    deeper = [] if runs else folder.glob(f"*/*/*/{RUN_FILE}")
    states = dict(zip(places, (run.state for run in runs), strict=True))
    ended = [place for place, state in states.items() if state == "ended"]
    stopped = [place for place, state in states.items() if state == "stopped"]
    quiet = [place for place, state in states.items() if state != "running"]
    kinds = [
        (
            "stopped runs",
            "the command that began them starts from the first step",
            stopped,
        ),
        (
            "checkpoints of ended runs",
            "nothing",
            [place / CHECKPOINTS for place in ended if (place / CHECKPOINTS).exists()],
        ),
        (
            "half-written files of killed runs",
            "nothing",
            [part for place in quiet if place not in stopped for part in place.glob(".*.part")],
        ),
    ]
    if len(quiet) == len(places):
        cached = folder / "cache"
        kinds.append(
            (
                "cache: tables, tokens, scores, features",
                "they are computed again when a command needs them",
                [cached] if cached.is_dir() else [],
            )
        )
    return Inventory(
        str(folder),
        runs,
        [
            Deletable(kind, loss, list(map(str, paths)), sum(map(num_bytes, paths)))
            for kind, loss, paths in kinds
            if paths
        ],
        sorted({str(file.parents[2]) for file in deeper}),
    )


def delete(kinds: Sequence[Deletable]) -> int:
    """Deletes them, but a run that some process has begun to run since; the bytes that are gone."""
    deleted = 0
    for path in (Path(path) for kind in kinds for path in kind.paths):
        if (path / RUN_FILE).exists() and _is_running(path):
            continue
        size = num_bytes(path)
        with disk_errors(path):
            remove(path)
        deleted += size
    return deleted


def num_bytes(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    files: Iterator[Path] = path.rglob("*") if path.is_dir() else iter([path])
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def _found(place: Path, folder: Path) -> FoundRun:
    name = place.relative_to(folder).as_posix()
    result_file, begun = place / RESULT_FILE, place / RUN_FILE
    changed = result_file if result_file.exists() else begun
    state: State = "ended" if result_file.exists() else "stopped"
    method, cultures, seed, accuracy = "–", list[str](), None, None
    try:
        config = json.loads(read_json(begun, "delete it to begin anew"))["config"]
        method, seed = config["method"], config["seed"]
        weights = config["culture_weights"] or {}
        cultures = [culture for culture, weight in weights.items() if weight > 0]
        if state == "ended":
            evaluation = load_result(place).evaluation
            own = [evaluation[culture] for culture in cultures if culture in evaluation]
            if len(own) == 1 and "all" in own[0].after:
                accuracy = own[0].after["all"].value
    except (InputError, KeyError, TypeError, ValueError):
        state = "damaged"
    return FoundRun(
        path=str(folder / name) if name != "." else str(folder),
        method=method,
        cultures=cultures,
        seed=seed,
        state="running" if _is_running(place) else state,
        changed=datetime.fromtimestamp(changed.stat().st_mtime, UTC).isoformat(timespec="seconds"),
        accuracy=accuracy,
        num_bytes=num_bytes(place),
    )


def _is_running(place: Path) -> bool:
    file = place / LOCK_FILE
    if not file.exists():
        return False
    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True
