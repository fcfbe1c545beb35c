"""Several processes that work as one group, as a launcher would start them."""

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

import torch.distributed

from scpo_ray.records import Worker
from scpo_ray.workers import BACKENDS, TIMEOUT

TIMEOUT_S = 240
# What failed on one worker first is what matters; what the others say of it comes a moment later.
AFTER_AN_ERROR_S = 2


class Group:
    """`world_size` processes joined on this machine, which do one task after another."""

    def __init__(self, world_size: int) -> None:
        context = multiprocessing.get_context("forkserver")
        # Loaded once, by the process that the others are forked from.
        context.set_forkserver_preload(["scpo_ray.launch.worker", "deepspeed"])
        self._folder = tempfile.TemporaryDirectory()
        meeting_place = str(Path(self._folder.name) / "store")
        self._processes, self._pipes = [], []
        for rank in range(world_size):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(there, rank, world_size, meeting_place), daemon=True
            )
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()

    def run(self, task: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `task(worker, *arguments)` returns on each worker, by rank.

        Raises: AssertionError with the traceback of every worker that failed, or that none
        answered in time. The group is of no use then.
        """
        for pipe in self._pipes:
            pipe.send((task, arguments))
        values: dict[Connection, Any] = {}
        errors: list[str] = []
        end = time.monotonic() + TIMEOUT_S
        while len(values) < len(self._pipes):
            waiting = [pipe for pipe in self._pipes if pipe not in values]
            ready = wait(waiting, max(0.0, end - time.monotonic()))
            if not ready:
                silent = [self._pipes.index(pipe) for pipe in waiting]
                raise AssertionError("\n".join(errors) or f"no answer from workers {silent}")
            for pipe in ready:
                value, error = _received(pipe)
                values[pipe] = value
                if error is not None:
                    errors.append(f"worker {self._pipes.index(pipe)}:\n{error}")
                    end = min(end, time.monotonic() + AFTER_AN_ERROR_S)
        assert not errors, "\n".join(errors)
        return [values[pipe] for pipe in self._pipes]


class Groups:
    """One group of each size asked for: what costs is their start, so it is made once."""

    def __init__(self) -> None:
        self._groups: dict[int, Group] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for size in list(self._groups):
            self._groups.pop(size).__exit__()

    def run(self, world_size: int, task: Callable[..., Any], *arguments: Any) -> list[Any]:
        """As `Group.run`; after an error the next call gets a new group."""
        if world_size not in self._groups:
            self._groups[world_size] = Group(world_size)
        try:
            return self._groups[world_size].run(task, *arguments)
        except BaseException:
            self._groups.pop(world_size).__exit__()
            raise


def _received(pipe: Connection) -> tuple[Any, str | None]:
    try:
        value, error = pipe.recv()
    except EOFError:
        return None, "its process is gone"
    return value, error


def _serve(pipe: Connection, rank: int, world_size: int, meeting_place: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    worker = Worker(rank, world_size, "cpu")
    if world_size > 1:
        # A file and not a port, which another test could take in the meantime.
        torch.distributed.init_process_group(
            BACKENDS["cpu"],
            timeout=TIMEOUT,
            store=torch.distributed.FileStore(meeting_place, world_size),
            rank=rank,
            world_size=world_size,
        )
    while True:
        try:
            task, arguments = pipe.recv()
        except EOFError:  # the test is over
            return
        try:
            pipe.send((task(worker, *arguments), None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))
