"""What a sweep loses on the way: afterwards its table is as if nothing had been."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from scpo_ray.sweep.store import load_sweep_result
from tests.launch.clusters import (
    TIMEOUT_S,
    descendants,
    ended,
    lines_until,
    two_nodes,
    wait_until,
    wait_until_gone,
)
from tests.launch.test_sweep import folder_of, sweep_file
from tests.test_cli import Outcome, in_process, start_process

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    # Ray warns of settings of its own, and leaves files to the collector.
    pytest.mark.filterwarnings("ignore:::ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    # MLflow's own: on SQLAlchemy 2.1, on importing its model types, on pandas 3.
    pytest.mark.filterwarnings(
        "ignore:The ``noload`` loader strategy is deprecated",
        "ignore:.*Any type hint is inferred as AnyType",
        "ignore:Operation with range is deprecated",
    ),
]

# What Ray calls the process of a trial.
TRIAL = "ray::ImplicitFunc"
# Two seconds of steps in a trial: long enough to be killed in.
TRAIN = {"max_steps": 120, "checkpoint_every": 20, "log_every": 10}


def fault_sweep(
    folder: Path, model: Path, *, max_steps: int = TRAIN["max_steps"], **tracking: Any
) -> Path:
    tracked = {"tracker": "mlflow", "log_model": False, **tracking}
    train = TRAIN | {"max_steps": max_steps}
    return sweep_file(folder, model, {"train": train, "tracking": tracked})


def start_sweep(file: Path, *arguments: str) -> "subprocess.Popen[str]":
    return start_process("sweep", file, *arguments)


@pytest.fixture(scope="module")
def undisturbed(tiny_reward_model, tmp_path_factory) -> dict[str, Any]:
    """The table of the sweep with nothing in the way."""
    file = fault_sweep(tmp_path_factory.mktemp("undisturbed"), tiny_reward_model)
    outcome = in_process("sweep", file)
    assert outcome.code == 0, outcome.err
    return table(file)


def table(file: Path) -> dict[str, Any]:
    """What a sweep found, without where and when it did."""
    result = asdict(load_sweep_result(folder_of(file)))
    for trial in result["trials"]:
        for name in ("path", "mlflow_run_id", "train_seconds", "reused"):
            trial.pop(name)
    return result


def assert_complete(file: Path, undisturbed: dict[str, Any], uri: str | None = None) -> None:
    """The same table, and in MLflow one run per trial below one, no curve with a gap or twice."""
    assert table(file) == undisturbed
    client = MlflowClient(uri or f"sqlite:///{file.parent}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "scpo.sweep" in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert [run.info.status for run in runs] == ["FINISHED"] * 5
    assert len({run.data.tags["scpo.run_id"] for run in children}) == 4
    for run in children:
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        points = client.get_metric_history(run.info.run_id, "train/loss")
        assert sorted(point.step for point in points) == list(range(10, 121, 10))
        (accuracy,) = client.get_metric_history(run.info.run_id, "accuracy/all/North")
        assert accuracy.step == 120
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert files >= {"config.yaml", "result.json"}


def test_a_killed_command_goes_on_with_what_is_missing(tiny_reward_model, tmp_path, undisturbed):
    file = fault_sweep(tmp_path, tiny_reward_model)
    process = start_sweep(file)
    list(lines_until("trial 1 of 4", process))
    below = descendants(process.pid, TRIAL)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until_gone(below)

    outcome = in_process("sweep", file)

    assert outcome.code == 0, outcome.err
    assert "4 trials; 0 have ended before" not in outcome.err
    assert_complete(file, undisturbed)


def test_a_trials_lost_process_costs_a_start_and_nothing_else(
    tiny_reward_model, tmp_path, undisturbed
):
    file = fault_sweep(tmp_path, tiny_reward_model)
    process = start_sweep(file)
    wait_until(lambda: list(tmp_path.glob("runs/tiny/*/checkpoints/step-*")), process)
    training = descendants(process.pid, TRIAL)
    assert training

    os.kill(training[0], signal.SIGKILL)

    outcome = ended(process)
    assert outcome.code == 0, outcome.err
    assert "a trial's process was lost" in outcome.err
    assert_complete(file, undisturbed)


def test_a_lost_machine_costs_the_sweep_nothing(tiny_reward_model, tmp_path, undisturbed):
    file = fault_sweep(tmp_path, tiny_reward_model)
    with two_nodes() as cluster:
        process = start_sweep(file, "--set", f"run.launch.address={cluster.address}")
        list(lines_until("trial 1 of 4", process))
        (other,) = [node for node in cluster.list_all_nodes() if node != cluster.head_node]
        cluster.remove_node(other, allow_graceful=False)
        outcome = ended(process)

    assert outcome.code == 0, outcome.err
    assert_complete(file, undisturbed)


def test_ctrl_c_says_how_to_go_on_and_a_second_command_is_refused_meanwhile(
    tiny_reward_model, tmp_path
):
    # So long that it is still at work when the other command has been refused.
    file = fault_sweep(tmp_path, tiny_reward_model, max_steps=5_000)
    process = start_sweep(file)
    list(lines_until("4 trials; 0 have ended", process))

    refused = in_process("sweep", file)
    wait_until(lambda: list(tmp_path.glob("runs/tiny/*/checkpoints/*")), process, "a trial")
    process.send_signal(signal.SIGINT)
    outcome = ended(process)

    assert refused.code == 2
    assert "another process is running this sweep" in refused.err
    assert outcome.code == 130
    assert "the same command goes on" in outcome.err
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    statuses = {run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert statuses <= {"KILLED", "FINISHED"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[None]:
    """A real server on a database in `folder`; killed at the end."""
    folder.mkdir(exist_ok=True)
    program = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    stores = [f"--backend-store-uri=sqlite:///{folder}/server.db"]
    stores += [f"--artifacts-destination={folder}/artifacts"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    process = subprocess.Popen(
        [*program, *stores],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | quiet,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not answers(port):
            assert time.monotonic() < deadline and process.poll() is None, "no MLflow server"
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_tracking_server_that_dies_in_the_middle_costs_no_point(
    tiny_reward_model, tmp_path, undisturbed
):
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    file = fault_sweep(tmp_path, tiny_reward_model, uri=uri)
    with mlflow_server(tmp_path / "server", port):
        process = start_sweep(file)
        list(lines_until("trial 1 of 4", process))
    # Three trials end, and two of them begin, without it.
    said = list(lines_until("waiting for MLflow, to send", process))
    with mlflow_server(tmp_path / "server", port):
        outcome = ended(process)

        assert outcome.code == 0, outcome.err
        assert any("trial 4 of 4" in line for line in said)
        assert_complete(file, undisturbed, uri)


def test_a_tracking_server_that_is_not_there_is_said_within_seconds(tiny_reward_model, tmp_path):
    file = fault_sweep(tmp_path, tiny_reward_model, uri=f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()

    outcome: Outcome = in_process("sweep", file)

    assert outcome.code == 2
    assert "MLflow cannot be used there" in outcome.err
    # A minute for Python's own start on a busy machine; MLflow's own patience would be minutes.
    assert time.monotonic() - started < 15 + 60
    assert not json.dumps(list(map(str, folder_of(file).glob("trials.jsonl")))).count("jsonl")
