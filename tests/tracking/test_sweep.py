import json
from dataclasses import replace

import pytest

from scpo_ray.records import InputError
from scpo_ray.tracking.sweep import SweepTracker
from scpo_ray.tracking.trackers import Sweep, start_tracker
from tests.sweep_results import sweep_result
from tests.tracking.test_trackers import dead_store, make_config, outage, pytestmark, store

__all__ = ["dead_store", "pytestmark", "store"]  # Fixtures, and MLflow's own warnings.


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tau.yaml"
    path.write_text("# Which threshold?\n")
    return path


def run_of(tracker):
    return tracker._client.get_run(tracker.sweep.mlflow_run_id)


def test_a_sweep_that_is_not_tracked_in_mlflow_takes_everything_and_has_no_run(tmp_path, file):
    tracker = SweepTracker(make_config(tmp_path, tracker="jsonl"), "tau", "tau-1", file)

    assert tracker.sweep == Sweep(None)
    assert tracker.log_result(sweep_result(), [file])
    assert tracker.end_child(tmp_path / "run", "KILLED")
    assert tracker.finish("FINISHED")
    assert list(tmp_path.iterdir()) == [file]


def test_a_store_that_is_away_when_the_sweep_begins_is_an_error(tmp_path, file, dead_store):
    with pytest.raises(InputError, match="MLflow cannot be used there"):
        SweepTracker(make_config(tmp_path, uri=dead_store), "tau", "tau-1", file)


@pytest.mark.parametrize("name", ["tau", "it's", "a'b\"c", "Größe %_`"])
def test_a_sweep_is_found_again_by_its_tag(tmp_path, file, store, name):
    config = make_config(tmp_path, uri=store)
    first = SweepTracker(config, name, f"{name}-1", file)
    assert first.finish("KILLED")

    again = SweepTracker(config, name, f"{name}-1", file)
    other = SweepTracker(config, name, f"{name}-2", file)

    assert again.sweep == first.sweep != other.sweep
    assert run_of(again).info.status == "RUNNING"
    assert run_of(again).data.tags["scpo.sweep"] == name
    assert again.finish("FINISHED")
    assert run_of(again).info.status == "FINISHED"


def test_the_result_is_there_once_however_often_it_is_sent(tmp_path, file, store):
    tracker = SweepTracker(make_config(tmp_path, uri=store), "tau", "tau-1", file)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"a")
    result = sweep_result()

    assert tracker.log_result(result, [file, tmp_path / "pictures"])
    assert tracker.log_result(replace(result, seeds=[0, 1, 2]), [file, tmp_path / "pictures"])

    run, best = run_of(tracker), result.settings[0]
    assert run.data.metrics["trials/finished"] == len(result.trials) == 150
    assert run.data.metrics["trials/failed"] == 0
    assert run.data.metrics["best/objective"] == best.objective.value
    honest = result.chosen_honestly
    assert run.data.metrics["best/chosen_honestly"] == honest.value
    assert run.data.metrics["best/chosen_honestly/low"] == honest.low
    assert run.data.tags["scpo.best_setting"] == best.setting.label
    assert run.data.tags["scpo.seeds"] == "[0, 1, 2]"
    assert run.data.tags["scpo.best_trial.Chile"] == result.best_trials["Chile"]
    assert json.loads(run.data.params["objective"]) == result.objective
    files = tracker._client.list_artifacts(run.info.run_id)
    assert {f.path for f in files} == {"tau.yaml", "pictures"}


def test_a_sweep_without_a_finished_run_has_no_best(tmp_path, file, store):
    failures = {(number, culture): "lost" for number in range(2) for culture in ("A", "B")}
    result = sweep_result({"a": [1, 2]}, ["A", "B"], failures=failures)
    tracker = SweepTracker(make_config(tmp_path, uri=store), "tau", "tau-1", file)

    assert tracker.log_result(result, [])

    assert run_of(tracker).data.metrics["trials/failed"] == 8
    assert "best/objective" not in run_of(tracker).data.metrics
    assert "scpo.best_setting" not in run_of(tracker).data.tags


def test_a_child_whose_process_was_killed_is_ended_and_no_other(tmp_path, file, store):
    config = make_config(tmp_path, uri=store)
    tracker = SweepTracker(config, "tau", "tau-1", file)
    killed = start_tracker(config, tmp_path / "killed", tracker.sweep)
    ended = start_tracker(make_config(tmp_path, uri=store, seed=1), tmp_path / "ended")
    ended.finish("FINISHED")

    for name in ("killed", "ended", "never-begun"):
        assert tracker.end_child(tmp_path / name, "KILLED")

    runs = [tracker._client.get_run(child._run_id) for child in (killed, ended)]
    assert [run.info.status for run in runs] == ["KILLED", "FINISHED"]
    assert runs[0].data.tags["mlflow.parentRunId"] == tracker.sweep.mlflow_run_id


def test_a_store_that_is_lost_costs_warnings_and_not_the_sweep(tmp_path, file, store, caplog):
    config = make_config(tmp_path, uri=store)
    tracker = SweepTracker(config, "tau", "tau-1", file)
    start_tracker(config, tmp_path / "child", tracker.sweep)

    with outage(store, table="runs"):
        assert not tracker.log_result(sweep_result(), [file])
        assert not tracker.end_child(tmp_path / "child", "KILLED")
        assert not tracker.finish("FINISHED")

    warned = [r.getMessage() for r in caplog.records if r.name == "scpo_ray.tracking.sweep"]
    assert [message.partition(" (")[0] for message in warned] == [
        "MLflow: the sweep's result could not be written",
        "MLflow: child's status could not be written",
        "MLflow: the status FINISHED could not be written",
    ]
    assert tracker.log_result(sweep_result(), [file])
    assert tracker.finish("FINISHED")
    assert run_of(tracker).info.status == "FINISHED"
