"""What this machine has of all that a run needs, what is wrong with it and how to mend it."""

import os
import platform
import re
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from urllib.parse import urlsplit

import torch
from packaging.requirements import Requirement

import scpo_ray
from scpo_ray.models.files import hub_address
from scpo_ray.records import InputError
from scpo_ray.report.overviews import Finding
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.disk import free_bytes
from scpo_ray.tracking.trackers import check_tracking

_WAIT_S = 3.0
_LITTLE_DISK = 5e9
_LITTLE_SHARED_MEMORY = 1e9


def checkup(config: RunConfig) -> list[Finding]:
    """Looks at packages, devices, Ray, the tracking store, the hub and the disk.

    Args:
        config: whose `output_dir`, `tracking` and `launch` are looked at.
    """
    return [
        *_packages(),
        _processor(),
        *_gpus(),
        _compiler(),
        _ray_cluster(config),
        _shared_memory(),
        _tracking(config),
        _hub(),
        _disk(config.output_dir),
    ]


def _packages() -> Iterator[Finding]:
    yield Finding("scpo_ray", f"{scpo_ray.__version__}, Python {platform.python_version()}")
    for line in requires("scpo-ray") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        asked = f"{wanted.name}{wanted.specifier}"
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            yield Finding(wanted.name, "not installed", "fault", f"pip install '{asked}'")
            continue
        if wanted.specifier.contains(found, prereleases=True):
            yield Finding(wanted.name, found)
        else:
            yield Finding(wanted.name, found, "fault", f"pip install '{asked}'")


def _processor() -> Finding:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0))
    return Finding("processor", f"{cores} cores, {memory / 1e9:.0f} GB of memory")


def _gpus() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        remedy = "" if built else "this torch is built without CUDA: pip install another build"
        yield Finding("GPU", "none: the processor computes", "note", remedy)
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        said = f"{name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free"
        if torch.cuda.get_device_capability(index) >= (8, 0):
            yield Finding(f"GPU {index}", f"{said}, bfloat16")
        else:
            yield Finding(f"GPU {index}", said, "note", "no bfloat16: train.precision fp32")


def _compiler() -> Finding:
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if not missing:
        return Finding("compiler", "g++ and ninja")
    remedy = "only train.offload_optimizer with DeepSpeed's compiled Adam needs it"
    return Finding("compiler", f"no {' and no '.join(missing)}", "note", remedy)


def _ray_cluster(config: RunConfig) -> Finding:
    address = config.launch.address or os.environ.get("RAY_ADDRESS", "")
    if not address or address in ("auto", "local"):
        return Finding("Ray cluster", "none named: Ray starts on this machine when it is needed")
    parts = urlsplit(address if "://" in address else f"gcs://{address}")
    try:
        port = parts.port or (10_001 if parts.scheme == "ray" else 6_379)
        socket.create_connection((parts.hostname or "", port), timeout=_WAIT_S).close()
    except (OSError, ValueError) as error:  # ValueError: a port that is no number
        remedy = "start it (cluster/README.md), or unset RAY_ADDRESS and launch.address"
        return Finding("Ray cluster", f"{address}: {error}", "fault", remedy)
    return Finding("Ray cluster", f"{address} answers")


def _shared_memory() -> Finding:
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding("shared memory", "none", "note", "Ray keeps its objects in files: slower")
    free = free_bytes(place)
    if free >= _LITTLE_SHARED_MEMORY:
        return Finding("shared memory", f"{free / 1e9:.1f} GB free")
    remedy = "in a container: --shm-size=4g; or Ray keeps its objects in files, which is slower"
    return Finding("shared memory", f"{free / 1e9:.1f} GB free", "note", remedy)


def _tracking(config: RunConfig) -> Finding:
    uri = config.mlflow_uri
    if config.tracking.tracker != "mlflow":
        return Finding("tracking", f"{config.tracking.tracker}: nothing to reach")
    file = re.match(r"sqlite:///(.*?)(\?.*)?$", uri)
    if file is not None and not Path(file[1]).exists():
        return Finding("tracking", f"{uri}: the first run makes it")
    try:
        check_tracking(config)
    except InputError as error:
        return Finding("tracking", error.title, "fault", "; ".join(error.problems))
    return Finding("tracking", f"{uri} answers")


def _hub() -> Finding:
    address, is_offline = hub_address()
    if is_offline:
        remedy = "models and data sets by name come from the hub's cache alone"
        return Finding("hub", "offline, as HF_HUB_OFFLINE says", "note", remedy)
    try:
        urllib.request.urlopen(
            urllib.request.Request(address, method="HEAD"), timeout=_WAIT_S
        ).close()
    except urllib.error.HTTPError:
        pass  # It answers.
    except OSError as error:
        remedy = "name folders and files; or set HF_ENDPOINT to a mirror, or HTTPS_PROXY"
        return Finding("hub", f"{address} cannot be reached: {error}", "note", remedy)
    return Finding("hub", f"{address} answers")


def _disk(output_dir: Path) -> Finding:
    there = next(place for place in (output_dir, *output_dir.absolute().parents) if place.exists())
    free = free_bytes(there)
    said = f"{output_dir}: {free / 1e9:.1f} GB free"
    if not os.access(there, os.W_OK):
        return Finding("disk", f"{output_dir}: may not be written", "fault", "set output_dir")
    if free < _LITTLE_DISK:
        return Finding("disk", said, "note", "scpo clean shows what can be deleted")
    return Finding("disk", said)
