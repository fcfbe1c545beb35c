"""One process of the server: models on one device, behind a socket that it shares with others."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from scpo_ray.records import InputError
from scpo_ray.serve.logs import log_as_json
from scpo_ray.serve.service import Service, Source
from scpo_ray.settings.serve import ServeConfig


@dataclass(frozen=True)
class Served:
    """What every process of a server is told."""

    open_source: Callable[[str], Source]
    """The models, for a device. Sent to other processes, so a function of a module."""
    token: str | None
    config: ServeConfig


def run_server(served: Served, device: str, listener: socket.socket, parent: Connection) -> None:
    """Serves until the process is told to stop (SIGTERM, SIGINT) or its parent is gone.

    Through `parent` it says "ready", or what is wrong with the models, as (title, problems).
    """
    log_as_json()
    # While models are loaded, the parent ends this process by force.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    from scpo_ray.serve.app import make_app
    from scpo_ray.serve.measures import Measures

    try:
        service = Service(served.open_source(device), served.config, Measures())
    except InputError as error:
        parent.send((error.title, error.problems))
        return
    server = uvicorn.Server(uvicorn_config(make_app(service, token=served.token), served.config))

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    # Between here and the server's own handlers, and after it has stopped in order.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    # Ready is who is not refused: connections wait here until the loop takes them.
    listener.listen(server.config.backlog)
    parent.send("ready")
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    server.run(sockets=[listener])


def uvicorn_config(app: object, config: ServeConfig) -> uvicorn.Config:
    """What a server of this app is; its log lines are the app's own."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=patient_protocol(config.receive_timeout_s),
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=config.max_connections,
        timeout_graceful_shutdown=config.shutdown_timeout_s,
    )


def patient_protocol(timeout_s: float) -> type[H11Protocol]:
    """HTTP in which a request's head must have come within `timeout_s`; uvicorn waits for ever."""

    class PatientProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._time_the_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._time_the_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_the_timer()
            super().connection_lost(exc)

        def _time_the_head(self) -> None:
            if self.conn.their_state is not h11.IDLE:
                self._stop_the_timer()
            elif self._timer is None:
                self._timer = self.loop.call_later(timeout_s, self._give_up)

        def _stop_the_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _give_up(self) -> None:
            self._timer = None
            if self.conn.their_state is h11.IDLE:
                self.transport.close()

    return PatientProtocol


def _end_with(parent: Connection) -> None:
    """Stops this process, in order, when its parent has gone."""
    try:
        parent.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
