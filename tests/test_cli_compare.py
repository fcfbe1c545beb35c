"""Comparisons, reports and registered models on the command line."""
# ruff: noqa: F401, F811 (the fixtures are imported)

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.test_cli import Outcome, config, run_folder, write_yaml
from tests.tiny import tiny_document


@pytest.fixture
def comparison(tiny_reward_model, tmp_path) -> Path:
    document = tiny_document(
        tiny_reward_model,
        tmp_path / "runs",
        train={"max_steps": 3},
        data={"users": {"Majority": 8, "North": 14, "South": 14}},
    )
    space = {"method": ["finetune", "scpo"], "culture": ["North", "South"]}
    return write_yaml(tmp_path / "compare.yaml", {"run": document, "space": space})


def modified(folder: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("tiny/*/result.json")}


METHODS = ("finetune", "scpo")


def test_a_comparison_runs_again_only_what_is_missing(scpo, comparison, tmp_path):
    outcome = scpo("compare", comparison)
    summary = json.loads(scpo("compare", comparison, "--json").out)
    before = modified(tmp_path / "runs")
    lost = run_folder(tmp_path / "runs", "scpo-South-s0")
    shutil.rmtree(lost)

    again = json.loads(scpo("compare", comparison, "--json").out)

    assert outcome.code == 0
    assert [re.findall(rf"^ *{method} ", outcome.out, re.MULTILINE) for method in METHODS] == [
        [f"  {method} "] for method in METHODS
    ]
    assert len(before) == 4
    after = modified(tmp_path / "runs")
    assert {name for name in before if after[name] != before[name]} == {lost.name}
    assert again == summary
    assert summary["methods"] == ["global", "finetune", "scpo"]
    assert summary["cultures"] == ["North", "South"]
    assert {(s["method"], s["culture"]) for s in summary["summaries"]} == {
        (method, culture)
        for method in ("global", "finetune", "scpo")
        for culture in ("", "North", "South")
    }
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()


def test_a_failing_run_is_listed_and_the_others_go_on(scpo, comparison, tmp_path):
    threshold = ("--set", "run.selection.filter_threshold=1.0e-6")

    outcome = scpo("compare", comparison, *threshold)
    document = json.loads(scpo("compare", comparison, *threshold, "--json").out)

    assert outcome.code == 2
    assert "finetune" in outcome.out
    assert document["methods"] == ["global", "finetune"]
    assert document["failures"].keys() == {"scpo-North-s0", "scpo-South-s0"}
    assert "failed: scpo-North-s0: nothing to train on North: no pair of" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_comparison_of_which_every_run_fails_has_no_summary(scpo, comparison, tmp_path):
    outcome = scpo(
        "compare",
        comparison,
        "--set",
        "run.selection.filter_threshold=1.0e-6",
        "--set",
        "space.method=[scpo]",
    )

    assert outcome.code == 2
    assert "no run of the comparison came to its end" in outcome.err
    assert not (tmp_path / "runs" / "tiny" / "comparison.json").exists()


def test_a_comparison_under_torchrun_is_refused(scpo, comparison, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)

    outcome = scpo("compare", comparison)

    assert outcome.code == 2
    assert "call it without torchrun" in outcome.err


def test_a_dry_comparison_plans_every_run(scpo, comparison, tmp_path):
    document = json.loads(scpo("compare", comparison, "--dry-run", "--json").out)

    names = [plan["name"] for plan in document["plans"]]
    assert names == ["finetune-North-s0", "scpo-North-s0", "finetune-South-s0", "scpo-South-s0"]
    assert all(plan["seconds"] > 0 for plan in document["plans"])
    assert not (tmp_path / "runs" / "tiny").exists()


def test_a_report_is_made_of_folders(scpo, comparison, config, tmp_path):
    scpo("compare", comparison)
    page = tmp_path / "page.html"
    experiment = tmp_path / "runs" / "tiny"

    whole = scpo("report", experiment, "--output", page, "--latex")
    single = scpo("report", run_folder(tmp_path / "runs"), "--output", tmp_path / "single.html")

    texts = [tmp_path / "page.md", tmp_path / "page.tex"]
    assert whole == Outcome(0, "", f"report: {page}\nas text: {texts[0]}, {texts[1]}\n")
    assert all("North" in file.read_text() for file in (page, *texts))
    assert single.code == 0
    nothing = scpo("report", tmp_path, "--output", tmp_path / "none.html")
    assert nothing.code == 2
    assert f"{tmp_path}: no result.json in it or one folder below" in nothing.err
    assert not (tmp_path / "none.html").exists()


# MLflow 3.17's own: on SQLAlchemy 2.1, on importing its model types, on pandas 3.
@pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated",
    "ignore:.*Any type hint is inferred as AnyType",
    "ignore:Operation with range is deprecated",
)
def test_models_lists_what_runs_registered(scpo, tiny_reward_model, mlflow_database, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_bytes(mlflow_database)
    document = tiny_document(tiny_reward_model, tmp_path / "runs", tracking={"tracker": "mlflow"})
    config = write_yaml(tmp_path / "run.yaml", document)
    assert scpo("train", config).code == 0
    uri = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"

    [model] = json.loads(scpo("models", "--uri", uri, "--json").out)

    assert (model["name"], model["version"], model["aliases"]) == ("scpo-North", 1, ["candidate"])
    assert (model["culture"], model["method"]) == ("North", "scpo")
    assert "scpo-North" in scpo("models", "--uri", uri).out
