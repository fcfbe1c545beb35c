import json
import math
import os
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from scpo_ray.records import InputError
from scpo_ray.settings.naming import safe_name
from scpo_ray.settings.run import RunConfig
from scpo_ray.tracking.opening import StoreAwayError
from scpo_ray.tracking.trackers import (
    JsonLinesTracker,
    SilentTracker,
    SpoolingTracker,
    Sweep,
    has_unsent,
    start_tracker,
)
from tests.results import run_result
from tests.settings.test_naming import HARD_NAMES

# MLflow 3.17's own: on SQLAlchemy 2.1, on importing its model types, on pandas 3.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated",
    "ignore:.*Any type hint is inferred as AnyType",
    "ignore:Operation with range is deprecated",
)


# JSON lines and none


def test_tracker_none_writes_nothing(tmp_path):
    tracker = start_tracker(make_config(tmp_path, tracker="none"), tmp_path / "run")

    tracker.log({"train/loss": 0.5}, step=1)
    tracker.log_result(run_result(), tmp_path / "run")
    tracker.finish("FINISHED")

    assert isinstance(tracker, SilentTracker)
    assert list((tmp_path / "run").iterdir()) == []


def test_json_lines_replayed_steps_are_written_once(tmp_path):
    config = make_config(tmp_path, tracker="jsonl")
    log_steps(start_tracker(config, tmp_path), [10, 20, 30])

    tracker = start_tracker(config, tmp_path)
    log_steps(tracker, [20, 30, 40])
    tracker.log({"other": 1.0}, step=20)

    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "train/loss" in line] == [10, 20, 30, 40]
    assert [line["step"] for line in lines if "other" in line] == [20]


def test_json_lines_result_is_written_once(tmp_path):
    tracker = JsonLinesTracker(tmp_path / "metrics.jsonl")

    tracker.log_result(run_result(), tmp_path)
    tracker.log_result(run_result(), tmp_path)

    (line,) = read_lines(tmp_path / "metrics.jsonl")
    assert line["step"] == run_result().num_steps
    assert line["accuracy/all/Chile"] == run_result().evaluation["Chile"].after["all"].value


def test_json_lines_a_last_line_cut_short_is_repaired_and_logged_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log_steps(JsonLinesTracker(path), [10, 20])
    path.write_bytes(path.read_bytes()[:-9])

    log_steps(JsonLinesTracker(path), [20, 30])

    assert [line["step"] for line in read_lines(path)] == [10, 20, 30]


def test_json_lines_not_a_number_stays_visible_and_the_file_stays_json(tmp_path):
    path = tmp_path / "metrics.jsonl"

    JsonLinesTracker(path).log({"a": math.nan, "b": math.inf, "c": np.float32(0.5)}, step=1)

    (line,) = read_lines(path)
    assert (line["a"], line["b"], line["c"]) == ("nan", "inf", 0.5)


def test_json_lines_a_damaged_line_is_said_and_logged_again(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    log_steps(JsonLinesTracker(path), [10, 20])
    path.write_text(path.read_text().replace('"step": 20', '"step": 30'))

    log_steps(JsonLinesTracker(path), [20])

    assert "metrics.jsonl: line 2 is not what was written: left out" in caplog.text
    assert [line["step"] for line in read_lines(path)] == [10, 30, 20]


def test_importing_tracking_does_not_import_mlflow():
    run_python("import sys, scpo_ray.tracking.trackers; assert 'mlflow' not in sys.modules")


# MLflow


@pytest.fixture(scope="module")
def store(tmp_path_factory, mlflow_database):
    """One database for the module; each test its experiment."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    path.write_bytes(mlflow_database)
    return f"sqlite:///{path}"


def test_resume_continues_the_same_run_without_doubled_steps(tmp_path, store):
    config = make_config(tmp_path, uri=store)
    killed = start_tracker(config, tmp_path)
    log_steps(killed, [10, 20, 30])

    resumed = start_tracker(config, tmp_path)
    log_steps(resumed, [20, 30, 40])
    running = the_run(resumed).info.status
    resumed.finish("FINISHED")

    assert len(all_runs(resumed)) == 1
    assert (running, the_run(resumed).info.status) == ("RUNNING", "FINISHED")
    assert steps_of(resumed, "train/loss") == [10, 20, 30, 40]


def test_a_run_whose_note_is_lost_is_found_by_its_tag(tmp_path, store):
    config = make_config(tmp_path, uri=store)
    first = start_tracker(config, tmp_path)
    first.finish("KILLED")
    (tmp_path / "mlflow_run.json").unlink()

    second = start_tracker(config, tmp_path)

    assert second._run_id == first._run_id
    assert the_run(second).info.status == "RUNNING"
    assert json.loads((tmp_path / "mlflow_run.json").read_text())["run_id"] == first._run_id


def test_a_run_deleted_in_mlflow_is_begun_anew(tmp_path, store):
    config = make_config(tmp_path, uri=store)
    first = start_tracker(config, tmp_path)
    first._client.delete_run(first._run_id)

    second = start_tracker(config, tmp_path)
    log_steps(second, [1])

    assert second._run_id != first._run_id
    assert steps_of(second, "train/loss") == [1]


def test_another_place_is_the_same_run_and_another_evaluation_another(tmp_path, store):
    config = make_config(tmp_path, uri=store)
    first = start_tracker(config, tmp_path / "run")

    moved = config.model_copy(update={"device": "cpu", "output_dir": tmp_path / "elsewhere"})
    assert start_tracker(moved, tmp_path / "run")._run_id == first._run_id

    looked_at = config.train.model_copy(update={"log_every": 7, "keep_checkpoints": 9})
    often = config.model_copy(update={"train": looked_at})
    assert start_tracker(often, tmp_path / "run")._run_id == first._run_id
    elsewise = config.evaluation.model_copy(update={"distinctive_threshold": 0.3})
    changed = config.model_copy(update={"evaluation": elsewise})
    assert start_tracker(changed, tmp_path / "run")._run_id != first._run_id


def test_points_of_an_outage_are_spooled_and_sent_in_order_at_the_end(tmp_path, store, caplog):
    tracker = start_tracker(make_config(tmp_path, uri=store), tmp_path)
    log_steps(tracker, [1])

    with outage(store):
        log_steps(tracker, [2, 3, 4])
        tracker.log({"train/loss": math.nan}, step=5)
    points = read_lines(tmp_path / "mlflow_spool.jsonl")
    spooled = [point["step"] for point in points if point["key"] == "train/loss"]
    tracker.finish("FINISHED")

    assert spooled == [2, 3, 4, 5]
    assert caplog.text.count("training goes on") == 1
    assert steps_of(tracker, "train/loss") == [1, 2, 3, 4, 5]
    assert not (tmp_path / "mlflow_spool.jsonl").exists()


def test_points_spooled_by_a_killed_process_are_sent_by_the_next(tmp_path, store):
    config = make_config(tmp_path, uri=store)
    killed = start_tracker(config, tmp_path)
    with outage(store):
        log_steps(killed, [1, 2, 3])
    with (tmp_path / "mlflow_spool.jsonl").open("a") as file:
        file.write('{"key": "train/lo')

    resumed = start_tracker(config, tmp_path)
    log_steps(resumed, [2, 3, 4])

    assert steps_of(resumed, "train/loss") == [1, 2, 3, 4]


def test_points_whose_answer_was_lost_are_kept_once(tmp_path, store):
    config = make_config(tmp_path, uri=store)
    tracker = start_tracker(config, tmp_path)
    with outage(store):
        log_steps(tracker, [1, 2])
    spool = (tmp_path / "mlflow_spool.jsonl").read_text()
    points = [json.loads(line) for line in spool.splitlines()]

    tracker._send_points()
    tracker._pending = points
    tracker._send_points()

    assert steps_of(tracker, "train/loss") == [1, 2]


def test_a_result_during_an_outage_does_not_raise_and_can_be_logged_again(tmp_path, store, caplog):
    config = make_config(tmp_path, uri=store)
    tracker = start_tracker(config, tmp_path)
    with outage(store):
        tracker.log_result(run_result(), tmp_path)
    assert "could not be written" in caplog.text or "training goes on" in caplog.text

    again = start_tracker(config, tmp_path)
    again.log_result(run_result(), tmp_path)

    assert steps_of(again, "accuracy/all/Chile") == [run_result().num_steps]
    assert the_run(again).data.tags["scpo.fingerprint.data"] == "d1f3a9c0"


@pytest.mark.parametrize("culture", [name for name in HARD_NAMES if name not in ("\ud800",)])
def test_mlflow_takes_metrics_and_tags_of_hard_names(tmp_path, store, culture):
    result = run_result(culture=culture, cultures=(culture, "Chile"))
    tracker = start_tracker(make_config(tmp_path, uri=store, cultures={culture: 1.0}), tmp_path)

    tracker.log_result(result, tmp_path)

    metrics = the_run(tracker).data.metrics
    value = result.evaluation[culture].after["all"].value
    assert metrics[f"accuracy/all/{safe_name(culture)}"] == value
    assert artifacts(tracker) == {"config.yaml", "result.json"}


def test_files_and_folders_become_artifacts(tmp_path, store):
    tracker = start_tracker(make_config(tmp_path, uri=store), tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"a")
    (tmp_path / "report.html").write_text("<p>")

    tracker.log_artifact(tmp_path / "pictures")
    tracker.log_artifact(tmp_path / "report.html")

    assert artifacts(tracker) == {"config.yaml", "pictures", "report.html"}
    files = tracker._client.list_artifacts(tracker._run_id, "pictures")
    assert [file.path for file in files] == ["pictures/a.png"]


def test_processes_that_open_a_new_database_together_do_not_collide(tmp_path):
    script = f"""
        import sys
        from pathlib import Path
        from scpo_ray.settings.run import RunConfig
        from scpo_ray.tracking.trackers import start_tracker
        seed, out = int(sys.argv[1]), Path({str(tmp_path)!r})
        config = RunConfig(experiment="together", seed=seed, output_dir=out)
        start_tracker(config, out / str(seed)).log({{"train/loss": 1.0}}, step=1)
    """
    processes = [start_python(script, str(seed)) for seed in range(2)]
    for process in processes:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output

    config = RunConfig(experiment="together", output_dir=tmp_path)
    assert len(all_runs(start_tracker(config, tmp_path / "0"))) == 2


@pytest.fixture(scope="module")
def hanging_server():
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    "uri",
    [
        "hanging",
        "http://127.0.0.1:9",
        "postgresql+psycopg2://user@127.0.0.1:9/mlflow",
        "sqlite:////proc/no/mlflow.db",
        "sqlite:///{tmp}/text.db",
        "sqlite:///{tmp}",
        "nonsense://there",
        "file:///{tmp}/mlruns",
    ],
)
def test_a_store_that_cannot_be_used_is_named_within_15_seconds(tmp_path, uri, hanging_server):
    (tmp_path / "text.db").write_text("not a database " * 100)
    uri = hanging_server if uri == "hanging" else uri.format(tmp=tmp_path)
    began = time.monotonic()

    with pytest.raises(InputError) as caught:
        start_tracker(make_config(tmp_path, uri=uri), tmp_path / "run")

    # 45 seconds more for a busy machine, where MLflow's own patience would be minutes.
    assert time.monotonic() - began < 15 + 45
    assert uri in str(caught.value)
    assert not (tmp_path / "run" / "mlflow_run.json").exists()


# A store that is away


def test_without_patience_a_store_that_is_away_is_an_error(tmp_path, dead_store):
    config = make_config(tmp_path, uri=dead_store)

    with pytest.raises(StoreAwayError, match="MLflow cannot be used there"):
        start_tracker(config, tmp_path / "run")

    assert list((tmp_path / "run").iterdir()) == []


def test_with_patience_points_wait_in_the_runs_folder(tmp_path, dead_store, caplog):
    config = make_config(tmp_path, uri=dead_store)
    before_ms = time.time_ns() // 1_000_000

    tracker = start_tracker(config, tmp_path, Sweep("parent"), patient=True)
    log_steps(tracker, [1, 2])
    assert not (tmp_path / "mlflow_unsent.json").exists()
    tracker.log_result(run_result(), tmp_path)
    tracker.log_artifact(tmp_path)
    tracker.finish("FINISHED")

    assert isinstance(tracker, SpoolingTracker)
    assert "its points wait in its folder" in caplog.text
    assert has_unsent(tmp_path)
    unsent = json.loads((tmp_path / "mlflow_unsent.json").read_text())
    assert unsent["status"] == "FINISHED"
    points = read_lines(tmp_path / "mlflow_spool.jsonl")
    assert [p["step"] for p in points if p["key"] == "train/loss"] == [1, 2]
    assert {p["step"] for p in points if p["key"] == "accuracy/all/Chile"} == {400}
    assert all(before_ms <= p["timestamp"] <= time.time_ns() // 1_000_000 for p in points)
    assert not (tmp_path / "mlflow_run.json").exists()


def test_a_patient_run_that_was_killed_replays_its_steps_once(tmp_path, dead_store):
    config = make_config(tmp_path, uri=dead_store)
    log_steps(start_tracker(config, tmp_path, patient=True), [1, 2, 3])
    with (tmp_path / "mlflow_spool.jsonl").open("a") as file:
        file.write('{"key": "train/lo')

    log_steps(start_tracker(config, tmp_path, patient=True), [2, 3, 4])

    points = read_lines(tmp_path / "mlflow_spool.jsonl")
    assert [p["step"] for p in points if p["key"] == "train/loss"] == [1, 2, 3, 4]


def test_a_store_that_is_back_gets_each_point_once_with_its_time_and_the_runs_beginning(
    tmp_path, store, dead_store
):
    config = make_config(tmp_path, uri=dead_store)
    killed = start_tracker(config, tmp_path, patient=True)
    log_steps(killed, [1, 2])
    killed.finish("KILLED")
    resumed = start_tracker(config, tmp_path, patient=True)
    log_steps(resumed, [2, 3])
    resumed.finish("FINISHED")
    waiting = read_lines(tmp_path / "mlflow_spool.jsonl")
    time.sleep(0.01)
    sent_ms = time.time_ns() // 1_000_000

    back = start_tracker(make_config(tmp_path, uri=store), tmp_path, Sweep(None), patient=True)
    log_steps(back, [3])
    back.log_result(run_result(), tmp_path)
    back.finish("FINISHED")

    history = back._client.get_metric_history(back._run_id, "train/loss")
    assert [(m.step, m.value, m.timestamp) for m in history] == [
        (p["step"], p["value"], p["timestamp"]) for p in waiting if p["key"] == "train/loss"
    ]
    assert [m.step for m in history] == [1, 2, 3]
    assert steps_of(back, "accuracy/all/Chile") == [400]
    assert the_run(back).info.start_time == waiting[0]["timestamp"] < sent_ms
    assert the_run(back).info.status == "FINISHED"
    assert not has_unsent(tmp_path)
    assert not (tmp_path / "mlflow_spool.jsonl").exists()


def test_a_run_that_lost_its_store_says_so_until_it_is_tracked_whole(tmp_path, store):
    config = make_config(tmp_path, uri=store)
    tracker = start_tracker(config, tmp_path)
    log_steps(tracker, [1])
    with outage(store):
        log_steps(tracker, [2])
        tracker.log_result(run_result(), tmp_path)
        tracker.finish("FINISHED")
    assert has_unsent(tmp_path)

    again = start_tracker(config, tmp_path)
    with outage(store, table="tags"):
        again.log_result(run_result(), tmp_path)
        again.finish("FINISHED")
    # The points are there by now, the result's tags are not.
    assert has_unsent(tmp_path)
    assert steps_of(again, "train/loss") == [1, 2]

    whole = start_tracker(config, tmp_path)
    whole.log_result(run_result(), tmp_path)
    whole.finish("FINISHED")

    assert not has_unsent(tmp_path)
    assert len(all_runs(whole)) == 1
    assert steps_of(whole, "train/loss") == [1, 2]
    assert steps_of(whole, "accuracy/all/Chile") == [400]


def test_a_run_of_a_sweep_is_its_child_and_leaves_the_model_to_it(tmp_path, store):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    child = start_tracker(make_config(tmp_path, uri=store), tmp_path, Sweep("the-sweeps-run"))
    alone = start_tracker(make_config(tmp_path, uri=store, seed=1), tmp_path / "alone")

    child.log_result(run_result(), tmp_path)
    child.finish("FINISHED")

    assert the_run(child).data.tags["mlflow.parentRunId"] == "the-sweeps-run"
    assert "mlflow.parentRunId" not in the_run(alone).data.tags
    assert not has_unsent(tmp_path)
    assert the_run(child).outputs is None or not the_run(child).outputs.model_outputs


# What the tests share


@pytest.fixture
def dead_store():
    """An address where nothing answers: a port that has just been closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def make_config(
    output_dir: Path,
    *,
    uri: str | None = None,
    tracker: str = "mlflow",
    cultures: dict[str, float] | None = None,
    method: str = "scpo",
    seed: int = 0,
) -> RunConfig:
    return RunConfig.model_validate(
        {
            "experiment": f"test-{output_dir.name}",
            "output_dir": output_dir,
            "method": method,
            "seed": seed,
            "culture_weights": cultures,
            "data": {"source": "synthetic"},
            "tracking": {"tracker": tracker, "uri": uri},
        }
    )


def log_steps(tracker, steps):
    for step in steps:
        tracker.log({"train/loss": 1 / step, "train/lr": 1e-6}, step=step)


def read_lines(path):
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    parse = json.loads if "spool" in path.name else (lambda s: json.loads(s, parse_constant=refuse))
    return [parse(line) for line in path.read_text().splitlines()]


def the_run(tracker):
    return tracker._client.get_run(tracker._run_id)


def all_runs(tracker):
    return tracker._client.search_runs([tracker._experiment_id])


def steps_of(tracker, name):
    history = tracker._client.get_metric_history(tracker._run_id, name)
    return sorted(metric.step for metric in history)


def artifacts(tracker):
    return {file.path for file in tracker._client.list_artifacts(tracker._run_id)}


@contextmanager
def outage(store, *, table="metrics"):
    """The database refuses metrics (or what another table holds) meanwhile."""
    path = store.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"ALTER TABLE {table} RENAME TO away")
    try:
        yield
    finally:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"ALTER TABLE away RENAME TO {table}")


def start_python(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run_python(script):
    process = start_python(script)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output
