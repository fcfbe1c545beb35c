"""What the workers of one run say to each other. With one worker nothing is said.

The launcher has settled who is who (`Worker`) and, for more than one, torch.distributed's group.
Every function here is called by all workers, in the same order.
"""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from scpo_ray.records import InputError, Worker

T = TypeVar("T")

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""By device. Small things (numbers, names) go over the CPU whatever the weights are on."""

# A worker that is gone is noticed by the launcher; this only ends a group that nobody watches.
TIMEOUT = timedelta(hours=2)

_BUSY = "busy"


def join_group(worker: Worker) -> None:
    """Enters the group of workers that torchrun's environment names, or a group of one."""
    import torch.distributed as dist

    if dist.is_initialized():
        return
    backend = BACKENDS[worker.device.partition(":")[0]]
    if worker.world_size == 1:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    else:
        dist.init_process_group(backend, timeout=TIMEOUT)


def gathered(value: T, worker: Worker) -> list[T]:
    """Every worker's value, by rank."""
    if worker.world_size == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * worker.world_size
    dist.all_gather_object(values, value)
    return values


def total(value: float, worker: Worker) -> float:
    """The sum of every worker's number, in double precision."""
    return float(total_array(np.array([value]), worker)[0])


def total_array(values: NDArray[Any], worker: Worker) -> NDArray[Any]:
    """The element-wise sum of every worker's array."""
    if worker.world_size == 1:
        return values
    import torch
    import torch.distributed as dist

    tensor = torch.from_numpy(values.copy())
    dist.all_reduce(tensor)
    summed: NDArray[Any] = tensor.numpy()
    return summed


@contextmanager
def together(worker: Worker) -> Iterator[None]:
    """A chapter that every worker ends before any goes on; one's input error becomes everyone's.

    Nothing inside may speak to other workers. It may take one of them as long as it will, reading
    and rendering large data, say: the others wait as long as it is alive.

    Raises: InputError, the same on every worker, of the lowest rank that met one.
    """
    error = None
    with _heard_by_others(worker):
        try:
            yield
        except InputError as raised:
            error = raised
    said = None if error is None else (error.title, error.problems)
    errors: list[Any] = [_BUSY]
    while _BUSY in errors:
        errors = gathered(said, worker)
    for rank, found in enumerate(errors):
        if found is None:
            continue
        if rank == worker.rank and error is not None:
            raise error
        title, problems = found
        raise InputError(title, problems)


@contextmanager
def _heard_by_others(worker: Worker) -> Iterator[None]:
    """Those who wait for this worker hear from it, well before they would give it up."""
    if worker.world_size == 1:
        yield
        return
    is_over = threading.Event()

    def tell() -> None:
        while not is_over.wait(TIMEOUT.total_seconds() / 4):
            try:
                gathered(_BUSY, worker)
            except RuntimeError:
                return  # Another one is gone: this worker meets the same error at its end.

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        is_over.set()
    # Only after a chapter that has ended: one that is broken off waits for nobody.
    teller.join()


@contextmanager
def first_worker_first(worker: Worker) -> Iterator[None]:
    """As `together`; what the first worker leaves on the disk is there for the others."""
    if worker.rank == 0:
        with together(worker):
            yield
        with together(worker):
            pass
    else:
        with together(worker):
            pass
        with together(worker):
            yield


def from_first(compute: Callable[[], T], worker: Worker) -> T:
    """What the first worker computes, on every worker. Raises: its InputError, on every worker."""
    value: Any = None
    with together(worker):
        if worker.rank == 0:
            value = compute()
    first: T = gathered(value, worker)[0]
    return first


def check_alike(facts: Mapping[str, str], what: str, worker: Worker) -> None:
    """Raises: InputError naming each worker and fact that differ from the first worker's."""
    everyones = gathered((socket.gethostname(), dict(facts)), worker)
    _, expected = everyones[0]
    problems = [
        f"worker {rank} on {host}: {name} {found.get(name)}, on worker 0 {expected[name]}"
        for rank, (host, found) in enumerate(everyones)
        for name in expected
        if found.get(name) != expected[name]
    ]
    if problems:
        raise InputError(f"the workers' {what} differ", problems)
