"""Lines and errors from a run's workers to the process that waits for them.

Ray's own way prints every worker's output with its process number; here the first worker's lines
reach the user as if the run were in this process, and the others' warnings with their rank.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scpo_ray.records import InputError, Worker

log = logging.getLogger(__name__)

_POLL_S = 0.3
_AGREE_S = 5.0


class Relay:
    """Keeps what workers say until it is taken."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, str]] = []
        self._errors: dict[int, tuple[str, tuple[str, ...]]] = {}
        self._starts = 0

    def start(self) -> int:
        """How often the run's workers have been started, this time included."""
        self._starts += 1
        return self._starts

    def add(self, level: int, line: str) -> None:
        self._lines.append((level, line))

    def take(self) -> list[tuple[int, str]]:
        lines, self._lines = self._lines, []
        return lines

    def fail(self, rank: int, title: str, problems: tuple[str, ...]) -> None:
        self._errors[rank] = (title, problems)

    def errors(self) -> dict[int, tuple[str, tuple[str, ...]]]:
        return self._errors


@contextmanager
def relayed_to_here() -> Iterator[Any]:
    """A relay whose lines are logged in this process while the context lasts."""
    actor: Any = ray.remote(num_cpus=0)(Relay)
    # Beside us: a machine that is lost takes no line and no error with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    relay = actor.options(scheduling_strategy=here).remote()
    ended = threading.Event()

    def listen() -> None:
        while not ended.wait(_POLL_S):
            _log_lines(relay)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        ended.set()
        thread.join()
        _log_lines(relay)


def _log_lines(relay: Any) -> None:
    try:
        lines = ray.get(relay.take.remote(), timeout=10)
    except ray.exceptions.RayError:
        return  # The cluster is going; what it did is said elsewhere.
    for level, line in lines:
        log.log(level, "%s", line)


class RelayHandler(logging.Handler):
    """A worker's log records, sent to the relay."""

    def __init__(self, relay: Any, worker: Worker) -> None:
        super().__init__(logging.INFO if worker.rank == 0 else logging.WARNING)
        self._relay = relay
        self._prefix = "" if worker.rank == 0 else f"worker {worker.rank}: "

    def emit(self, record: logging.LogRecord) -> None:
        self._relay.add.remote(record.levelno, self._prefix + record.getMessage())


def report_error(relay: Any, error: InputError, worker: Worker) -> bool:
    """Tells of a worker's input error; whether every other worker has met one as well."""
    ray.get(relay.fail.remote(worker.rank, error.title, error.problems))
    deadline = time.monotonic() + _AGREE_S
    while time.monotonic() < deadline:
        if len(ray.get(relay.errors.remote())) == worker.world_size:
            return True
        time.sleep(0.1)
    return False


def first_error(relay: Any) -> InputError | None:
    """The input error of the lowest rank that met one in this run."""
    errors = ray.get(relay.errors.remote())
    return InputError(*errors[min(errors)]) if errors else None
