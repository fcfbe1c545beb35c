"""Checkpoints that all workers write together, and that are there only when whole.

step-00000200/worker-0/...     what each worker wrote, by rank
step-00000200/checkpoint.json  the step, and the mean loss since the checkpoint before
step-00000200/manifest.json    the hash of every file
"""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from scpo_ray.records import InputError, Worker
from scpo_ray.storage.disk import (
    MANIFEST,
    disk_errors,
    file_digest,
    folder_fault,
    inside,
    put_in_place,
    sync,
    synced_digests,
)
from scpo_ray.storage.remote import RemoteFolder
from scpo_ray.storage.run_dir import RunDir
from scpo_ray.workers import from_first, gathered, together

log = logging.getLogger(__name__)

_FACTS = "checkpoint.json"


class CheckpointStore(Protocol):
    def saving(
        self, step: int, loss: float, *, keep: int, worker: Worker
    ) -> AbstractContextManager[Path]:
        """A folder of the worker's own to write step `step`'s checkpoint into.

        Afterwards the `keep` newest checkpoints and the one of the lowest loss remain, and none
        of a later step: such a one was damaged, or the run would have gone on from it.

        Raises: InputError on every worker, and there is no checkpoint, if one cannot write.
        """

    def newest(self, worker: Worker) -> Path | None:
        """The newest checkpoint that is whole, as a folder on this machine; None without one.

        A damaged one is passed over, and said so.
        """


def open_checkpoints(run_dir: RunDir) -> CheckpointStore:
    """Where the run keeps its checkpoints: in its folder, or at the URI that it has besides."""
    if run_dir.remote is None:
        return Checkpoints(run_dir.checkpoints_dir)
    remote = run_dir.remote.below(run_dir.checkpoints_dir.name)
    return RemoteCheckpoints(remote, run_dir.checkpoints_dir)


class Checkpoints:
    """Checkpoints in a folder that all workers see: one takes its name when it is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def saving(self, step: int, loss: float, *, keep: int, worker: Worker) -> Iterator[Path]:
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
                digests = synced_digests(mine, part)
            everyones = gathered(digests, worker)
            with together(worker), disk_errors(path):
                if worker.rank == 0:
                    (part / _FACTS).write_text(json.dumps({"step": step, "loss": loss}))
                    sync(part / _FACTS)
                    facts = {_FACTS: file_digest(part / _FACTS)}
                    put_in_place(part, path, facts | _merged(everyones))
                    self._forget_old(path.name, keep)
        finally:
            if worker.rank == 0:
                shutil.rmtree(part, ignore_errors=True)

    def newest(self, worker: Worker) -> Path | None:
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

    def _forget_old(self, newest: str, keep: int) -> None:
        facts = {path.name: _read(path / _FACTS) for path in self._by_age()}
        for name in _superfluous(facts, newest, keep):
            shutil.rmtree(self.folder / name, ignore_errors=True)


class RemoteCheckpoints:
    """Checkpoints at a URI: one is whole when its manifest is there, which is written last.

    `scratch`: a folder on this machine through which they pass.
    """

    def __init__(self, remote: RemoteFolder, scratch: Path) -> None:
        self.remote = remote
        self.scratch = scratch

    @contextmanager
    def saving(self, step: int, loss: float, *, keep: int, worker: Worker) -> Iterator[Path]:
        name = f"step-{step:08d}"
        # Each its own: two workers on one machine share the scratch.
        part = self.scratch / f".{name}.{worker.rank}.part"
        try:
            with together(worker), disk_errors(part):
                shutil.rmtree(part, ignore_errors=True)
                mine = part / f"worker-{worker.rank}"
                mine.mkdir(parents=True)
                yield mine
                digests = synced_digests(mine, part)
                for file in digests:
                    self.remote.upload(part / file, f"{name}/{file}")
            everyones = gathered(digests, worker)
            with together(worker):
                if worker.rank == 0:
                    facts = json.dumps({"step": step, "loss": loss}).encode()
                    self.remote.write(f"{name}/{_FACTS}", facts)
                    manifest = json.dumps(_merged(everyones), indent=1).encode()
                    self.remote.write(f"{name}/{MANIFEST}", manifest)
                    self._forget_old(name, keep)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def newest(self, worker: Worker) -> Path | None:
        for name in from_first(self._by_age, worker):
            # One each: workers on one machine do not wait for each other's downloads.
            folder = self.scratch / f"fetched-{worker.rank}"
            with together(worker), disk_errors(folder):
                fault = self._fetch(name, folder)
            faults = [found for found in gathered(fault, worker) if found is not None]
            if not faults:
                return folder
            log.warning("checkpoint %s is damaged (%s): trying the one before", name, faults[0])
        return None

    def _fetch(self, name: str, folder: Path) -> str | None:
        """Copies a checkpoint to `folder`; what is wrong with it, if anything is."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        manifest = self.remote.read(f"{name}/{MANIFEST}") or b""
        (folder / MANIFEST).write_bytes(manifest)
        try:
            files = list(dict(json.loads(manifest)))
        except (ValueError, TypeError, RecursionError):
            return "its manifest is missing or unreadable"
        for file in files:
            try:
                path = inside(folder, file)
            except InputError as error:
                return error.title
            if not self.remote.has(f"{name}/{file}"):
                return f"{file} is missing"
            self.remote.download(f"{name}/{file}", path)
        return folder_fault(folder)

    def _by_age(self) -> list[str]:
        whole = [n for n in self.remote.names() if self.remote.has(f"{n}/{MANIFEST}")]
        return sorted(whole, reverse=True)

    def _forget_old(self, newest: str, keep: int) -> None:
        facts = {n: self.remote.read(f"{n}/{_FACTS}") or b"" for n in self._by_age()}
        for name in _superfluous(facts, newest, keep):
            self.remote.remove(name)


def _superfluous(facts: dict[str, bytes], newest: str, keep: int) -> list[str]:
    """Which checkpoints (newest first, with what their facts file holds) go."""
    later = [name for name in facts if name > newest]
    names = [name for name in facts if name <= newest]
    best = min(names, key=lambda name: _loss(facts[name]))
    return later + [name for name in names[keep:] if name != best]


def _loss(facts: bytes) -> float:
    try:
        return float(json.loads(facts)["loss"])
    except (ValueError, RecursionError, KeyError, TypeError):
        return float("inf")


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _merged(everyones: Sequence[dict[str, str]]) -> dict[str, str]:
    return {name: digest for each in everyones for name, digest in each.items()}
