"""`scpo` on Ray in a process of its own, its workers found and killed, and two-node clusters."""

import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.test_cli import Outcome, start_process, write_yaml
from tests.tiny import tiny_document

# Before Ray is imported, which reads them once. A head listens on every interface of the machine;
# one started by hand asks for no token unless told to, and a node that does cannot talk to one
# that does not.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
# By default Ray's workers yield to all others (niceness 15): beside other tests they would starve.
os.environ["RAY_worker_niceness"] = "0"

# A few seconds of steps, with dropout: what must be equal to the bit afterwards.
LONG = {"max_steps": 300, "checkpoint_every": 30, "log_every": 10, "keep_checkpoints": 3}
TWO = {**LONG, "num_workers": 2, "engine": "deepspeed", "zero_stage": 2}
TIMEOUT_S = 240

_started: "list[subprocess.Popen[str]]" = []


def ray_config(folder: Path, model: Path, **sections: Any) -> Path:
    """A run on two workers whose output lies in `folder`."""
    folder.mkdir(exist_ok=True)
    base: dict[str, Any] = {"train": TWO, "tracking": {"tracker": "jsonl"}}
    for name, value in sections.items():
        base[name] = {**base.get(name, {}), **value} if isinstance(value, dict) else value
    return write_yaml(folder / "run.yaml", tiny_document(model, folder / "runs", **base))


def ended(process: "subprocess.Popen[str]") -> Outcome:
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"it does not end: {process.communicate()[1]}") from None
    return Outcome(process.returncode, out, err)


def wait_until(
    condition: Callable[[], Any], process: "subprocess.Popen[str]", what: str = "it"
) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"ended before {what}: {process.communicate()[1]}")
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.02)


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("runs/tiny/*/checkpoints/step-*"))


def wait_for_checkpoint(folder: Path, process: "subprocess.Popen[str]") -> None:
    wait_until(lambda: checkpoints(folder), process, "a checkpoint")


def workers_below(pid: int) -> list[int]:
    """Process numbers of Ray Train's workers among a process's descendants."""
    return descendants(pid, "RayTrainWorker")


def descendants(pid: int, name: str) -> list[int]:
    """Process numbers of a process's descendants whose command holds `name`."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # Fields after the command's name, which may hold anything but ends in ")".
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(entry.name)] = (entry / "cmdline").read_text()
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        todo += children.get(one, [])
        if name in names.get(one, ""):
            found.append(one)
    return sorted(found)


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while any(_lives(pid) for pid in pids):
        assert time.monotonic() < deadline, f"processes {pids} live on"
        time.sleep(0.1)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


def kill_a_worker(process: "subprocess.Popen[str]") -> None:
    workers = workers_below(process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)


def start(config: Path, *arguments: str) -> "subprocess.Popen[str]":
    process = start_process("train", config, *arguments)
    _started.append(process)
    return process


def end_all_started() -> None:
    """Ends what a failed test has left running."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


def run_dir(folder: Path) -> Path:
    (found,) = (folder / "runs" / "tiny").glob("*/")
    return found


def assert_ends_alike(folder: Path, undisturbed: Path) -> None:
    """The same model to the byte, the same evaluation and curve, no step logged twice."""
    ours, theirs = run_dir(folder), run_dir(undisturbed)
    weights = [(path / "model" / "model.safetensors").read_bytes() for path in (ours, theirs)]
    assert weights[0] == weights[1]
    results = [json.loads((path / "result.json").read_text()) for path in (ours, theirs)]
    assert results[0]["evaluation"] == results[1]["evaluation"]
    assert results[0]["curve"] == results[1]["curve"]
    if (ours / "metrics.jsonl").is_file():
        assert logged_steps(ours) == list(range(10, 301, 10))


def logged_steps(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "train/loss" in line]


def lines_until(text: str, process: "subprocess.Popen[str]") -> Iterator[str]:
    """What the command says, up to the first line with `text`."""
    assert process.stderr is not None
    for line in process.stderr:
        yield line
        if text in line:
            return
    raise AssertionError(f"ended without {text!r}")


@contextmanager
def one_node() -> Iterator[Any]:
    """A cluster on this machine: a head of one CPU, to which nodes can be added."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster on this machine: two nodes of one CPU each."""
    with one_node() as cluster:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster
