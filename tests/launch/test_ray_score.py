"""The global model's rewards computed by Ray Data's workers, against those of one process."""
# ruff: noqa: F401, F811 (the fixtures are imported)

import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import ray

import scpo_ray.storage
from scpo_ray.config import RunConfig
from scpo_ray.experiment import RunInputs, global_rewards, load_inputs, open_run_dir
from scpo_ray.launch.ray_cluster import connect
from scpo_ray.launch.ray_score import score_on_ray
from scpo_ray.launch.worker import local_worker
from scpo_ray.records import InputError
from tests.test_bad_places import spoil_with_nan
from tests.test_cli import Outcome, scpo, start_process, write_yaml
from tests.tiny import tiny_config, tiny_document

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    # Ray warns of settings of its own.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]

# Some 4,200 texts: 17 parts of the size below.
DATA = {"users": {"Majority": 10, "North": 70, "South": 70}, "interactions_per_user": 10}
TEXTS_PER_PART, NUM_PARTS = 256, 17


@pytest.fixture(scope="module")
def cluster(tiny_reward_model, tmp_path_factory) -> Iterator[str]:
    """The address of a Ray of this machine's, to which this process belongs."""
    connect(tiny_config(tiny_reward_model, tmp_path_factory.mktemp("unused")))
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(scpo_ray.storage, "_TEXTS_PER_PART", TEXTS_PER_PART)


class Scoring(NamedTuple):
    """A config whose scores are wanted, and the Parquet files they are kept in."""

    config: RunConfig
    inputs: RunInputs

    @property
    def parts(self) -> list[Path]:
        folder = open_run_dir(self.config).score_store.path(self.inputs.fingerprints["scores"])
        return sorted(folder.glob("*"))

    def contents(self) -> dict[str, bytes]:
        return {part.name: part.read_bytes() for part in self.parts}

    def written(self) -> dict[str, tuple[int, int]]:
        """Which file it is and when it was written."""
        return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in self.parts}


def scoring(model: Path, folder: Path) -> Scoring:
    config = tiny_config(model, folder / "runs", data=DATA)
    return Scoring(config, load_inputs(config, open_run_dir(config)))


@pytest.fixture(scope="module")
def local(tiny_reward_model, tmp_path_factory) -> dict[str, bytes]:
    """The parts as one process writes them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scpo_ray.storage, "_TEXTS_PER_PART", TEXTS_PER_PART)
        alone = scoring(tiny_reward_model, tmp_path_factory.mktemp("local"))
        global_rewards(
            alone.config, alone.inputs, local_worker(alone.config), open_run_dir(alone.config)
        )
        assert len(alone.parts) == NUM_PARTS
        return alone.contents()


@pytest.fixture
def own_model(tiny_reward_model, tmp_path) -> Path:
    """A global model that a test may spoil."""
    return Path(shutil.copytree(tiny_reward_model, tmp_path / "global"))


def test_ray_writes_the_parts_that_one_process_writes(
    cluster, local, small_parts, tiny_reward_model, tmp_path, caplog
):
    ours = scoring(tiny_reward_model, tmp_path)

    with caplog.at_level("INFO", logger="scpo_ray"):
        score_on_ray(ours.config, ours.inputs)

    assert ours.contents() == local
    told = [r.getMessage() for r in caplog.records if "parts" in r.getMessage()]
    assert len(told) == 10
    assert told[0] == "scores: 2 of 17 parts" and told[-1] == "scores: 17 of 17 parts"


def test_only_what_is_missing_or_damaged_is_computed(
    cluster, local, small_parts, tiny_reward_model, tmp_path
):
    ours = scoring(tiny_reward_model, tmp_path)
    score_on_ray(ours.config, ours.inputs)
    before = ours.written()
    damaged, gone = ours.parts[3], ours.parts[16]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    gone.unlink()

    score_on_ray(ours.config, ours.inputs)

    assert ours.contents() == local
    after = ours.written()
    assert {n for n in after if after[n] != before[n]} == {damaged.name, gone.name}


def test_what_is_all_there_needs_no_ray(small_parts, tiny_reward_model, tmp_path, monkeypatch):
    ours = scoring(tiny_reward_model, tmp_path)
    worker = local_worker(ours.config)
    global_rewards(ours.config, ours.inputs, worker, open_run_dir(ours.config))
    # Nothing answers there: joining it would be an error.
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    before = ours.written()

    score_on_ray(ours.config, ours.inputs)

    assert ours.written() == before


def test_a_killed_worker_costs_no_part(cluster, local, small_parts, tiny_reward_model, tmp_path):
    ours = scoring(tiny_reward_model, tmp_path)
    killed: list[int] = []

    def kill_one() -> None:
        while not ours.parts:
            time.sleep(0.005)
        killed.append(scorers_below(os.getpid())[0])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    score_on_ray(ours.config, ours.inputs)
    killer.join()

    assert killed
    assert ours.contents() == local


def scorers_below(ancestor: int) -> list[int]:
    """The scoring processes that descend from a process."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rsplit(")")[-1].split()[1]
            )
        except OSError:
            continue  # It has just ended.
    found = []
    for pid in parents:
        above = pid
        while above not in (0, ancestor):
            above = parents.get(above, 0)
        if above == ancestor and b"_Scorer" in Path(f"/proc/{pid}/cmdline").read_bytes():
            found.append(pid)
    return found


def test_a_killed_scoring_goes_on_with_what_is_missing(
    cluster, local, small_parts, tiny_reward_model, tmp_path
):
    ours = scoring(tiny_reward_model, tmp_path)
    document = tiny_document(tiny_reward_model, tmp_path / "runs", data=DATA)
    config = write_yaml(tmp_path / "run.yaml", document)
    driver = start_process(
        code=f"import sys; sys.argv = ['scpo', 'score', {str(config)!r}, '--ray']\n"
        f"import scpo_ray.storage; scpo_ray.storage._TEXTS_PER_PART = {TEXTS_PER_PART}\n"
        f"from scpo_ray.config import LaunchConfig\n"
        f"import os; os.environ['RAY_ADDRESS'] = {cluster!r}\n"
        "from scpo_ray.cli import main\n"
        "main()\n"
    )
    deadline = time.monotonic() + 120
    while not ours.parts:
        assert driver.poll() is None and time.monotonic() < deadline, driver.communicate()[1]
        time.sleep(0.001)
    driver.kill()
    driver.communicate(timeout=30)
    before = {name: at for name, at in ours.written().items() if not name.startswith(".")}
    assert 0 < len(before) < NUM_PARTS

    score_on_ray(ours.config, ours.inputs)

    assert {name: at for name, at in ours.written().items() if name in before} == before
    contents = {n: c for n, c in ours.contents().items() if not n.startswith(".")}
    assert contents == local
