"""What an output folder holds, and what of it may go."""

import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from scpo_ray.launch.runs import start_run
from scpo_ray.records import InputError
from scpo_ray.storage.inventory import delete, inventory
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_reward_model: Path) -> Path:
    """An output folder with one run that has ended."""
    folder = tmp_path_factory.mktemp("outputs") / "runs"
    start_run(tiny_config(tiny_reward_model, folder, train={"max_steps": 2}))
    return folder


@pytest.fixture
def outputs(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs"))


def run_in(outputs: Path) -> Path:
    return next(outputs.glob("tiny/scpo-*"))


def another(outputs: Path, name: str) -> Path:
    """A run that began and has not ended."""
    place = outputs / "tiny" / name
    place.mkdir()
    shutil.copy(run_in(outputs) / "run.json", place)
    (place / "checkpoints").mkdir()
    (place / "checkpoints" / "weights").write_bytes(bytes(1_000))
    return place


def test_a_run_is_listed_with_what_it_came_to(outputs):
    (run,) = inventory(outputs).runs

    assert (run.method, run.cultures, run.seed, run.state) == ("scpo", ["North"], 0, "ended")
    assert run.path == str(run_in(outputs))
    assert run.accuracy is not None and 0 <= run.accuracy <= 1
    assert run.num_bytes > 10_000


@pytest.mark.parametrize("below", [".", "tiny"])
def test_an_experiments_folder_is_looked_through_too(outputs, below):
    assert len(inventory(outputs / below).runs) == 1


def test_what_no_result_needs_can_go_and_the_result_stays(outputs):
    stopped = another(outputs, "stopped")
    (run_in(outputs) / ".model.part").write_text("half")
    (run_in(outputs) / "checkpoints").mkdir()
    found = inventory(outputs)

    gone = delete(found.deletable)

    assert [kind.kind.split()[0] for kind in found.deletable] == [
        "stopped",
        "checkpoints",
        "half-written",
        "cache:",
    ]
    assert gone == sum(kind.num_bytes for kind in found.deletable)
    assert not stopped.exists() and not (outputs / "cache").exists()
    (run,) = inventory(outputs).runs
    assert run.state == "ended"
    assert inventory(outputs).deletable == []


def test_nothing_of_a_running_run_can_go_nor_the_cache_that_it_reads(outputs):
    place = another(outputs, "running")
    stopped = inventory(outputs)

    with FileLock(place / ".lock"):
        found = inventory(outputs)
        # Begun between the question and the answer: it stays.
        delete([kind for kind in stopped.deletable if kind.kind == "stopped runs"])

    assert {run.state for run in found.runs} == {"ended", "running"}
    assert found.deletable == []
    assert place.exists()


@pytest.mark.parametrize("file", ["run.json", "result.json"])
def test_a_damaged_run_is_listed_as_such(outputs, file):
    (run_in(outputs) / file).write_text('{"config": ')

    (run,) = inventory(outputs).runs

    assert run.state == "damaged"


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        inventory(tmp_path / "nowhere")


def test_the_command_asks_before_each_kind(scpo, outputs, monkeypatch):
    another(outputs, "stopped")
    answers = iter([True, False])
    monkeypatch.setattr("typer.confirm", lambda *_, **__: next(answers))

    listed, cleaned = scpo("runs", outputs), scpo("clean", outputs)

    assert "can be deleted (scpo clean)" in listed.out and "stopped runs" in listed.out
    assert "in 1 of 2 kinds" in cleaned.err
    assert not (outputs / "tiny" / "stopped").exists()
    assert (outputs / "cache").exists()
