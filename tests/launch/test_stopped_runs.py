"""Runs that a kill or Ctrl-C ends, in processes of their own, and a wild setting."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.launch.clusters import TIMEOUT_S
from tests.test_cli import (
    Outcome,
    in_process,
    run_folder,
    start_process,
    write_yaml,
)
from tests.tiny import tiny_document

LONG = {"max_steps": 240, "checkpoint_every": 40, "log_every": 7}


def long_config(model: Path, folder: Path) -> Path:
    """A run of a few seconds, with dropout, that tracks its curve."""
    folder.mkdir(exist_ok=True)
    document = tiny_document(model, folder / "runs", train=LONG, tracking={"tracker": "jsonl"})
    return write_yaml(folder / "run.yaml", document)


@pytest.fixture(scope="module")
def undisturbed(tiny_reward_model, tmp_path_factory) -> Path:
    """The folder of a long run that nothing stopped; it printed JSON alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    outcome = in_process("train", long_config(tiny_reward_model, folder), "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["num_steps"] == LONG["max_steps"]
    return run_folder(folder / "runs")


def stop_midway(process: "subprocess.Popen[str]", folder: Path, stop: signal.Signals) -> Outcome:
    """Waits for the first whole checkpoint, then sends the signal."""
    deadline = time.monotonic() + TIMEOUT_S
    while not list(folder.glob("runs/tiny/*/checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(stop)
    out, err = process.communicate(timeout=TIMEOUT_S)
    return Outcome(process.returncode, out, err)


def curve_of(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("time", "crc32")}
        for line in lines
        if "train/loss" in line
    ]


def assert_ends_alike(folder: Path, undisturbed: Path) -> None:
    ours, theirs = (p / "model" / "model.safetensors" for p in (folder, undisturbed))
    assert ours.read_bytes() == theirs.read_bytes()
    assert curve_of(folder) == curve_of(undisturbed)
    steps = [point["step"] for point in curve_of(folder)]
    assert steps == [*range(7, 240, 7), 240]
    results = [json.loads((p / "result.json").read_text()) for p in (folder, undisturbed)]
    assert results[0]["evaluation"] == results[1]["evaluation"]
    assert results[0]["curve"] == results[1]["curve"]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_byte_for_byte_as_an_undisturbed_one(
    tiny_reward_model, tmp_path, undisturbed
):
    config = long_config(tiny_reward_model, tmp_path)
    killed = stop_midway(start_process("train", config), tmp_path, signal.SIGKILL)
    assert killed.code == -signal.SIGKILL
    assert not list(tmp_path.rglob("result.json"))

    outcome = in_process("train", config)

    assert outcome.code == 0, outcome.err
    assert "resumed at step" in outcome.err
    assert_ends_alike(run_folder(tmp_path / "runs"), undisturbed)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_the_run_does(tiny_reward_model, tmp_path, undisturbed):
    config = long_config(tiny_reward_model, tmp_path)

    stopped = stop_midway(start_process("train", config), tmp_path, signal.SIGINT)

    assert stopped.code == 130
    assert stopped.err.endswith("stopped; the same command goes on from the last checkpoint\n")
    assert "Traceback" not in stopped.err
    assert not list(tmp_path.rglob("result.json"))
    outcome = in_process("train", config)
    assert outcome.code == 0, outcome.err
    assert "resumed at step" in outcome.err
    assert_ends_alike(run_folder(tmp_path / "runs"), undisturbed)


def test_a_run_that_diverges_exits_with_2_and_says_where(scpo, tiny_reward_model, tmp_path):
    config = long_config(tiny_reward_model, tmp_path)

    outcome = scpo("train", config, "--set", "train.learning_rate=1.0e+30")

    assert outcome.code == 2
    assert re.search(r"training stopped at step \d+: the (loss|gradient)", outcome.err)
    assert "pairs of the step: " in outcome.err
    assert "last good checkpoint: none yet" in outcome.err
    assert "Traceback" not in outcome.err


def test_checkpoints_that_a_kill_left_beside_a_result_go_with_the_next_command(
    scpo, tiny_reward_model, tmp_path, caplog
):
    config = write_yaml(tmp_path / "run.yaml", tiny_document(tiny_reward_model, tmp_path / "runs"))
    assert scpo("train", config).code == 0
    left = run_folder(tmp_path / "runs") / "checkpoints" / "step-000005"
    left.mkdir(parents=True)

    again = scpo("train", config)

    assert again.code == 0, again.err
    assert "has ended before, nothing to do" in caplog.text
    assert not left.parent.exists()
