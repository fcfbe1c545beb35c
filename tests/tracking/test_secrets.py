"""A password in a setting reaches no file, no page and no line, whatever the command."""
# ruff: noqa: F811 (the fixture `scpo` is imported)

import json
from pathlib import Path

import pytest

from tests.settings.test_shown import SECRET, WITH_A_PASSWORD
from tests.test_cli import Outcome, write_yaml
from tests.tiny import tiny_document


def assert_no_secret(folder: Path, outcome: Outcome, given: Path) -> None:
    """In nothing that was said, and in no file but the one that it was given in."""
    assert SECRET not in outcome.out + outcome.err
    for path in folder.rglob("*"):
        if path.is_file() and path != given:
            assert SECRET.encode() not in path.read_bytes(), path


COMMANDS = [
    ("train",),
    ("train", "--dry-run"),
    ("compare", "--dry-run"),
    ("sweep", "--dry-run"),
    ("sweep",),
    ("efficiency",),
    ("data", "--json"),
    ("score",),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("where", ["tracking.uri", "launch.storage", "a comment", "--set"])
def test_every_command_refuses_it_and_keeps_nothing(
    scpo, tmp_path, tiny_reward_model, command, where
):
    run = tiny_document(tiny_reward_model, tmp_path / "runs")
    uri = f"http://user:{SECRET}@127.0.0.1:9"
    section, _, name = where.partition(".")
    if name:
        run[section] = {**run.get(section, {}), name: uri}
    is_space = command[0] in ("compare", "sweep")
    space = {"method": ["scpo"]} if command[0] == "compare" else {"method": {"grid": ["scpo"]}}
    file = write_yaml(tmp_path / "run.yaml", {"run": run, "space": space} if is_space else run)
    options = []
    if where == "a comment":
        file.write_text(f"# was {uri}\n{file.read_text()}")
    elif where == "--set":
        options = ["--set", f"{'run.' if is_space else ''}tracking.uri={uri}"]

    outcome = scpo(*command, file, *options)

    assert outcome.code == 2
    assert "MLFLOW_TRACKING_PASSWORD" in outcome.err
    assert not (tmp_path / "runs").exists()
    assert_no_secret(tmp_path, outcome, file)


@pytest.mark.parametrize("uri", WITH_A_PASSWORD)
def test_the_registry_refuses_it_in_any_form(scpo, tmp_path, uri):
    outcome = scpo("models", "--uri", uri)

    assert outcome.code == 2
    assert_no_secret(tmp_path, outcome, tmp_path)


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ({"comet": {"api_key": SECRET}}, "comet.api_key"),
        ({"wandb": {"host": f"https://user:{SECRET}@host"}}, "wandb.host"),
        ({"monitor": {"password": SECRET}}, "monitor.password"),
    ],
)
def test_a_deepspeed_json_with_a_secret_is_refused(
    scpo, tmp_path, tiny_reward_model, document, key
):
    theirs = tmp_path / "deepspeed.json"
    theirs.write_text(json.dumps(document))
    train = {"engine": "deepspeed", "deepspeed_config": str(theirs)}
    file = write_yaml(
        tmp_path / "run.yaml", tiny_document(tiny_reward_model, tmp_path / "runs", train=train)
    )

    outcome = scpo("train", file)

    assert outcome.code == 2
    assert f"{key}: DeepSpeed logs its settings; give it by the environment" in outcome.err
    assert_no_secret(tmp_path, outcome, theirs)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 5_000, "9" * 5_000, " " * 300_000])
def test_a_deepspeed_json_out_of_bounds_is_refused(scpo, tmp_path, tiny_reward_model, text):
    theirs = tmp_path / "deepspeed.json"
    theirs.write_text(text)
    train = {"engine": "deepspeed", "deepspeed_config": str(theirs)}
    file = write_yaml(
        tmp_path / "run.yaml", tiny_document(tiny_reward_model, tmp_path / "runs", train=train)
    )

    outcome = scpo("train", file)

    assert outcome.code == 2
    assert f"train.deepspeed_config = {theirs}" in outcome.err
