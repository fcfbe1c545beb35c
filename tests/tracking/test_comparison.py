"""What a comparison and its runs look like in MLflow."""

from dataclasses import replace

import pytest
from mlflow import MlflowClient

from scpo_ray.tracking.comparison import comparison_metrics, track_comparison
from scpo_ray.tracking.notes import NOTE_TAG, comparison_note, run_note, sweep_note
from scpo_ray.tracking.trackers import Sweep, start_tracker
from tests.results import comparison, estimate, evaluation, run_result
from tests.sweep_results import sweep_result
from tests.tracking.test_trackers import dead_store, make_config, pytestmark, store

__all__ = ["dead_store", "pytestmark", "store"]  # Fixtures, and MLflow's own warnings.


def test_a_comparison_is_one_run_with_its_macro_means_and_its_page(tmp_path, store):
    config = make_config(tmp_path, uri=store)
    page = tmp_path / "report.html"
    page.write_text("<html>")
    _, summary = comparison(methods=("global", "finetune", "scpo"))

    track_comparison(config, comparison(methods=("global", "scpo"))[1], [page])
    track_comparison(config, replace(summary, failures={"scpo-Chile-s0": "lost"}), [page])

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(config.experiment)
    (run,) = client.search_runs([experiment.experiment_id])
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert run.info.run_name == f"comparison {summary.experiment}"
    assert run.info.status == "FAILED"
    assert run.data.metrics == comparison_metrics(summary)
    assert run.data.tags[NOTE_TAG] == comparison_note(summary)
    assert run.data.tags["scpo.methods"] == "global, finetune, scpo"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.html"]


def test_the_metrics_are_the_macro_means_with_their_ends():
    _, summary = comparison(methods=("global", "scpo"))
    (macro,) = (s for s in summary.summaries if s.method == "scpo" and not s.culture)

    metrics = comparison_metrics(summary)

    assert metrics["accuracy_macro/all/scpo"] == macro.accuracy["all"].value
    assert metrics["accuracy_macro/all/scpo/low"] == macro.accuracy["all"].low
    assert metrics["accuracy_macro_minus_global/all/scpo"] == macro.minus_global["all"].value
    assert not [key for key in metrics if "finetune" in key]


def test_a_store_that_is_away_costs_the_comparison_nothing(tmp_path, dead_store, caplog):
    track_comparison(make_config(tmp_path, uri=dead_store), comparison()[1], [])

    assert "the comparison could not be written" in caplog.text


def test_a_run_of_a_sweep_is_named_by_what_it_varies_and_says_what_it_came_to(tmp_path, store):
    config = make_config(tmp_path, uri=store)
    config = config.model_copy(update={"culture_weights": {"Chile": 1.0}})
    setting = "filter_threshold=0.5 weight_temperature=1.1"

    tracker = start_tracker(config, tmp_path / "run", Sweep(None, setting))
    tracker.log_result(run_result(), tmp_path / "run")
    tracker.finish("FINISHED")

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(config.experiment)
    (run,) = client.search_runs([experiment.experiment_id])
    (data,) = run.inputs.dataset_inputs
    assert run.info.run_name == "scpo τ=0.5 β=1.1 Chile s0"
    assert (run.data.params["culture"], run.data.params["method"]) == ("Chile", "scpo")
    assert run.data.tags[NOTE_TAG] == run_note(run_result())
    assert data.dataset.digest == run_result().fingerprints["data"][:36]
    assert data.dataset.name == config.data.source


def test_a_runs_note_has_a_row_for_each_culture_and_breaks_no_table():
    result = replace(run_result(), evaluation={"A|B\nC": evaluation("scpo")})

    lines = run_note(result).splitlines()

    (row,) = (line for line in lines if line.startswith("| A"))
    assert row.startswith("| A\\|B C | 62.7 [56.7, 68.7] | 40.6 ")
    assert row.endswith(" | +4.1 [1.1, 7.1] | 140 | 9 |")


def test_a_sweeps_note_leads_with_its_question_and_its_honest_number():
    note = sweep_note(replace(sweep_result(), chosen_honestly=estimate(0.6)))

    assert note.startswith("Which threshold and which temperature? Four hours on one GPU. ")
    assert "where it was not chosen, the best is worth 60.0 [54.0, 66.0] %" in note
    assert len(note) <= 5_000


@pytest.mark.parametrize("num_methods", [25, 400])
def test_a_long_note_is_cut_and_says_so(num_methods):
    _, summary = comparison(methods=("scpo",))
    macros = [s for s in summary.summaries if not s.culture]
    many = [
        replace(macros[0], method=f"m{i}" + "x" * (num_methods // 2)) for i in range(num_methods)
    ]

    note = comparison_note(replace(summary, summaries=many))

    assert len(note) <= 5_000
    assert note.endswith((f"and {num_methods - 20} more", "..."))
