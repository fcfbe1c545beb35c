"""What workers say to each other, in real groups of processes."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from torch import zeros

from scpo_ray.records import ALONE, InputError, Worker
from scpo_ray.training.checkpoints import Checkpoints
from scpo_ray.workers import (
    check_alike,
    first_worker_first,
    from_first,
    gathered,
    together,
    total,
    total_array,
)


def test_one_worker_alone_says_nothing_and_has_everything():
    assert gathered("a", ALONE) == ["a"]
    assert total(2.5, ALONE) == 2.5
    assert from_first(lambda: 3, ALONE) == 3
    np.testing.assert_array_equal(total_array(np.array([1, 2]), ALONE), [1, 2])
    check_alike({"torch": "2"}, "library versions", ALONE)
    with pytest.raises(InputError, match="mine"), together(ALONE):
        raise InputError("mine")


def exchange(worker: Worker, folder: str) -> dict[str, object]:
    """One task for all claims: starting a group is what costs."""
    said: dict[str, object] = {
        "gathered": gathered(f"rank {worker.rank}", worker),
        "total": total(0.1 + worker.rank, worker),
        "array": total_array(np.array([worker.rank, 1.5], np.float64), worker).tolist(),
        "from_first": from_first(lambda: f"by {worker.rank}", worker),
    }
    for name, failing in (("one fails", {1}), ("both fail", {0, 1})):
        try:
            with together(worker):
                if worker.rank in failing:
                    raise InputError(f"fault of {worker.rank}", ["a line"])
        except InputError as error:
            said[name] = (error.title, error.problems)
    note = Path(folder) / "note"
    with first_worker_first(worker):
        said["seen"] = note.exists()
        note.touch()
    try:
        check_alike({"torch": f"2.{worker.rank}", "python": "3"}, "library versions", worker)
    except InputError as error:
        said["alike"] = str(error)
    said["checkpoint"] = failed_checkpoint(Path(folder), worker)
    return said


def failed_checkpoint(folder: Path, worker: Worker) -> str:
    checkpoints = Checkpoints(folder / "checkpoints")
    with checkpoints.saving(5, 1.0, keep=2, worker=worker) as mine:
        save_file({"w": zeros(3)}, mine / "state.safetensors")
    try:
        with checkpoints.saving(10, 1.0, keep=2, worker=worker) as mine:
            save_file({"w": zeros(3)}, mine / "state.safetensors")
            if worker.rank == 1:
                raise InputError("its disk is full")
    except InputError as error:
        newest = checkpoints.newest(worker)
        return f"{error.title}; newest {newest and newest.name}"
    return "written"


WAITING = """
import sys, time
from datetime import timedelta
import torch.distributed as dist
from scpo_ray import workers
from scpo_ray.records import Worker
rank, meeting_place = int(sys.argv[1]), sys.argv[2]
workers.TIMEOUT = timedelta(seconds=2)
store = dist.FileStore(meeting_place, 2)
dist.init_process_group("gloo", timeout=workers.TIMEOUT, store=store, rank=rank, world_size=2)
worker = Worker(rank, 2, "cpu")
seconds = []
for sleeper in (0, 1):
    started = time.monotonic()
    with workers.first_worker_first(worker):
        time.sleep(5 if rank == sleeper else 0)
    seconds.append(time.monotonic() - started)
print(min(seconds), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_worker_may_take_longer_than_the_groups_timeout(tmp_path):
    command = [sys.executable, "-c", WAITING]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE)
        for rank in (0, 1)
    ]

    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()

    # Whoever sleeps for 5 s, both are through after these, and not dead after 2.
    assert [process.returncode for process in processes] == [0, 0]
    assert min(float(seconds) for seconds in said) >= 4.9


def test_two_workers_agree_on_values_errors_and_order(groups, tmp_path):
    first, second = groups.run(2, exchange, str(tmp_path))

    for said in (first, second):
        assert said["gathered"] == ["rank 0", "rank 1"]
        assert said["total"] == 0.1 + 1.1
        assert said["array"] == [1.0, 3.0]
        assert said["from_first"] == "by 0"
        assert said["one fails"] == ("fault of 1", ("a line",))
        assert re.fullmatch(
            r"the workers' library versions differ\n"
            r"  worker 1 on \S+: torch 2.1, on worker 0 2.0",
            str(said["alike"]),
        )
        # One worker cannot write: there is no checkpoint, on neither.
        assert said["checkpoint"] == "its disk is full; newest step-00000005"
    assert (first["seen"], second["seen"]) == (False, True)
    assert first["both fail"] == ("fault of 0", ("a line",))
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert names == [
        "checkpoints/step-00000005/checkpoint.json",
        "checkpoints/step-00000005/manifest.json",
        "checkpoints/step-00000005/worker-0/state.safetensors",
        "checkpoints/step-00000005/worker-1/state.safetensors",
        "note",
    ]
