"""Bad input through the command line: exit code 2, one message, nothing half-written."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_opinions import HEADER, many, row, write
from tests.test_cli import Outcome, write_yaml
from tests.tiny import tiny_document

Rows = list[dict[str, Any]]


def rows_of(cultures: tuple[str, ...] = ("North", "South"), users: int = 6) -> Rows:
    """Three rows of each user; the answers are words the tiny tokenizer knows."""
    return [
        {
            "prompt": f"about art {number}",
            "chosen": f"answer {culture} {user}",
            "rejected": f"art {culture} {user} {number}",
            "culture": culture,
            "user": f"{culture}-{user}",
            "id": f"{culture}-{user}-{number}",
        }
        for culture in cultures
        for user in range(users)
        for number in range(3)
    ]


def as_lines(rows: Rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


class Workplace:
    """A folder with preferences and a config; its methods change one thing each."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.output_dir = folder / "runs"
        self.data = folder / "preferences.jsonl"
        self.data.write_text(as_lines(rows_of()))
        self.document = tiny_document(model, self.output_dir, train={"max_steps": 4})
        self.document["data"] = {
            "source": "preferences",
            "train_files": [str(self.data)],
            "columns": {"user": "user", "id": "id"},
        }

    def write(self) -> Path:
        return write_yaml(self.folder / "run.yaml", self.document)

    def set_row(self, line: int, **fields: Any) -> None:
        rows = [json.loads(text) for text in self.data.read_text().splitlines()]
        rows[line - 1] |= fields
        self.data.write_text(as_lines(rows))

    def with_scores(self, scores: Any) -> None:
        """Lists of responses and scores in place of chosen and rejected; line 5 has these."""
        rows = [
            {**row, "responses": [row["chosen"], row["rejected"]], "scores": [2, 1]}
            for row in rows_of()
        ]
        rows[4]["scores"] = scores
        self.data.write_text(as_lines(rows))
        self.document["data"]["columns"] |= {"responses": "responses", "scores": "scores"}

    def own_model(self) -> Path:
        """A copy of the model that may be spoilt."""
        copy = self.folder / "model"
        shutil.copytree(self.document["model"]["path"], copy)
        self.document["model"]["path"] = str(copy)
        return copy


@pytest.fixture
def place(tmp_path, tiny_reward_model) -> Workplace:
    return Workplace(tmp_path, tiny_reward_model)


def assert_refused(
    outcome: Outcome, place: Workplace, *expected: str, tables: bool = False
) -> None:
    """One message with the `expected` parts, exit code 2, and no unfinished file anywhere."""
    assert outcome.code == 2
    assert outcome.out.startswith("preferences per culture") if tables else outcome.out == ""
    for part in expected:
        assert part in outcome.err
    assert "Traceback" not in outcome.err
    # One message: its title, then indented lines.
    title, *problems = outcome.err.rstrip("\n").split("\n")
    assert title and all(line.startswith("  ") for line in problems)
    left = [path.name for path in place.folder.rglob("*")]
    assert not [name for name in left if name.endswith(".part") or name == "result.json"]


def test_the_workplace_itself_is_in_order(scpo, place):
    outcome = scpo("train", place.write())

    assert outcome.code == 0, outcome.err


# Data


def cut_gzip(place: Workplace) -> None:
    packed = place.folder / "preferences.jsonl.gz"
    content = gzip.compress(place.data.read_bytes(), mtime=0)
    packed.write_bytes(content[: len(content) // 2])
    place.document["data"]["train_files"] = [str(packed)]


def append_line(line: bytes) -> Callable[[Workplace], None]:
    def spoil(place: Workplace) -> None:
        place.data.write_bytes(place.data.read_bytes() + line)

    return spoil


def without_field(place: Workplace) -> None:
    rows = rows_of()
    del rows[4]["rejected"]
    place.data.write_text(as_lines(rows))


BAD_DATA = {
    "missing file": (
        lambda place: place.data.unlink(),
        ["{data}", "data.train_files"],
    ),
    "name too long": (
        lambda place: place.document["data"].update(train_files=["x" * 300 + ".jsonl"]),
        ["data.train_files: xxx", "no such file"],
    ),
    "empty file": (
        lambda place: place.data.write_text(""),
        ["{data}", "empty"],
    ),
    "gzip cut short": (cut_gzip, ["{data}.gz, line ", "the gzip file is cut short"]),
    "not JSON": (append_line(b"{'a': 1}\n"), ["{data}, line 37: not JSON", "{'a': 1}"]),
    "not an object": (append_line(b"[1]\n"), ["{data}, line 37: must be a JSON object, got"]),
    "missing field": (without_field, ["{data}, line 5: no column 'rejected'; it has 'prompt', "]),
    "null": (
        lambda place: place.set_row(5, culture=None),
        ["{data}, line 5: culture = null: must be text"],
    ),
    "wrong type": (
        lambda place: place.set_row(5, chosen=7),
        ["{data}, line 5: chosen = 7: must be text or a list of chat messages"],
    ),
    "NaN score": (
        lambda place: place.with_scores([float("nan"), 1]),
        ["{data}, line 5: scores = nan: must be finite"],
    ),
    "infinite score": (
        lambda place: place.with_scores([1, float("inf")]),
        ["{data}, line 5: scores = inf: must be finite"],
    ),
    "text as score": (
        lambda place: place.with_scores(["good", 1]),
        ["{data}, line 5: scores = 'good': must be a number"],
    ),
    "score missing": (
        lambda place: place.with_scores([1]),
        ["{data}, line 5: scores = [1.0]: must be one per response"],
    ),
    "duplicate id": (
        lambda place: place.set_row(5, id="North-0-0"),
        ["{data}, line 5", "North-0-0", "line 1"],
    ),
    "user in two cultures": (
        lambda place: place.set_row(5, culture="South"),
        ["{data}, line ", "North-1", "North", "South"],
    ),
    "every prompt empty": (
        lambda place: place.data.write_text(as_lines([row | {"prompt": " "} for row in rows_of()])),
        ["empty prompt"],
    ),
    "one user": (
        lambda place: place.data.write_text(as_lines(rows_of(("North",), users=1))),
        ["data.split: one user only"],
    ),
    "culture without test user": (
        lambda place: place.data.write_text(
            as_lines(rows_of(("North",), 8) + rows_of(("South",), 1))
        ),
        ["South: ", "must have both", "name in data.cultures"],
    ),
    "file of no known kind": (
        lambda place: place.document["data"].update(train_files=[str(place.folder)]),
        ["data.train_files", "{folder}"],
    ),
}


@pytest.mark.parametrize("fault", BAD_DATA)
def test_bad_data_is_refused_with_its_place(scpo, place, fault):
    spoil, expected = BAD_DATA[fault]
    spoil(place)

    outcome = scpo("train", place.write())

    parts = [part.format_map(_Paths(place)) if "{'" not in part else part for part in expected]
    assert_refused(outcome, place, *parts)


class _Paths(dict[str, str]):
    def __init__(self, place: Workplace) -> None:
        super().__init__(data=str(place.data), folder=str(place.folder))


def test_every_bad_row_is_named_at_once(scpo, place):
    place.set_row(3, chosen=None)
    place.set_row(9, culture=7.5)

    outcome = scpo("data", place.write())

    assert_refused(
        outcome,
        place,
        "the data cannot be used: 2 problems",
        f"{place.data}, line 3: chosen = null",
        f"{place.data}, line 9: culture = 7.5",
    )


# Survey questions


SHARES = {"Chile": [0.6, 0.4], "Israel": [0.3, 0.7]}

BAD_OPINIONS = {
    "other columns": (
        [("Fair?", "Yes")],
        ("question", "answer"),
        ["{data}: no columns 'selections', 'options'; it has 'question', 'answer'"],
    ),
    "column given twice": (
        [(*each, "x") for each in many(20)],
        (*HEADER, "question"),
        ["{data}: more than one column 'question'"],
    ),
    "selections no dict": (
        [*many(20), row("Fair?", "Chile: 0.6")],
        HEADER,
        ["{data}, line 22: selections = 'Chile: 0.6': must be a printed dict"],
    ),
    "shares in percent": (
        [*many(20), row("Fair?", {"Chile": [60, 40]})],
        HEADER,
        ["{data}, line 22: selections['Chile'] = 60: a share must be from 0 to 1"],
    ),
    "share below 0": (
        [*many(20), row("Fair?", {"Chile": [-0.2, 1]})],
        HEADER,
        ["{data}, line 22: selections['Chile'] = -0.2: a share must be from 0 to 1"],
    ),
    "option null": (
        [*many(20), row("Fair?", SHARES, ["Yes", None])],
        HEADER,
        ["{data}, line 22: options = ", "option 2 is null: must be text or a number"],
    ),
    "one option everywhere": (
        [row(f"{n}?", {"Chile": [1.0]}, ["Yes"]) for n in range(20)],
        HEADER,
        ["no interaction can be used", "question with fewer than 2 options: 20"],
    ),
    "question twice with other shares": (
        [*many(20), row("Question  0?", {"Chile": [0.1, 0.9]})],
        HEADER,
        ["{data}, line 22: question = 'Question  0?': duplicate, also at {data}, line 2, "],
    ),
    "one question": (many(1), HEADER, ["data.split: one question only"]),
    "country on one side": (
        [*many(20), row("Fair?", {"Peru": [0.1, 0.9]})],
        HEADER,
        ["Peru: ", "must have both", "name in data.cultures only cultures that have both: Chile"],
    ),
    "no shares apart": (
        [row(f"{n}?", {"Chile": [0.5, 0.5]}) for n in range(20)],
        HEADER,
        ["Chile: 0 training pairs of 14 users (or questions), 0 test pairs of 3: must have both"],
    ),
}


TRAINED_NEVER = {"one question", "country on one side", "no shares apart"}
"""Of these, what can be shown is: the data can be read, and only not be trained on."""


def set_opinions(place: Workplace, path: Path) -> None:
    place.document["data"] = {"source": "opinions", "path": str(path), "cultures": None}
    place.document["culture_weights"] = {"Chile": 1.0}


@pytest.mark.parametrize("command", ["data", "train"])
@pytest.mark.parametrize("fault", BAD_OPINIONS)
def test_bad_opinions_are_refused_with_their_place(scpo, place, fault, command):
    rows, header, expected = BAD_OPINIONS[fault]
    path = write(place.folder, rows, header)
    set_opinions(place, path)

    outcome = scpo(command, place.write())

    parts = [part.replace("{data}", str(path)) for part in expected]
    assert_refused(outcome, place, *parts, tables=command == "data" and fault in TRAINED_NEVER)
    assert not (place.output_dir / "tiny").exists()


def test_data_is_shown_without_a_tokenizer_and_with_all_that_a_training_would_refuse(scpo, place):
    place.data.write_text(as_lines(rows_of(("North",), 8) + rows_of(("South",), 1)))
    place.document["model"]["path"] = str(place.folder / "nowhere")
    place.document["culture_weights"] = {"Nowhere": 1.0}

    outcome, document = scpo("data", place.write()), scpo("data", place.write(), "--json")

    expected = ["South: ", "no culture 'Nowhere' in the data", f"{place.folder / 'nowhere'}"]
    assert_refused(outcome, place, "a training would refuse this", *expected, tables=True)
    shown = json.loads(document.out)
    assert shown["truncated_texts"] is None
    assert shown["counts"]["South"]["interactions"] > 0
    assert all(part in "\n".join(shown["refusals"]) for part in expected)


def test_odd_options_are_scored_and_questions_of_no_use_are_left_out_and_counted(scpo, place):
    odd = ["Yes, very", 'It\'s "so"', 3]
    shares = {"Chile": [0.6, 0.3, 0.1], "Israel": [0.1, 0.3, 0.6]}
    rows = [
        *(row(f"question {n}?", shares, odd) for n in range(20)),
        row(" ", SHARES),
        row("One?", {"Chile": [1.0]}, ["Yes"]),
        row("question 0?", {"Chile": shares["Chile"]}, odd),
    ]
    set_opinions(place, write(place.folder, rows))

    counted = json.loads(scpo("data", place.write(), "--json").out)["counts"]
    trained = scpo("train", place.write(), "--json")

    assert counted[""]["skipped"] == {
        "empty question": 1,
        "question with fewer than 2 options": 1,
    }
    assert counted["Chile"]["skipped"] == {"distribution given twice": 1}
    assert counted["Chile"]["interactions"] == counted["Israel"]["interactions"] == 20
    assert trained.code == 0, trained.err
    assert json.loads(trained.out)["opinions"][0]["macro"]["model"]["num_pairs"] == 6


# Texts that are odd but no error


def test_empty_texts_and_lone_surrogates_are_left_out_and_counted(scpo, place):
    place.set_row(1, prompt="")
    place.set_row(2, chosen=" ")
    place.set_row(3, rejected="a \ud800 b")

    outcome = scpo("data", place.write(), "--json")

    assert outcome.code == 0
    skipped = json.loads(outcome.out)["counts"]["North"]["skipped"]
    assert {
        reason: skipped[reason]
        for reason in ("empty prompt", "empty response", "response not valid Unicode")
    } == {"empty prompt": 1, "empty response": 1, "response not valid Unicode": 1}


@pytest.mark.parametrize(
    "text",
    ["\0", "a\0b", "word " * 200_000, "🦜\u202e\ufeff"],
    ids=["NUL", "NUL inside", "1 MB", "🦜"],
)
def test_odd_texts_are_trained_on_and_cut_ones_counted(scpo, place, text):
    place.set_row(1, chosen=text)

    outcome = scpo("train", place.write(), "--json")

    assert outcome.code == 0
    result = json.loads(outcome.out)
    assert result["truncated_texts"] == {"North": int(len(text) > 1_000), "South": 0}


@pytest.mark.parametrize("name", ["../../North", "..", "Korea, Republic of", "🦜🇨🇱", "x" * 300])
def test_odd_culture_names_stay_inside_the_output_folder(scpo, place, name):
    place.data.write_text(as_lines(rows_of((name, "South"))))
    place.document["culture_weights"] = {name: 1.0}
    output_dir = place.folder / "far" / "below" / "runs"
    place.document["output_dir"] = str(output_dir)

    outcome = scpo("train", place.write(), "--json")

    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["evaluation"].keys() == {name, "South"}
    [result] = place.folder.rglob("result.json")
    assert result.parent.parent == output_dir / "tiny"


# Settings


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "culture_weights={Nort: 1.0}",
            "culture_weights: no culture 'Nort' in the data; nearest: 'North'",
        ),
        (
            "data.cultures=[North, Sooth]",
            "data.cultures: no culture 'Sooth' in the data; nearest: 'South'",
        ),
        (
            "selection.filter_threshold=1.0e-9",
            "North: no pair of 12 left at selection.filter_threshold = 1e-09",
        ),
        ("model.num_layers=9", "model.num_layers = 9"),
    ],
)
def test_settings_that_do_not_fit_the_data_or_model_are_refused(scpo, place, override, message):
    assert_refused(scpo("train", place.write(), "--set", override), place, message)
    assert not list(place.output_dir.rglob("run.json"))


@pytest.mark.parametrize("command", ["data", "train"])
def test_a_maximum_length_beyond_the_model_is_refused_by_all_and_leaves_no_run(
    scpo, place, command
):
    path = place.write()

    for _ in range(2):
        outcome = scpo(command, path, "--set", "model.max_length=129")
        message = "model.max_length = 129: "
        assert_refused(outcome, place, message, "at most 128 tokens", tables=command == "data")

    assert not list(place.output_dir.rglob("run.json"))


@pytest.mark.parametrize(
    ("is_backbone", "said"), [(True, "has no score head"), (False, "no config.json in it")]
)
def test_the_fault_of_an_evaluated_folder_is_said_of_it(
    scpo, place, tiny_backbone, is_backbone, said
):
    folder = tiny_backbone if is_backbone else place.folder

    outcome = scpo("evaluate", folder, place.write())

    assert_refused(outcome, place, f"{folder}: ", said)
    assert "model.path" not in outcome.err and "new_head" not in outcome.err


def test_a_culture_that_data_cultures_leaves_out_is_refused_with_that_setting(scpo, place):
    place.document["data"] |= {"cultures": ["North"]}

    outcome = scpo("train", place.write(), "--set", "culture_weights={South: 1.0}")

    assert_refused(outcome, place, "no culture 'South' in data.cultures, which leaves all others")


def test_an_unknown_culture_of_a_comparison_is_refused(scpo, place):
    document = {"run": place.document, "space": {"culture": ["North", "Soth"]}}
    path = write_yaml(place.folder / "compare.yaml", document)

    outcome = scpo("compare", path)

    assert_refused(outcome, place, "space.culture: no culture 'Soth'", "nearest: 'South', 'North'")


def test_every_bad_setting_is_named_at_once_before_anything_starts(scpo, place):
    place.document["selection"] = {"filter_threshold": 1.7, "filter_treshold": 0.6}
    place.document["train"] |= {"warmup_steps": 9}

    outcome = scpo("train", place.write())

    assert_refused(
        outcome,
        place,
        f"{place.folder / 'run.yaml'}: 3 problems",
        "selection.filter_threshold = 1.7: must be less than or equal to 1",
        "selection.filter_treshold = 0.6: no such setting",
        "train: warmup_steps 9 must be below max_steps 4",
    )
    assert not place.output_dir.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "a config is a mapping of settings, got nothing"),
        (b"a: [", "not YAML"),
        (b"\xff\xfe\xfa", "not UTF-8"),
    ],
)
def test_a_config_that_is_none_is_refused(scpo, place, content, message):
    path = place.folder / "run.yaml"
    if content is not None:
        path.write_bytes(content)

    assert_refused(scpo("train", path), place, str(path), message)
