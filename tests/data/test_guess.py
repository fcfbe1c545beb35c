"""A first config from the columns of a file."""

import json
from pathlib import Path

import pytest

from scpo_ray.commands.beginning import write_first_config
from scpo_ray.data.guess import guessed
from scpo_ray.data.loading import load_preferences
from scpo_ray.records import InputError
from scpo_ray.settings.files import load_config

PAIR = {"prompt": "Tea?", "chosen": "Yes.", "rejected": "No."}
DIALOGUES = {
    "chosen": "\n\nHuman: Tea?\n\nAssistant: Yes.",
    "rejected": "\n\nHuman: Tea?\n\nAssistant: No.",
}


def rows_of(row: dict[str, object], num_rows: int = 12) -> list[dict[str, object]]:
    """Rows like `row`, in turn of two countries and six users."""
    return [
        {name: value(i) if callable(value) else value for name, value in row.items()}
        for i in range(num_rows)
    ]


def country(i: int) -> str:
    return "Chile" if i % 3 else "Peru"


@pytest.mark.parametrize(
    ("row", "columns", "split_by"),
    [
        (
            {**PAIR, "culture": country, "user": lambda i: f"u{i % 6}"},
            {"culture": "culture", "user": "user"},
            "user",
        ),
        (
            {"Instruction": "Tea?", "Preferred": "a", "Dispreferred": "b", "Country": country}
            | {"Annotator ID": lambda i: i % 6},
            {"chosen": "Preferred", "rejected": "Dispreferred", "culture": "Country"}
            | {"prompt": "Instruction", "user": "Annotator ID"},
            "user",
        ),
        (
            {"question": "Tea?", "responses": ["a", "b"], "scores": "[3, 1]", "nation": country},
            {"responses": "responses", "scores": "scores", "culture": "nation"}
            | {"prompt": "question", "question": "question"},
            "question",
        ),
        (
            {**DIALOGUES, "where": country, "rater": "r"},
            {"culture": "where", "prompt": None, "user": "rater"},
            "user",
        ),
    ],
)
def test_columns_are_told_by_their_names_and_contents(row, columns, split_by):
    guess = guessed(rows_of(row), "d.jsonl")

    assert guess.columns == columns
    assert guess.split_by == split_by
    assert guess.cultures == {"Chile": 8, "Peru": 4}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**PAIR, "user": "u"}, "which column says where people live?"),
        ({**PAIR, "x": country, "y": country}, "it may be 'x' or 'y'"),
        ({"prompt": "Tea?", "country": country}, "which columns hold the responses?"),
        (
            {"prompt": "p", "responses": ["a", "b"], "scores": [1], "country": country},
            "which columns hold the responses?",
        ),
        ({"chosen": "Yes.", "rejected": "No.", "country": country}, "no column of prompts"),
        ({**DIALOGUES, "country": country}, "no column of users and none of questions"),
    ],
)
def test_what_cannot_be_seen_is_asked_for_with_the_columns_there_are(row, said):
    with pytest.raises(InputError) as error:
        guessed(rows_of(row), "d.jsonl")

    assert said in str(error.value)


def test_the_config_that_is_written_reads_the_file(tmp_path):
    data, config = tmp_path / "people.jsonl", tmp_path / "mine.yaml"
    row = {**PAIR, "chosen": lambda i: f"Yes {i}.", "culture": country, "user": lambda i: f"u{i}"}
    data.write_text("\n".join(map(json.dumps, rows_of(row))))

    write_first_config(data, config, "some-model")

    run = load_config(config)
    assert run.culture_weights == {"Chile": 1.0}
    assert run.model.path == "some-model"
    assert load_preferences(run.data, tmp_path / "cache").counts["Chile"].interactions == 8


def test_a_config_that_is_there_stays(tmp_path, scpo):
    config = tmp_path / "mine.yaml"
    config.write_text("seed: 3")

    outcome = scpo("init", tmp_path / "d.jsonl", "--output", config)

    assert outcome.code == 2 and "exists; name another file" in outcome.err
    assert config.read_text() == "seed: 3"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("d.jsonl", None, "no such file"),
        ("d.txt", "x", "the ending must be one of"),
        ("d.jsonl", "{", "line 1"),
        ("d.parquet", "no parquet", "not a whole Parquet file"),
        ("d.csv", "", "d.csv"),
    ],
)
def test_a_file_that_cannot_be_read_writes_no_config(tmp_path, scpo, name, content, said):
    data, config = tmp_path / name, tmp_path / "mine.yaml"
    if content is not None:
        data.write_text(content)

    outcome = scpo("init", data, "--output", config)

    assert outcome.code == 2
    assert said in outcome.err
    assert list(tmp_path.glob("*.yaml")) == [] and not list(Path(tmp_path).glob(".*"))
