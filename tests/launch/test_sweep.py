"""A sweep in this process, on the Ray it shares: what is run, what is not, what is found out."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from scpo_ray.experiment import load_inputs
from scpo_ray.launch.sweep_trial import InputsCache
from scpo_ray.launch.sweeps import prepare_sweep, read_sweep, run_sweep
from scpo_ray.records import InputError
from scpo_ray.storage.run_dir import load_result
from scpo_ray.sweep.records import SweepResult
from scpo_ray.sweep.store import SweepDir, load_sweep_result
from tests.test_cli import write_yaml
from tests.tiny import tiny_document

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("shared_ray"),
    # Ray warns of settings of its own, and leaves files to the collector.
    pytest.mark.filterwarnings("ignore:::ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    # MLflow's own: on SQLAlchemy 2.1, on importing its model types, on pandas 3.
    pytest.mark.filterwarnings(
        "ignore:The ``noload`` loader strategy is deprecated",
        "ignore:.*Any type hint is inferred as AnyType",
        "ignore:Operation with range is deprecated",
    ),
    pytest.mark.filterwarnings("ignore:::optuna"),
]

SPACE: dict[str, Any] = {
    "culture": {"grid": ["North", "South"]},
    "selection.filter_threshold": {"grid": [0.6, None]},
}


def sweep_file(
    folder: Path, model: Path, /, run: dict[str, Any] | None = None, **sections: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    document = tiny_document(model, folder / "runs", **(run or {}))
    # What a trial is trained for and with which seed comes from the space and from `repeat`.
    document.pop("culture_weights", None)
    path = folder / "thresholds.yaml"
    return write_yaml(path, {"run": document, "space": SPACE, **sections})


def tracked_in(output_dir: Path, database: bytes) -> dict[str, Any]:
    """Settings of a run that is tracked in MLflow, in a store that is there already."""
    output_dir.mkdir()
    (output_dir / "mlflow.db").write_bytes(database)
    return {"tracking": {"tracker": "mlflow"}}


def states(result: SweepResult) -> list[str]:
    return sorted(trial.state for trial in result.trials)


def stamps(result: SweepResult) -> dict[str, int]:
    return {t.trial_id: (Path(t.path) / "result.json").stat().st_mtime_ns for t in result.trials}


@pytest.fixture(scope="module")
def swept(shared_ray, mlflow_database, tiny_reward_model, tmp_path_factory) -> Path:
    """A finished sweep of four trials, tracked in MLflow; nobody changes it."""
    folder = tmp_path_factory.mktemp("swept")
    file = sweep_file(folder, tiny_reward_model, tracked_in(folder / "runs", mlflow_database))
    run_sweep(file)
    return file


def folder_of(file: Path) -> Path:
    return file.parent / "runs" / "tiny" / f"sweep-{file.stem}"


def test_every_trial_is_a_run_with_its_settings_and_the_best_setting_is_named(swept):
    result = load_sweep_result(folder_of(swept))

    assert states(result) == ["finished"] * 4
    runs = [load_result(Path(trial.path)) for trial in result.trials]
    assert [(r.culture_weights, r.config["selection"]["filter_threshold"]) for r in runs] == [
        ({"North": 1.0}, 0.6),
        ({"South": 1.0}, 0.6),
        ({"North": 1.0}, None),
        ({"South": 1.0}, None),
    ]
    for trial, run in zip(result.trials, runs, strict=True):
        assert trial.objective == run.dev[trial.culture].after["all"].value
    best, second = result.settings
    # Chosen on dev users, and looked at on test users once.
    chosen = [
        r for t, r in zip(result.trials, runs, strict=True) if t.setting == best.setting.number
    ]
    on_test = [run.evaluation[next(iter(run.culture_weights))].after["all"].value for run in chosen]
    assert result.measured_on == "dev"
    assert result.chosen_honestly is not None
    assert result.chosen_honestly.value == pytest.approx(sum(map(float, on_test)) / 2)
    assert best.objective is not None and second.objective is not None
    assert best.objective.value >= second.objective.value
    for file in ("report.html", "pictures/ranking-01.png"):
        assert (folder_of(swept) / file).stat().st_size > 1_000


def test_mlflow_has_one_run_for_the_sweep_and_one_below_it_for_each_trial(swept):
    client = MlflowClient(f"sqlite:///{swept.parent}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "scpo.sweep" in run.data.tags]
    children = [run for run in runs if run is not parent]

    assert parent.info.status == "FINISHED"
    assert len(children) == 4
    assert {run.info.status for run in children} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    ids = {trial.mlflow_run_id for trial in load_sweep_result(folder_of(swept)).trials}
    assert {run.info.run_id for run in children} == ids
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {"thresholds.yaml", "sweep_result.json", "report.html", "pictures"}
    assert {run.data.params["selection.filter_threshold"] for run in children} == {"0.6", "null"}
    assert all("accuracy/all/North" in run.data.metrics for run in children)


def test_the_best_model_of_each_culture_is_registered_as_champion(swept):
    client = MlflowClient(f"sqlite:///{swept.parent}/runs/mlflow.db")
    best = load_sweep_result(folder_of(swept)).best_trials

    assert set(best) == {"North", "South"}
    for culture, trial_id in best.items():
        version = client.get_model_version_by_alias(f"scpo-{culture}", "champion")
        trials = load_sweep_result(folder_of(swept)).trials
        (trial,) = [trial for trial in trials if trial.trial_id == trial_id]
        assert version.run_id == trial.mlflow_run_id


def test_each_data_is_read_once_whatever_the_order_of_the_trials(
    tiny_reward_model, tmp_path, monkeypatch
):
    space = SPACE | {"data.data_fraction": {"grid": [0.5, 0.6, 0.7, 0.8, 0.9]}}
    file = sweep_file(tmp_path, tiny_reward_model, space=space, repeat={"seeds": [0, 1]})
    read: list[float] = []

    def counted(config, run_dir):
        read.append(config.data.data_fraction)
        return load_inputs(config, run_dir)

    monkeypatch.setattr("scpo_ray.launch.sweep_trial.load_inputs", counted)
    prepared = prepare_sweep(file, *read_sweep(file, []), InputsCache())

    assert len(prepared.jobs) == 40
    assert sorted(read) == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


def test_what_has_ended_is_not_run_again(swept):
    before = load_sweep_result(folder_of(swept))
    written = stamps(before)

    result, _ = run_sweep(swept)

    assert stamps(result) == written
    assert result.settings == before.settings
    assert [t.trial_id for t in result.trials] == [t.trial_id for t in before.trials]


def test_a_sweep_that_shares_trials_with_another_takes_their_results(swept, tiny_reward_model):
    wider = {**SPACE, "selection.filter_threshold": {"grid": [0.6, 0.8]}}
    other = sweep_file(
        swept.parent, tiny_reward_model, {"tracking": {"tracker": "mlflow"}}, space=wider
    ).rename(swept.parent / "wider.yaml")
    sweep_file(swept.parent, tiny_reward_model, {"tracking": {"tracker": "mlflow"}})

    result, _ = run_sweep(other)

    reused = {trial.setting: trial.reused for trial in result.trials}
    assert states(result) == ["finished"] * 4
    assert reused == {0: True, 1: False}


def test_a_file_that_changed_is_refused_until_it_extends_the_sweep(tiny_reward_model, tmp_path):
    file = sweep_file(tmp_path, tiny_reward_model, budget={"trials": 1})
    first, _ = run_sweep(file)
    wider = {**SPACE, "selection.filter_threshold": {"grid": [0.6, None, 0.8]}}
    sweep_file(tmp_path, tiny_reward_model, space=wider)

    with pytest.raises(InputError, match="the sweep file has changed since") as error:
        run_sweep(file)
    extended, _ = run_sweep(file, extend=True)

    assert states(first) == ["finished", "waiting", "waiting", "waiting"]
    assert "space.selection.filter_threshold.grid: was" in error.value.problems[0]
    assert states(extended) == ["finished"] * 6


def test_rerun_runs_again_what_has_ended(tiny_reward_model, tmp_path):
    space = {"culture": {"grid": ["North"]}, "method": {"grid": ["finetune"]}}
    file = sweep_file(tmp_path, tiny_reward_model, space=space)
    before = stamps(run_sweep(file)[0])

    result, _ = run_sweep(file, rerun=True)

    after = stamps(result)
    assert before.keys() == after.keys()
    assert all(after[trial] > before[trial] for trial in before)


def test_a_damaged_result_costs_its_trial_alone_until_it_is_deleted(tiny_reward_model, tmp_path):
    file = sweep_file(tmp_path, tiny_reward_model)
    trials = run_sweep(file)[0].trials
    result_damaged, pairs_damaged = (Path(trial.path) for trial in trials[:2])
    (result_damaged / "result.json").write_text("{")
    pairs = pairs_damaged / "test_pairs.parquet"
    pairs.write_bytes(pairs.read_bytes()[:-100])

    result, _ = run_sweep(file)

    assert states(result) == ["failed", "failed", "finished", "finished"]
    errors = {Path(trial.path): trial.error for trial in result.trials if trial.error}
    assert f"{result_damaged / 'result.json'}: damaged" in errors[result_damaged]
    assert f"delete {result_damaged}, and the command" in errors[result_damaged]
    assert str(pairs) in errors[pairs_damaged]

    shutil.rmtree(result_damaged)
    shutil.rmtree(pairs_damaged)
    again = run_sweep(file)[0]

    assert states(again) == ["finished"] * 4


def test_a_trial_that_fails_is_shown_and_the_others_go_on(tiny_reward_model, tmp_path):
    # So low a threshold leaves no pair to train on.
    space = {**SPACE, "selection.filter_threshold": {"grid": [1e-9, None]}}
    result, folder = run_sweep(sweep_file(tmp_path, tiny_reward_model, space=space))

    assert states(result) == ["failed", "failed", "finished", "finished"]
    failed = [trial for trial in result.trials if trial.state == "failed"]
    assert all("no pair of" in trial.error and "1e-09" in trial.error for trial in failed)
    assert [setting.num_failed for setting in result.settings] == [0, 2]
    assert "no pair of" in (folder / "report.html").read_text()


def test_a_scheduler_stops_poor_trials_and_they_stay_stopped(
    mlflow_database, tiny_reward_model, tmp_path
):
    file = sweep_file(
        tmp_path,
        tiny_reward_model,
        {**tracked_in(tmp_path / "runs", mlflow_database), "train": {"max_steps": 27}},
        space={
            "culture": {"grid": ["North"]},
            # Rates far too high rank worse than the rest after three steps.
            "train.learning_rate": {"grid": [1e-3, 1e-2, 0.3, 3.0, 30.0, 100.0]},
        },
        scheduler={"by": "asha", "first_steps": 3, "reduction_factor": 3},
        max_concurrent=1,
    )
    result, folder = run_sweep(file)

    stopped = [trial for trial in result.trials if trial.state == "stopped"]
    assert stopped and len(stopped) < 6
    assert all(trial.num_steps in (3, 9) and "stopped by the" in trial.error for trial in stopped)
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert all(client.get_run(t.mlflow_run_id).info.status == "KILLED" for t in stopped)
    assert {t.state for t in SweepDir(folder).trials().values()} >= {"stopped", "finished"}
    again, _ = run_sweep(file)
    assert states(again) == states(result)


@pytest.mark.parametrize("by", ["tpe", "tpe-all-agreed"])
def test_a_search_chooses_settings_and_goes_on_from_what_it_knows(tiny_reward_model, tmp_path, by):
    file = sweep_file(
        tmp_path,
        tiny_reward_model,
        space={
            "culture": {"grid": ["North", "South"]},
            "selection.weight_temperature": {"loguniform": [0.1, 10]},
            "mixture": {"bundles": {"scpo": {"method": "scpo"}, "weight": {"method": "weight"}}},
        },
        search={"by": by, "num_draws": 2},
    )
    first, folder = run_sweep(file)
    more, _ = run_sweep(file, ["search.num_draws=3"], extend=True)

    assert states(first) == ["finished"] * 4
    assert states(more) == ["finished"] * 6
    chosen = SweepDir(folder).settings()
    assert [setting.number for setting in chosen] == [0, 1, 2]
    assert {s.setting.number for s in more.settings} == {0, 1, 2}
    assert all(0.1 <= s.values["selection.weight_temperature"] <= 10 for s in chosen)
    assert all(s.objective is not None for s in more.settings)


def test_a_trial_of_two_workers_is_a_run_of_ray_train(mlflow_database, tiny_reward_model, tmp_path):
    file = sweep_file(
        tmp_path,
        tiny_reward_model,
        {
            **tracked_in(tmp_path / "runs", mlflow_database),
            "train": {"engine": "deepspeed", "zero_stage": 2},
        },
        space={"culture": {"grid": ["North"]}, "method": {"grid": ["scpo"]}},
        resources={"workers": 2},
    )
    result, _ = run_sweep(file)

    assert states(result) == ["finished"], result.trials[0].error
    run = load_result(Path(result.trials[0].path))
    assert (run.num_workers, run.engine) == (2, "deepspeed ZeRO 2")
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    tags = client.get_run(result.trials[0].mlflow_run_id).data.tags
    assert "mlflow.parentRunId" in tags


def test_a_sweep_whose_trial_does_not_fit_the_cluster_fails_at_once(tiny_reward_model, tmp_path):
    file = sweep_file(tmp_path, tiny_reward_model, resources={"workers": 8, "cpus": 3})

    with pytest.raises(InputError, match="each with 3 CPU .*: the cluster has room for 0"):
        run_sweep(file)

    # No trial has begun: the sweep's own folder is alone.
    assert list(folder_of(file).parent.iterdir()) == [folder_of(file)]


@pytest.mark.slow
def test_hours_that_are_up_leave_trials_for_the_next_command(tiny_reward_model, tmp_path):
    file = sweep_file(tmp_path, tiny_reward_model, {"train": {"max_steps": 100}})

    result, folder = run_sweep(file, ["budget.hours=0.0005"])

    assert "waiting" in states(result)
    rest, _ = run_sweep(file)
    assert states(rest) == ["finished"] * 4
    lines = (folder / "trials.jsonl").read_text().splitlines()
    assert {json.loads(line)["state"] for line in lines} == {"finished"}
