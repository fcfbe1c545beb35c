"""Against real services: MLflow on PostgreSQL and a bucket, killed and back; runs in a bucket."""

import json
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.launch.clusters import ended, two_nodes, wait_until
from tests.services.servers import (
    AWS,
    Server,
    bucket_server,
    mlflow_server,
    postgres,
    postgres_programs,
    running,
)
from tests.test_cli import start_process, write_yaml
from tests.tiny import tiny_document

pytestmark = [
    pytest.mark.slow,
    # MLflow's and boto3's own.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

TRAIN = {"max_steps": 120, "checkpoint_every": 10, "log_every": 5, "keep_checkpoints": 3}
PASSWORD = secrets.token_hex(16)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Iterator[Server]:
    """An S3 with the buckets `mlflow` and `runs`."""
    pytest.importorskip("moto", reason="needs the extra: pip install -e .[services]")
    with running(bucket_server(tmp_path_factory.mktemp("s3") / "server")) as server:
        for name in ("mlflow", "runs"):
            client(server).create_bucket(Bucket=name)
        yield server


@pytest.fixture(scope="module")
def store(tmp_path_factory, bucket) -> Iterator[Server]:
    programs = postgres_programs()
    if programs is None:
        pytest.skip("needs PostgreSQL: apt-get install --no-install-recommends postgresql")
    pytest.importorskip("psycopg2", reason="needs the extra: pip install -e .[services]")
    folder = tmp_path_factory.mktemp("store")
    with postgres(programs, PASSWORD) as database:
        server = mlflow_server(folder / "mlflow", database, bucket.url, PASSWORD)
        with running(server):
            yield server


def client(bucket: Server) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=bucket.url,
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )


def objects(bucket: Server, prefix: str, name: str = "runs") -> list[str]:
    pages = client(bucket).get_paginator("list_objects_v2").paginate(Bucket=name, Prefix=prefix)
    return [found["Key"] for page in pages for found in page.get("Contents", [])]


def run_file(folder: Path, model: Path, **sections: Any) -> Path:
    folder.mkdir()
    document = tiny_document(model, folder / "runs", train=TRAIN, **sections)
    return write_yaml(folder / "run.yaml", document)


def result(folder: Path) -> dict[str, Any]:
    [file] = folder.glob("runs/tiny/*/result.json")
    return dict(json.loads(file.read_text()))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_reward_model) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed") / "here"
    outcome = ended(start_process("train", run_file(folder, tiny_reward_model)))
    assert outcome.code == 0, outcome.err
    return result(folder)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("run_id", "num_steps", "evaluation", "selection"):
        assert found[name] == expected[name], name


def set_environment(monkeypatch, settings: dict[str, str]) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def checkpoints(bucket: Server, prefix: str) -> list[str]:
    """Names of those that are whole, oldest first."""
    manifests = [key for key in objects(bucket, prefix) if key.endswith("manifest.json")]
    return sorted(key.rpartition("/")[0] for key in manifests if "/checkpoints/" in key)


def test_a_tracking_server_that_is_killed_and_comes_back_has_the_whole_run_once(
    tmp_path, monkeypatch, tiny_reward_model, store, bucket
):
    set_environment(
        monkeypatch, {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    )
    tracking = {"tracker": "mlflow", "uri": store.url}
    file = run_file(tmp_path / "here", tiny_reward_model, tracking=tracking)

    process = start_process("train", file)
    wait_until(
        lambda: list(tmp_path.glob("here/runs/tiny/*/checkpoints/step-*")), process, "a checkpoint"
    )
    store.signal(signal.SIGKILL)
    store.start()
    first = ended(process)
    # Sends what could not be sent; nothing where all was.
    second = ended(start_process("train", file))

    assert (first.code, second.code) == (0, 0), first.err + second.err
    from mlflow import MlflowClient

    mlflow = MlflowClient(store.url)
    [run] = mlflow.search_runs([mlflow.get_experiment_by_name("tiny").experiment_id])
    history = mlflow.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(5, 121, 5))
    assert run.info.status == "FINISHED"
    assert {"config.yaml", "result.json", "report.html"} <= {
        file.path for file in mlflow.list_artifacts(run.info.run_id)
    }
    [version] = mlflow.search_model_versions("name LIKE 'scpo-%'")
    assert version.run_id == run.info.run_id
    assert_no_secret(tmp_path, bucket, first.err + first.out + second.err + second.out)


def assert_no_secret(folder: Path, bucket: Server, said: str) -> None:
    """The password is in no file, no object and no line."""
    assert PASSWORD not in said
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []
    keys = objects(bucket, "", "mlflow")
    assert keys
    s3 = client(bucket)
    for key in keys:
        assert PASSWORD.encode() not in s3.get_object(Bucket="mlflow", Key=key)["Body"].read()


@pytest.mark.parametrize("password", ["wrong", None])
def test_a_wrong_password_is_said_first_with_what_to_set(
    tmp_path, monkeypatch, tiny_reward_model, store, password
):
    if password:
        set_environment(
            monkeypatch, {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
        )
    tracking = {"tracker": "mlflow", "uri": store.url}
    data = {"source": "prism", "path": str(tmp_path / "no-data"), "cultures": ["North"]}
    file = run_file(tmp_path / "here", tiny_reward_model, tracking=tracking)
    process = start_process("train", file, "--set", f"data={json.dumps(data)}")

    outcome = ended(process)

    assert outcome.code == 2
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD give the user" in outcome.err
    assert "no-data" not in outcome.err


def test_a_database_without_its_password_is_said_first_with_what_to_set(
    tmp_path, tiny_reward_model, store
):
    uri = store.environment["MLFLOW_BACKEND_STORE_URI"]
    file = run_file(
        tmp_path / "here", tiny_reward_model, tracking={"tracker": "mlflow", "uri": uri}
    )

    began = time.monotonic()
    outcome = ended(start_process("train", file))

    assert outcome.code == 2
    assert outcome.err.startswith(f"tracking.uri = {uri}: MLflow cannot be used there")
    assert "PGPASSWORD gives the password" in outcome.err
    assert time.monotonic() - began < 90


def test_a_run_killed_here_goes_on_elsewhere_from_the_bucket_past_a_damaged_checkpoint(
    tmp_path, monkeypatch, tiny_reward_model, bucket, undisturbed
):
    set_environment(monkeypatch, AWS)
    options = f"endpoint_override={bucket.url.removeprefix('http://')}&scheme=http"
    storage = f"s3://runs/killed?{options}&region=us-east-1"
    here = run_file(tmp_path / "here", tiny_reward_model, launch={"storage": storage})
    process = start_process("train", here)
    wait_until(lambda: len(checkpoints(bucket, "killed")) >= 2, process, "two checkpoints")
    process.kill()
    process.communicate()
    # What the process had sent before may still be taken in.
    time.sleep(3)
    newest = checkpoints(bucket, "killed")[-1]
    # Arrow makes an object for each folder too, whose name ends in "/".
    of_worker = [key for key in objects(bucket, f"{newest}/worker-0/") if not key.endswith("/")]
    client(bucket).put_object(Bucket="runs", Key=of_worker[0], Body=b"damaged")

    there = run_file(tmp_path / "there", tiny_reward_model, launch={"storage": storage})
    outcome = ended(start_process("train", there))

    assert outcome.code == 0, outcome.err
    assert f"{Path(newest).name} is damaged" in outcome.err
    assert_same(result(tmp_path / "there"), undisturbed)
    assert checkpoints(bucket, "killed") == []
    assert any(key.endswith("/result.json") for key in objects(bucket, "killed/tiny/"))


def test_a_bucket_that_is_away_for_a_while_costs_a_run_that_while(
    tmp_path, monkeypatch, tiny_reward_model, bucket, undisturbed
):
    set_environment(monkeypatch, {**AWS, "AWS_ENDPOINT_URL": bucket.url})
    file = run_file(tmp_path / "here", tiny_reward_model, launch={"storage": "s3://runs/away"})
    process = start_process("train", file)
    wait_until(lambda: checkpoints(bucket, "away"), process, "a checkpoint")
    bucket.signal(signal.SIGSTOP)
    time.sleep(10)
    bucket.signal(signal.SIGCONT)

    outcome = ended(process)

    assert outcome.code == 0, outcome.err
    assert_same(result(tmp_path / "here"), undisturbed)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:::ray")
def test_a_sweep_from_two_nodes_has_each_trial_once_though_the_bucket_was_away_for_a_minute(
    tmp_path, monkeypatch, tiny_reward_model, store, bucket
):
    """The bucket holds the artifacts of the MLflow server, which goes on answering."""
    set_environment(
        monkeypatch, {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    )
    run = {
        "experiment": "sweep-of-eight",
        "train": {"max_steps": 30, "checkpoint_every": 10, "log_every": 5},
        "tracking": {"tracker": "mlflow", "uri": store.url},
    }
    document = tiny_document(tiny_reward_model, tmp_path / "runs", **run)
    document.pop("culture_weights")
    space = {"culture": {"grid": ["North", "South"]}, "method": {"grid": ["finetune", "scpo"]}}
    file = write_yaml(
        tmp_path / "eight.yaml", {"run": document, "space": space, "repeat": {"seeds": [0, 1]}}
    )
    with two_nodes() as cluster:
        process = start_process("sweep", file, "--set", f"run.launch.address={cluster.address}")
        results = tmp_path / "runs" / "sweep-of-eight"
        wait_until(lambda: list(results.glob("*/result.json")), process, "a trial's end")
        bucket.signal(signal.SIGSTOP)
        time.sleep(60)
        bucket.signal(signal.SIGCONT)
        outcome = ended(process)

    assert outcome.code == 0, outcome.err
    from mlflow import MlflowClient

    mlflow = MlflowClient(store.url)
    experiment = mlflow.get_experiment_by_name("sweep-of-eight")
    runs = mlflow.search_runs([experiment.experiment_id])
    trials = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert (len(runs), len(trials)) == (9, 8)
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in trials:
        history = mlflow.get_metric_history(run.info.run_id, "train/loss")
        assert [point.step for point in history] == list(range(5, 31, 5))
        assert "result.json" in {file.path for file in mlflow.list_artifacts(run.info.run_id)}
