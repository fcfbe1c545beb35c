"""Checkpoints that all workers write together, and that are there only when whole.

step-00000200/worker-0/...     what each worker wrote, by rank
step-00000200/checkpoint.json  the step, and the mean loss since the checkpoint before
step-00000200/manifest.json    the hash of every file
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scpo_ray.records import Worker
from scpo_ray.storage import MANIFEST, disk_errors, file_digest, folder_fault, sync
from scpo_ray.workers import from_first, gathered, together

log = logging.getLogger(__name__)

_FACTS = "checkpoint.json"


class Checkpoints:
    """One run's checkpoints, in a folder that all its workers see."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def saving(self, step: int, loss: float, *, keep: int, worker: Worker) -> Iterator[Path]:
        """A folder of the worker's own to write step `step`'s checkpoint into.

        Afterwards the `keep` newest checkpoints and the one of the lowest loss remain.

        Raises: InputError on every worker, and there is no checkpoint, if one cannot write.
        """
        path = self.folder / f"step-{step:08d}"
        part = self.folder / f".{path.name}.part"
        try:
            with together(worker), disk_errors(path):
                if worker.rank == 0:
                    shutil.rmtree(part, ignore_errors=True)
                    part.mkdir(parents=True)
            with together(worker), disk_errors(path):
                mine = part / f"worker-{worker.rank}"
                mine.mkdir()
                yield mine
                written = {mine: "", **dict.fromkeys(mine.rglob("*"), "")}
                digests = {str(f.relative_to(part)): file_digest(f) for f in written if f.is_file()}
                for file in written:
                    sync(file)
            everyones = gathered(digests, worker)
            with together(worker), disk_errors(path):
                if worker.rank == 0:
                    (part / _FACTS).write_text(json.dumps({"step": step, "loss": loss}))
                    manifest = {_FACTS: file_digest(part / _FACTS)}
                    for each in everyones:
                        manifest |= each
                    (part / MANIFEST).write_text(json.dumps(manifest, indent=1))
                    for file in (part / _FACTS, part / MANIFEST, part):
                        sync(file)
                    shutil.rmtree(path, ignore_errors=True)
                    os.replace(part, path)
                    sync(self.folder)
                    self._forget_old(keep)
        finally:
            if worker.rank == 0:
                shutil.rmtree(part, ignore_errors=True)

    def newest(self, worker: Worker) -> Path | None:
        """The newest checkpoint that is whole; a damaged one is passed over, and said so."""
        return from_first(self._newest, worker)

    def _newest(self) -> Path | None:
        for path in self._by_age():
            fault = folder_fault(path)
            if fault is None:
                return path
            log.warning("checkpoint %s is damaged (%s): trying the one before", path, fault)
        return None

    def _by_age(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _forget_old(self, keep: int) -> None:
        paths = self._by_age()
        best = min(paths, key=_loss)
        for path in paths[keep:]:
            if path != best:
                shutil.rmtree(path, ignore_errors=True)


def _loss(path: Path) -> float:
    try:
        return float(json.loads((path / _FACTS).read_text())["loss"])
    except (OSError, ValueError, KeyError):
        return float("inf")
