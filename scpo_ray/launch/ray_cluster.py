"""A Ray cluster: connected to (or started here), and asked whether it can hold a run."""

import logging
import os
import socket
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from scpo_ray.records import InputError
from scpo_ray.settings.run import RunConfig

log = logging.getLogger(__name__)

_LISTENS_S = 10.0
_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Reports and lost workers are noticed at this interval; the default of 2 s is what a report
    # would cost.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class Resources:
    """What one worker reserves."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.cpus:g} CPU{gpus}"


def set_defaults() -> None:
    """Ray's own settings, where the user has none; before Ray Train is loaded."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def connect(config: RunConfig) -> None:
    """As `join`, for a run."""
    join(config.launch.address)


def join(address: str | None) -> None:
    """Joins the cluster that is named, here or by RAY_ADDRESS, or starts a Ray on this machine
    that ends with us.

    Raises: InputError if there is no cluster at the address, it does not let us in, or no Ray can
        be started here.
    """
    if ray.is_initialized():
        return
    set_defaults()
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_listens(address)
    local = {"include_dashboard": False} if address == "local" else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Our own lines come by another way; see `relay.py`.
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
        _hide_token()
    except Exception as error:  # Ray raises plain ones, for a machine that is too busy among them
        raise _no_cluster(address, str(error).strip().partition("\n")[0]) from None


def _check_listens(address: str) -> None:
    # Ray itself tries for minutes.
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_LISTENS_S).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, str(error)) from None


def _no_cluster(address: str, reason: str) -> InputError:
    if address == "local":
        return InputError(
            "no Ray can be started on this machine",
            [reason, "launch.on: process trains without one; launch.address joins a cluster"],
        )
    return InputError(
        f"launch.address = {address}: no Ray cluster can be joined there",
        [reason, "start one (cluster/local.md), or leave the address out"],
    )


def _hide_token() -> None:
    """Ray writes the token that lets anyone run code on the cluster for all users to read."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if path.is_file() and path.stat().st_uid == os.getuid():
        path.chmod(0o600)


def stand_where(working_dir: str) -> None:
    """In a worker: paths in a config are relative to where the command was given."""
    if Path(working_dir).is_dir():
        os.chdir(working_dir)


def worker_resources(config: RunConfig) -> Resources:
    """What a worker of the run reserves on the cluster joined."""
    gpus = config.launch.gpus_per_worker
    if gpus is None:
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        gpus = 1.0 if config.device == "cuda" or (config.device == "auto" and has_gpus) else 0.0
    return Resources(config.launch.cpus_per_worker, gpus)


def check_resources(config: RunConfig) -> Resources:
    """What each worker of the run reserves.

    Raises: InputError, at once, if the cluster cannot hold the run's workers, naming what is asked
    for and what is there; with `launch.wait_for_resources` it is only said.
    """
    each = worker_resources(config)
    nodes = _nodes()
    room = [_room(node["Resources"], each) for node in nodes]
    fitting = {
        "STRICT_PACK": max(room, default=0),
        "STRICT_SPREAD": sum(n > 0 for n in room),
    }.get(config.launch.placement, sum(room))
    needed = config.train.min_workers
    if fitting >= needed:
        return each
    there = [
        f"there: {node['NodeManagerHostname']} with {node['Resources'].get('CPU', 0):g} CPU and "
        f"{node['Resources'].get('GPU', 0):g} GPU"
        for node in nodes
    ]
    if config.launch.wait_for_resources:
        log.info("waiting for room for %d workers of %s each", needed, each)
        return each
    raise InputError(
        f"train.num_workers = {needed}, each with {each} ({config.launch.placement}): the cluster "
        f"has room for {fitting}",
        [
            *there,
            "lower train.num_workers, launch.cpus_per_worker or launch.gpus_per_worker, or set "
            "launch.wait_for_resources where an autoscaler adds machines",
        ],
    )


def room_for(each: Resources) -> int:
    """How many workers the cluster can hold, at least 1."""
    return max(1, sum(_room(node["Resources"], each) for node in _nodes()))


def is_one_machine() -> bool:
    """Whether all of the cluster's CPUs are of one machine, which need not be this one."""
    names = {n["NodeManagerHostname"] for n in _nodes() if n["Resources"].get("CPU", 0) > 0}
    return len(names) <= 1


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _room(resources: dict[str, float], each: Resources) -> int:
    # A hair more than what is there, so that three thirds make a whole.
    room = int(resources.get("CPU", 0) / each.cpus + 1e-6)
    if each.gpus:
        room = min(room, int(resources.get("GPU", 0) / each.gpus + 1e-6))
    return room
