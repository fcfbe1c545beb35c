"""`scpo evaluate --scores`: any two models' scores, side by side."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from scpo_ray.cli.main import app
from scpo_ray.records import InputError


def scored_file(path: Path, skill: float, *, with_people: bool) -> Path:
    """40 users of two cultures with 5 prompts each; scores follow people's by `skill`."""
    rng, noise = np.random.default_rng(0), np.random.default_rng(int(10 * skill))
    lines = []
    for user in range(40):
        for prompt in range(5):
            human = rng.permutation(3)
            row = {
                "prompt": f"{user} {prompt}",
                "responses": ["a", "b", "c"],
                "scores": (skill * human + noise.standard_normal(3)).tolist(),
            }
            if with_people:
                row |= {"human_scores": human.tolist(), "user": f"u{user}"}
                row |= {"culture": "North" if user % 2 else "South"}
            lines.append(json.dumps(row))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    return (
        scored_file(folder / "good.jsonl", 2.0, with_people=True),
        scored_file(folder / "poor.jsonl", 0.2, with_people=False),
    )


def invoked(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], prog_name="scpo")


def test_the_better_of_two_files_is_shown_better_for_each_culture_and_on_the_mean(files):
    good, poor = files

    document = json.loads(invoked("--scores", good, poor, "--json").stdout)
    table = invoked("--scores", good, poor).stdout

    assert list(document["evaluation"]) == ["South", "North"]
    assert document["evaluation"]["North"]["after"]["all"]["num_clusters"] == 20
    assert document["macro"]["all"]["low"] > 0.2
    assert document["best_of_n"]["North"]["win_rate"]["global"]["low"] > 0.5
    assert table.count("better") == 3
    assert "macro mean" in table


def test_the_same_file_twice_differs_in_nothing(files):
    document = json.loads(invoked("--scores", files[0], files[0], "--json").stdout)

    assert document["macro"]["all"]["value"] == 0
    assert document["macro"]["all"]["p_value"] == 1


@pytest.mark.parametrize("copies", [1, 4])
def test_without_users_a_prompt_given_again_is_no_more_evidence(copies, files, tmp_path):
    good, poor = files
    rows = [json.loads(line) for line in good.read_text().splitlines()]
    nameless = tmp_path / "nameless.jsonl"
    nameless.write_text("\n".join(json.dumps(row | {"user": None}) for row in rows * copies))

    found = json.loads(invoked("--scores", nameless, poor, "--json").stdout)
    shown = invoked("--scores", nameless, poor)

    assert found["clusters"] == ["prompts"]
    assert found["evaluation"]["North"]["after"]["all"]["num_clusters"] == 100
    once = invoked("--scores", good, poor, "--json")
    assert found["macro"]["all"]["value"] == pytest.approx(
        json.loads(once.stdout)["macro"]["all"]["value"]
    )
    assert "take all rows of a prompt as one" in shown.output
    assert "prompts" in shown.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["model"], ["model", "config", "--scores", "a.jsonl", "b.jsonl"]]
)
def test_a_model_with_its_config_or_two_files_are_named(arguments):
    assert invoked(*arguments).exit_code == 2


def test_a_file_of_another_kind_is_refused(files, tmp_path):
    other = tmp_path / "scores.txt"
    other.write_text("x")

    found = invoked("--scores", files[0], other)

    assert isinstance(found.exception, InputError)
    assert "the ending must be one of" in str(found.exception)
