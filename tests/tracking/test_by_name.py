"""Registered models where a command takes a model."""

import json

import pytest
import yaml

from tests.tiny import tiny_document
from tests.tracking.test_trackers import pytestmark, store

__all__ = ["pytestmark", "store"]  # A fixture, and MLflow's own warnings.


@pytest.fixture
def config(tmp_path, tiny_reward_model, store):
    tracking = {"tracker": "mlflow", "uri": store}
    document = tiny_document(
        tiny_reward_model, tmp_path / "runs", train={"max_steps": 2}, tracking=tracking
    )
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_registered_model_is_exported_and_evaluated_as_its_runs_folder_is(
    scpo, config, store, tmp_path
):
    assert scpo("train", config).code == 0
    run = next((tmp_path / "runs" / "tiny").glob("scpo-*"))

    exported = scpo("export", "scpo-North:candidate", tmp_path / "named", "--uri", store)
    evaluated = scpo("evaluate", "scpo-North@candidate", config, "--json")

    assert (exported.code, evaluated.code) == (0, 0)
    assert scpo("export", run, tmp_path / "of-run").code == 0
    for file in ("model.safetensors", "config.json", "scpo_scale.json"):
        theirs = (tmp_path / "of-run" / file).read_bytes()
        assert (tmp_path / "named" / file).read_bytes() == theirs, file
    expected = json.loads(scpo("evaluate", run, config, "--json").out)
    assert json.loads(evaluated.out)["evaluation"] == expected["evaluation"]


def test_a_run_evaluated_on_pairs_that_it_may_have_learned_from_is_warned_of(
    scpo, config, tmp_path
):
    assert scpo("train", config).code == 0
    run = next((tmp_path / "runs" / "tiny").glob("scpo-*"))
    other = ("--set", "data.split.seed=7", "--json")

    for named in (run, run / "model", "scpo-North:1"):
        same = scpo("evaluate", named, config, "--json")
        outcome = scpo("evaluate", named, config, *other)

        assert (same.code, json.loads(same.out)["warnings"]) == (0, []), same.err
        [warning] = json.loads(outcome.out)["warnings"]
        assert warning.startswith(f"{named} may have learned from what it is evaluated on; then ")
        assert warning.endswith("were not held out there: data.split.seed is 0 there, 7 here")
        assert f"warning: {warning}" in outcome.err

    (run / "test_pairs.parquet").write_text("no table")
    damaged = scpo("evaluate", run, config)
    assert damaged.code == 0
    assert f"warning: {run}: whom it learned from is not known: " in damaged.err


@pytest.mark.parametrize("command", ["export", "evaluate"])
def test_a_version_that_is_not_there_is_named(scpo, config, store, tmp_path, command):
    rest = [tmp_path / "new", "--uri", store] if command == "export" else [config]

    outcome = scpo(command, "scpo-Nowhere:champion", *rest)

    assert outcome.code == 2
    assert "scpo-Nowhere:champion: no such model" in outcome.err
    assert not (tmp_path / "new").exists()
