"""Several processes that work as one group, as a launcher would start them."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch.distributed

from scpo_ray.records import Worker
from scpo_ray.workers import join_group

TIMEOUT_S = 240


def in_group(world_size: int, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `task(worker, *arguments)` returns in each of `world_size` processes, by rank.

    Raises: AssertionError with the traceback of a process that fails; all are ended.
    """
    context = multiprocessing.get_context("spawn")
    port = _free_port()
    processes, pipes = [], []
    for rank in range(world_size):
        here, there = context.Pipe(duplex=False)
        process = context.Process(
            target=_run, args=(there, rank, world_size, port, task, arguments), daemon=True
        )
        process.start()
        there.close()
        processes.append(process)
        pipes.append(here)
    try:
        return [_received(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _received(pipe: Connection) -> Any:
    assert pipe.poll(TIMEOUT_S), "a process of the group gave no answer"
    value, error = pipe.recv()
    assert error is None, error
    return value


def _run(
    pipe: Connection,
    rank: int,
    world_size: int,
    port: int,
    task: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    worker = Worker(rank, world_size, "cpu")
    try:
        if world_size > 1:
            join_group(worker)
        pipe.send((task(worker, *arguments), None))
    except BaseException:
        pipe.send((None, traceback.format_exc()))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
