"""The server as a whole: one process for each device, behind one socket; one that dies is started
again. This process loads no model and answers nothing."""

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from scpo_ray.records import InputError
from scpo_ray.serve.measures import SHARED_FOLDER, forget_process
from scpo_ray.serve.server import Served, run_server

log = logging.getLogger(__name__)

_MAX_DEATHS = 5
_WITHIN_S = 60.0
"""More deaths than that in this time, and the server gives up."""
_POLL_S = 0.2


class ServerDiedError(Exception):
    """Processes of the server keep dying."""


@dataclass
class _Child:
    device: str
    process: SpawnProcess
    pipe: Connection
    is_ready: bool = False


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; the processes listen on it once their models are loaded.

    Raises: InputError if the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Said to be TCP, which the event loop asks before it turns off Nagle's waiting: an answer's
    # body would follow its head by the 40 ms of the caller's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise InputError(f"{host}:{port}: cannot be listened on: {reason}") from None
    return listener


def supervise(served: Served, devices: Sequence[str], listener: socket.socket) -> None:
    """Serves until it is told to stop (SIGTERM, SIGINT); what was taken is answered first.

    Raises: InputError if the models cannot be loaded; ServerDiedError.
    """
    with _stop_signals() as stopped, tempfile.TemporaryDirectory() as numbers:
        # Read by each process when it counts its first request.
        os.environ[SHARED_FOLDER] = numbers
        children = [_start(served, device, listener) for device in devices]
        deaths: deque[float] = deque(maxlen=_MAX_DEATHS)
        try:
            while not stopped:
                wait([*(c.process.sentinel for c in children), *_awaited(children)], _POLL_S)
                _hear(children, listener)
                for number, child in enumerate(children):
                    if not child.process.is_alive() and not stopped:
                        _count_death(child, deaths)
                        children[number] = _start(served, child.device, listener)
        finally:
            _stop(children, served.config.shutdown_timeout_s)
            listener.close()
            del os.environ[SHARED_FOLDER]


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The signals to stop that have come."""
    come: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {n: signal.signal(n, lambda number, frame: come.append(number)) for n in numbers}
    try:
        yield come
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(served: Served, device: str, listener: socket.socket) -> _Child:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(
        target=run_server, args=(served, device, listener, there), name=f"scpo-serve-{device}"
    )
    process.start()
    there.close()
    return _Child(device, process, here)


def _awaited(children: Sequence[_Child]) -> list[Connection]:
    return [child.pipe for child in children if not child.is_ready]


def _hear(children: Sequence[_Child], listener: socket.socket) -> None:
    """Raises: InputError if a process found that its models cannot be loaded."""
    for child in children:
        if child.is_ready or not child.pipe.poll():
            continue
        try:
            said = child.pipe.recv()
        except EOFError:
            continue  # It died: its sentinel says so too.
        if said != "ready":
            title, problems = said
            raise InputError(title, problems)
        child.is_ready = True
        host, port = listener.getsockname()[:2]
        fields = {"device": child.device, "pid": child.process.pid, "address": f"{host}:{port}"}
        log.info("ready", extra={"fields": fields})


def _count_death(child: _Child, deaths: "deque[float]") -> None:
    if child.process.pid is not None:
        forget_process(child.process.pid)
    now = time.monotonic()
    code = child.process.exitcode
    fields = {"device": child.device, "pid": child.process.pid, "exit_code": code}
    log.error("a process of the server died: it is started again", extra={"fields": fields})
    if len(deaths) == _MAX_DEATHS and now - deaths[0] < _WITHIN_S:
        raise ServerDiedError(f"{_MAX_DEATHS + 1} deaths within {_WITHIN_S:g} s, the last: {code}")
    deaths.append(now)


def _stop(children: Sequence[_Child], timeout_s: float) -> None:
    """All end: in order within the time, those that do not by force."""
    for child in children:
        if child.process.is_alive():
            child.process.terminate()
    # A process that was still loading its models hears no signal, but finds its parent gone.
    for child in children:
        if not child.is_ready:
            child.process.kill()
    end = time.monotonic() + timeout_s + 5
    for child in children:
        child.process.join(max(0.0, end - time.monotonic()))
        if child.process.is_alive():
            log.error("a process did not stop in time", extra={"fields": {"device": child.device}})
            child.process.kill()
            child.process.join()
        child.pipe.close()
