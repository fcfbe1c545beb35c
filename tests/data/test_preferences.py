import csv
import gzip
import json
import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scpo_ray.data.loading import load_preferences
from scpo_ray.data.preferences import PreferencesConfig, open_preferences
from scpo_ray.data.rows import MAX_PROBLEMS, Notes, usable
from scpo_ray.evaluation.calibration import vote_shares
from scpo_ray.records import InputError

ROOT = Path(__file__).parents[2]
BLEND = Path(os.environ.get("SCPO_SHARED_DATA", ROOT.parent / "shared" / "data")) / "blend"

PLAIN = {"culture": "Chile", "user": "u0", "prompt": "p", "chosen": "good", "rejected": "bad"}
ASK = {"role": "user", "content": "p"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
SYSTEM = {"role": "system", "content": "s"}
EARLIER = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SCORED = {"responses": "responses", "scores": "scores"}


def _config(*paths, **settings):
    columns = {"user": "user"} | settings.pop("columns", {})
    return PreferencesConfig.model_validate(
        {"source": "preferences", "train_files": [str(p) for p in paths], "columns": columns}
        | settings
    )


def _write(path, rows):
    """`rows` in the format of the path's ending; a str is a raw line."""
    opened = (
        gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="")
    )
    if ".parquet" in path.name:
        opened.close()
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    with opened as stream:
        if ".csv" in path.name:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            cells = [
                {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
                for row in rows
            ]
            writer.writerows(cells)
        else:
            stream.writelines(
                (row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows
            )
    return path


def _read(*paths, **settings):
    notes = Notes()
    source = open_preferences(_config(*paths, **settings))
    interactions = (usable(interaction, notes) for _, interaction in source.read(notes))
    return [interaction for interaction in interactions if interaction], notes


def _problems(*paths, **settings):
    interactions, notes = _read(*paths, **settings)
    assert interactions == []
    return notes.problems


@pytest.mark.parametrize(
    "name", ["d.jsonl", "d.jsonl.gz", "d.csv", "d.csv.gz", "d.parquet", "D.JSONL"]
)
@pytest.mark.parametrize(
    ("texts", "history"),
    [
        pytest.param({"prompt": "p", "chosen": "good", "rejected": "bad"}, (), id="strings"),
        pytest.param(
            {"prompt": [SYSTEM, *EARLIER, ASK], "chosen": [GOOD], "rejected": [BAD]},
            (("system", "s"), ("user", "a"), ("assistant", "b")),
            id="explicit messages",
        ),
        pytest.param(
            {"chosen": [*EARLIER, ASK, GOOD], "rejected": [*EARLIER, ASK, BAD]},
            (("user", "a"), ("assistant", "b")),
            id="implicit messages",
        ),
        pytest.param(
            {"prompt": "p", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
            (),
            id="a string prompt, repeated in the conversations",
        ),
    ],
)
def test_every_shape_reads_alike_from_every_kind_of_file(tmp_path, name, texts, history):
    path = _write(tmp_path / name, [{"culture": "Chile", "user": "u0"} | texts])

    (interaction,), notes = _read(path)

    assert not notes.num_problems
    assert interaction.prompt == "p"
    assert interaction.history == history
    assert interaction.responses == ("good", "bad")
    assert interaction.human_scores == (1.0, 0.0)
    assert (interaction.culture, interaction.user) == ("Chile", "u0")


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.parquet"])
@pytest.mark.parametrize("as_text", [json.dumps, partial(json.dumps, indent=1), repr])
def test_messages_as_text_read_as_messages_from_every_kind_of_file(tmp_path, name, as_text):
    row = {"culture": "Chile", "user": "u0", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}
    pairs = row | {"chosen": as_text(row["chosen"]), "rejected": as_text(row["rejected"])}
    prompted = pairs | {"prompt": as_text([ASK])}
    without = pairs | {"prompt": ""}
    scored = row | {"responses": as_text([[ASK, GOOD], [ASK, BAD]]), "scores": as_text([2, 1])}

    read = [
        _read(_write(tmp_path / name, [each]), columns=columns)
        for each, columns in ((pairs, {}), (prompted, {}), (without, {}), (scored, SCORED))
    ]

    for (interaction,), notes in read:
        assert not notes.num_problems
        assert (interaction.prompt, interaction.responses) == ("p", ("good", "bad"))


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.parquet"])
def test_messages_as_text_that_cannot_be_read_are_refused_with_the_row(tmp_path, name):
    broken = str([ASK, GOOD]).replace("}, {", "}\n {")  # as a printed array of NumPy
    path = _write(tmp_path / name, [PLAIN | {"chosen": broken}])
    (found,) = _problems(path)
    assert re.match(rf"{path}, (line|row) \d: chosen = ", found)
    assert found.endswith(
        "begins as a list of messages and cannot be read as one: write it as JSON"
    )


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.parquet"])
def test_dialogues_as_in_hh_rlhf_are_read(tmp_path, name):
    before = "\n\nHuman: a\n\nAssistant: b\n\nHuman: p\n\nAssistant:"
    row = {"culture": "Chile", "user": "u0"}
    whole = row | {"chosen": f"{before} good", "rejected": f"{before} bad"}
    prompted = row | {"prompt": before, "chosen": " good", "rejected": " bad"}

    for each in (whole, prompted, whole | {"prompt": before}):
        (interaction,), notes = _read(_write(tmp_path / name, [each]))
        assert not notes.num_problems
        assert interaction.history == (("user", "a"), ("assistant", "b"))
        assert interaction.prompt == "p"
        assert [response.strip() for response in interaction.responses] == ["good", "bad"]


def test_a_reply_that_is_a_dialogue_of_its_own_stays_one(tmp_path):
    play = "Human: hello\n\nAssistant: hi"
    (interaction,), _ = _read(_write(tmp_path / "d.jsonl", [PLAIN | {"chosen": play}]))
    assert interaction.responses == (play, "bad")


def test_dialogues_that_part_before_the_last_reply_are_refused(tmp_path):
    row = {"culture": "Chile", "user": "u0", "chosen": "Human: p\n\nAssistant: good"}
    row |= {"rejected": "Human: q\n\nAssistant: bad"}
    (found,) = _problems(_write(tmp_path / "d.jsonl", [row]))
    assert "conversations must share their turns up to a user's message" in found


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.parquet"])
def test_names_are_one_whatever_their_blanks_and_accents(tmp_path, name):
    rows = [
        PLAIN | {"culture": culture, "user": user, "q": user}
        for culture, user in (("México", "u 1"), (" Me\u0301xico", "u 1 "), ("México\n", "u  1"))
    ]
    interactions, notes = _read(_write(tmp_path / name, rows), columns={"question": "q"})
    assert not notes.num_problems
    assert {(i.culture, i.user, i.question) for i in interactions} == {("México", "u 1", "u 1")}


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.parquet"])
@pytest.mark.parametrize(
    "scores", ["[1, 1e999]", "[1, NaN]", "[1, -Infinity]", "[1, nan]", "[1, " + "9" * 400 + "]"]
)
def test_numbers_of_any_size_are_refused_with_the_row(tmp_path, name, scores):
    row = {"culture": "C", "user": "u", "prompt": "p", "responses": '["x", "y"]', "scores": scores}
    (found,) = _problems(_write(tmp_path / name, [row]), columns=SCORED)
    assert "scores = " in found and found.endswith(": must be finite")


@pytest.mark.parametrize(
    "line",
    [
        json.dumps(PLAIN)[:-1] + ', "x": ' + "9" * 5_000 + "}",
        json.dumps(PLAIN | {"prompt": 0})[:-1] + ', "prompt": ' + "[" * 900 + "]" * 900 + "}",
        json.dumps(PLAIN | {"prompt": 0})[:-1] + ', "prompt": ' + '{"a":' * 900 + "1" + "}" * 901,
    ],
)
def test_a_row_beyond_all_bounds_is_named(tmp_path, line):
    (found,) = _problems(_write(tmp_path / "d.jsonl", [line]))
    assert found.startswith(f"{tmp_path / 'd.jsonl'}, line 1: ")


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.csv.gz"])
def test_a_packed_row_that_would_fill_the_memory_is_refused(tmp_path, name, monkeypatch):
    # The bound itself, 64 MB, takes seconds to pack.
    monkeypatch.setattr("scpo_ray.data.files.MAX_ROW_BYTES", 10_000)
    path = _write(tmp_path / name, [PLAIN, PLAIN | {"prompt": "0" * 20_000}])
    interactions, notes = _read(path)
    assert len(interactions) == 1
    assert len(notes.problems) == 1


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.parquet"])
@pytest.mark.parametrize(
    "texts",
    [
        {"prompt": "p", "responses": ["x", "y", "z"]},
        {"prompt": [ASK], "responses": [[{"role": "assistant", "content": c}] for c in "xyz"]},
        {"responses": [[ASK, {"role": "assistant", "content": c}] for c in "xyz"]},
    ],
    ids=["strings", "explicit", "implicit"],
)
def test_responses_with_scores_read_alike_from_every_kind_of_file(tmp_path, name, texts):
    row = {"culture": "Chile", "user": "u0", "scores": [1, 2.5, -3]} | texts
    (interaction,), notes = _read(_write(tmp_path / name, [row]), columns=SCORED)
    assert not notes.num_problems
    assert interaction.prompt == "p"
    assert interaction.responses == ("x", "y", "z")
    assert interaction.human_scores == (1.0, 2.5, -3.0)


def test_equal_replies_to_one_conversation_are_replies_still(tmp_path):
    row = {"culture": "Chile", "user": "u0", "chosen": [ASK, GOOD], "rejected": [ASK, GOOD]}
    (interaction,), _ = _read(_write(tmp_path / "d.jsonl", [row]), columns={"prompt": None})
    assert (interaction.prompt, interaction.responses) == ("p", ("good", "good"))


def test_columns_are_mapped_and_ids_may_be_numbers(tmp_path):
    row = {"land": "Chile", "who": 7, "q": 3, "key": 12, "ask": "p", "yes": "good", "no": "bad"}
    columns = {"culture": "land", "user": "who", "question": "q", "id": "key"}
    columns |= {"prompt": "ask", "chosen": "yes", "rejected": "no"}
    (interaction,), _ = _read(_write(tmp_path / "d.jsonl", [row]), columns=columns)
    assert (interaction.interaction_id, interaction.user, interaction.question) == ("12", "7", "3")
    assert (interaction.prompt, interaction.responses) == ("p", ("good", "bad"))


def test_rows_without_id_are_named_by_file_and_line_also_when_two_files_share_a_name(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        _write(tmp_path / folder / "d.jsonl", [PLAIN, "", PLAIN])
    paths = [tmp_path / folder / "d.jsonl" for folder in "ab"]

    assert [i.interaction_id for i in _read(paths[0])[0]] == ["d.jsonl:1", "d.jsonl:3"]
    both = [i.interaction_id for i in _read(*paths)[0]]
    assert both == ["a/d.jsonl:1", "a/d.jsonl:3", "b/d.jsonl:1", "b/d.jsonl:3"]


def test_rows_of_train_and_test_files_are_labelled(tmp_path):
    train, test = (_write(tmp_path / f"{side}.jsonl", [PLAIN]) for side in ("train", "test"))
    interactions, _ = _read(train, test_files=[str(test)], split={"by": "source"})
    assert [i.split for i in interactions] == ["train", "test"]
    assert [i.split for i in _read(train)[0]] == [None]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "must be a JSON object, got [1, 2]"),
        ('{"a": ' + "[" * 100_000, "not JSON"),
        (PLAIN | {"culture": None}, "culture = null: must be text"),
        (PLAIN | {"culture": "  "}, "culture = '  ': must be text, not blank"),
        (PLAIN | {"culture": 3}, "culture = 3: must be text"),
        (PLAIN | {"user": None}, "user = null: must be text, not blank"),
        (PLAIN | {"user": "\ud800"}, r"user = '\ud800': must be text"),
        (PLAIN | {"prompt": 5}, "prompt = 5: must be text or a list of chat messages"),
        (PLAIN | {"prompt": None}, "prompt = null: must be set where chosen is plain text"),
        (PLAIN | {"chosen": None}, "chosen = null: must be text or a list of chat messages"),
        (PLAIN | {"rejected": 1.5}, "rejected = 1.5: must be text or a list of chat messages"),
        (PLAIN | {"chosen": []}, "chosen = []: must be text or a list of chat messages"),
        (PLAIN | {"chosen": ["x"]}, "chosen = 'x': a chat message must have role and content"),
        (PLAIN | {"chosen": [{"role": "assistant"}]}, "must have role and content as text"),
        (PLAIN | {"prompt": [GOOD]}, "must end with a user's message"),
        (PLAIN | {"chosen": [GOOD, GOOD]}, "must hold one assistant's message after the prompt"),
        (
            {"culture": "Chile", "user": "u0", "chosen": [GOOD], "rejected": [BAD]},
            "conversations must share their turns up to a user's message",
        ),
        (
            {k: v for k, v in PLAIN.items() if k != "rejected"},
            "no column 'rejected'; it has 'culture', 'user',",
        ),
        (
            {k: v for k, v in PLAIN.items() if k != "culture"},
            "no column 'culture'; it has 'user', 'prompt',",
        ),
    ],
)
def test_a_bad_row_is_named_with_file_line_field_value_and_rule(tmp_path, row, problem):
    path = _write(tmp_path / "d.jsonl", [PLAIN, row])
    interactions, notes = _read(path)
    assert len(interactions) == 1
    (found,) = notes.problems
    assert found.startswith(f"{path}, line 2: ")
    assert problem in found


@pytest.mark.parametrize(
    ("responses", "scores", "problem"),
    [
        (["x", "y"], [1, None], "scores = null: must be a number"),
        (["x", "y"], [1, "2"], "scores = '2': must be a number"),
        (["x", "y"], [1, float("nan")], "scores = nan: must be finite"),
        (["x", "y"], [1, float("-inf")], "scores = -inf: must be finite"),
        (["x", "y"], [1], "scores = [1.0]: must be one per response, got 1 for 2"),
        (["x", "y"], 1, "scores = 1: must be a list"),
        ("xy", [1, 2], "responses = 'xy': must be a list"),
        (["x", None], [1, 2], "responses = null: must be text or a list"),
    ],
)
def test_bad_scores_and_responses_are_named(tmp_path, responses, scores, problem):
    row = {"culture": "Chile", "user": "u0", "prompt": "p"}
    path = _write(tmp_path / "d.jsonl", [row | {"responses": responses, "scores": scores}])
    (found,) = _problems(path, columns=SCORED)
    assert found.startswith(f"{path}, line 1: {problem}")


def test_scores_in_csv_that_are_no_json_are_named(tmp_path):
    row = {"culture": "C", "user": "u", "prompt": "p", "responses": ["x", "y"], "scores": "good"}
    (found,) = _problems(_write(tmp_path / "d.csv", [row]), columns=SCORED)
    assert (
        found
        == f"{tmp_path / 'd.csv'}, line 2: scores = 'good': must be a list, or one as JSON text"
    )


def test_many_problems_are_counted_and_the_first_shown(tmp_path):
    path = _write(tmp_path / "d.jsonl", [PLAIN | {"culture": None}] * (MAX_PROBLEMS + 5))
    with pytest.raises(InputError) as error:
        load_preferences(_config(path), tmp_path / "cache")
    assert error.value.title == "the data cannot be used: 25 problems"
    assert len(error.value.problems) == MAX_PROBLEMS + 1
    assert error.value.problems[-1] == "(+5 more)"


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.csv"])
def test_an_empty_file_is_named(tmp_path, name):
    path = _write(tmp_path / name, []) if name != "d.csv" else tmp_path / name
    path.touch()
    assert _problems(path) == [f"{path}: the file is empty: it has no rows"]


def test_missing_files_folders_and_unknown_endings_are_named(tmp_path):
    with pytest.raises(InputError) as error:
        open_preferences(_config(tmp_path / "no.jsonl", tmp_path))
    assert error.value.problems == (
        f"data.train_files: {tmp_path / 'no.jsonl'}: no such file",
        f"data.train_files: {tmp_path}: is not a file",
    )
    (tmp_path / "d.xlsx").touch()
    with pytest.raises(InputError, match="d.xlsx: the ending must be one of .jsonl"):
        open_preferences(_config(tmp_path / "d.xlsx"))
    path = _write(tmp_path / "d.jsonl", [PLAIN])
    with pytest.raises(InputError, match="d.jsonl: named twice"):
        open_preferences(_config(path, path))


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.csv.gz"])
@pytest.mark.parametrize("spoil", [lambda b: b[:-9], lambda b: b"plain" + b, lambda b: b[:60]])
def test_a_gzip_cut_short_or_damaged_is_a_problem(tmp_path, name, spoil):
    path = _write(tmp_path / name, [PLAIN | {"user": f"u{n * n}"} for n in range(500)])
    path.write_bytes(spoil(path.read_bytes()))
    _, notes = _read(path)
    assert "gzip file is cut short or damaged" in notes.problems[0]


def test_a_parquet_file_cut_short_is_a_problem(tmp_path):
    path = _write(tmp_path / "d.parquet", [PLAIN])
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a whole Parquet file" in _problems(path)[0]


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.date32()])
def test_a_parquet_value_that_python_has_not_is_a_problem(tmp_path, kind):
    path = tmp_path / "d.parquet"
    far = pa.array([2**62 if kind.bit_width == 64 else 2**30], kind)
    rest = {name: pa.array([text]) for name, text in PLAIN.items()}
    pq.write_table(pa.table(rest | {"user": far}), path)
    assert _problems(path)[0].startswith(f"{path}, row 1: a value cannot be read: ")


def test_a_json_line_that_names_a_field_twice_is_a_problem(tmp_path):
    twice = json.dumps(PLAIN)[:-1] + ', "chosen": "other"}'
    path = _write(tmp_path / "d.jsonl", [twice])
    assert "line 1: not JSON: 'chosen' stands twice in one object" in _problems(path)[0]


@pytest.mark.parametrize("score", [1e31, -1e308, 10**300])
def test_a_score_beyond_32_bits_is_a_problem(tmp_path, score):
    row = {"culture": "C", "user": "u", "prompt": "p", "responses": ["a", "b"]}
    path = _write(tmp_path / "d.jsonl", [row | {"scores": [1, score]}])
    assert "must be at most 1e+30, with either sign" in _problems(path, columns=SCORED)[0]


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.parquet"])
def test_missing_columns_are_named_once_with_those_there_are(tmp_path, name):
    path = _write(tmp_path / name, [PLAIN] * 3)
    where = f"{path}, line 1" if name == "d.jsonl" else path
    (found,) = _problems(path, columns={"culture": "land", "user": "who"})
    has = "it has 'culture', 'user', 'prompt', 'chosen', 'rejected'"
    assert found == (
        f"{where}: no columns 'land', 'who'; {has}; "
        'without users: no columns.user, split.by "question" and columns.question'
    )


def test_a_csv_line_with_too_few_cells_is_named_after_a_text_of_several_lines(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text('culture,user,prompt,chosen,rejected\nC,u,"p\nq",x,y\nC,u,p\n')
    (interaction,), notes = _read(path)
    assert interaction.prompt == "p\nq"
    assert notes.problems == [f"{path}, line 4: 3 cells under 5 column names"]


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv"])
def test_bytes_that_are_not_utf8_are_a_problem(tmp_path, name):
    path = _write(tmp_path / name, [PLAIN | {"prompt": "caf?"}])
    path.write_bytes(path.read_bytes().replace(b"caf?", b"caf\xe9"))
    assert "not UTF-8" in _problems(path)[0]


def test_the_line_of_a_csv_that_is_not_utf8_is_named(tmp_path):
    path = _write(tmp_path / "d.csv", [PLAIN, PLAIN, PLAIN | {"prompt": "caf?"}, PLAIN])
    path.write_bytes(path.read_bytes().replace(b"caf?", b"caf\xe9"))
    assert _problems(path) == [f"{path}, line 4: not UTF-8: invalid continuation byte"]


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv"])
def test_an_encoded_lone_surrogate_is_skipped_and_counted(tmp_path, name):
    path = _write(tmp_path / name, [PLAIN | {"prompt": "caf?"}])
    path.write_bytes(path.read_bytes().replace(b"caf?", b"caf\xed\xa0\x80"))
    interactions, notes = _read(path)
    assert (interactions, notes.num_problems) == ([], 0)
    assert notes.skipped == {("Chile", "prompt not valid Unicode"): 1}


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, name):
    path = _write(tmp_path / name, [PLAIN])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    interactions, notes = _read(path)
    assert (len(interactions), notes.num_problems) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"prompt": " \n"}, ["empty prompt"]),
        ({"chosen": ""}, ["empty response", "fewer than 2 responses"]),
        ({"rejected": "\t"}, ["empty response", "fewer than 2 responses"]),
        ({"prompt": "a \ud800"}, ["prompt not valid Unicode"]),
        ({"prompt": [{"role": "system", "content": "\udfff"}, ASK]}, ["prompt not valid Unicode"]),
        ({"chosen": "b \ud83d"}, ["response not valid Unicode", "fewer than 2 responses"]),
    ],
)
def test_unusable_texts_are_skipped_and_counted_under_their_culture(tmp_path, changes, reasons):
    interactions, notes = _read(_write(tmp_path / "d.jsonl", [PLAIN, PLAIN | changes]))
    assert len(interactions) == 1
    assert not notes.num_problems
    assert notes.skipped == {("Chile", reason): 1 for reason in reasons}


def test_an_empty_response_is_dropped_where_two_others_remain(tmp_path):
    row = {"culture": "Chile", "user": "u0", "prompt": "p"}
    row |= {"responses": ["x", "", "z"], "scores": [1, 2, 3]}
    (interaction,), notes = _read(_write(tmp_path / "d.jsonl", [row]), columns=SCORED)
    assert (interaction.responses, interaction.human_scores) == (("x", "z"), (1.0, 3.0))
    assert notes.skipped == {("Chile", "empty response"): 1}


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.parquet"])
@pytest.mark.parametrize("text", ["a\0b", "x" * 1_000_000, "🙂 ../ß", "[hello]", '[{"not": json'])
def test_odd_but_valid_texts_come_through_unchanged(tmp_path, name, text):
    (interaction,), notes = _read(_write(tmp_path / name, [PLAIN | {"chosen": text}]))
    assert not notes.num_problems
    assert interaction.responses == (text, "bad")


def test_a_hub_data_set_is_read_by_its_splits(tmp_path, monkeypatch):
    # The library loads a folder in a hub data set's layout as it loads the hub's.
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hub").mkdir()
    for side, size in (("train", 3), ("test", 2)):
        _write(tmp_path / "hub" / f"{side}.jsonl", [PLAIN] * size)
    config = PreferencesConfig.model_validate(
        {
            "source": "preferences",
            "hub": str(tmp_path / "hub"),
            "hub_test_split": "test",
            "split": {"by": "source"},
            "columns": {"user": "user"},
        }
    )

    source = open_preferences(config)
    interactions = [interaction for _, interaction in source.read(Notes())]

    assert [i.split for i in interactions] == ["train"] * 3 + ["test"] * 2
    assert interactions[3].interaction_id == "test:1"
    assert interactions[0].responses == ("good", "bad")
    assert source.files and all(file.is_file() for file in source.files)


@pytest.mark.skipif(not BLEND.is_dir(), reason=f"no sample data at {BLEND}")
def test_the_blend_pairs_split_as_labelled(tmp_path):
    config = _config(
        BLEND / "pairs_train.jsonl.gz",
        test_files=[str(BLEND / "pairs_test.jsonl.gz")],
        split={"by": "source"},
        columns={"user": None, "culture": "group", "question": "question_id", "id": "pair_id"},
    )
    data = load_preferences(config, tmp_path)

    # Of its README: 38,676 cross and 13,946 within pairs, 16 groups; Mexico 2515 + 933, 382 + 165.
    assert sum(map(len, data.sides)) == 38_676 + 13_946
    assert len(data.cultures) == 16
    mexico = data.counts["Mexico"]
    assert mexico.train_pairs + mexico.dev_pairs == 2_515 + 933
    assert mexico.test_pairs == 382 + 165
    # Questions are the same in all groups: none is trained on in one and chosen on in another.
    assert not set(data.train.cluster_codes) & set(data.dev.cluster_codes)
    assert mexico.test_users <= 75
    assert mexico.train_test_texts == 0


# Votes

VOTES = {"chosen_votes": "for", "rejected_votes": "against"}
SHARE = {"chosen_share": "agreed"}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_votes_are_the_scores_of_the_two_responses(name, tmp_path):
    rows = [PLAIN | {"for": 4, "against": 1}, PLAIN | {"for": 2, "against": 0, "user": "u1"}]
    config = _config(_write(tmp_path / name, rows), columns=VOTES)

    read = [i for _, i in open_preferences(config).read(Notes())]

    assert [i.human_scores for i in read] == [(4.0, 1.0), (2.0, 0.0)]
    assert config.scores_are_votes
    assert not _config(tmp_path / name).scores_are_votes


@pytest.mark.parametrize(
    ("columns", "values", "problem"),
    [
        (VOTES, {"for": 1, "against": 1}, "for = 1.0: must be more than against, got 1"),
        (VOTES, {"for": 1, "against": -1}, "against = -1.0: must be 0 or more"),
        (VOTES, {"for": "many", "against": 0}, "for = 'many': must be a number"),
        (SHARE, {"agreed": 0.5}, "agreed = 0.5: must be above 0.5 and at most 1"),
        (SHARE, {"agreed": 80}, "agreed = 80.0: must be above 0.5 and at most 1"),
        (SHARE, {"agreed": None}, "agreed = null: must be a number"),
        (SHARE, {"agreed": ""}, "agreed = '': must be a number"),
        (SHARE, {}, "no column 'agreed'; it has"),
    ],
)
def test_votes_and_shares_that_contradict_the_pair_are_told_with_their_row(
    columns, values, problem, tmp_path
):
    config = _config(_write(tmp_path / "rows.jsonl", [PLAIN | values]), columns=columns)
    notes = Notes()

    assert list(open_preferences(config).read(notes)) == []
    assert len(notes.problems) == 1
    assert f"rows.jsonl, line 1: {problem}" in notes.problems[0]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_a_share_is_the_score_of_chosen_and_the_rest_that_of_rejected(name, tmp_path):
    rows = [PLAIN | {"agreed": 0.75}, PLAIN | {"agreed": 1, "user": "u1"}]
    config = _config(_write(tmp_path / name, rows), columns=SHARE)

    read = [i for _, i in open_preferences(config).read(Notes())]

    assert [i.human_scores for i in read] == [(0.75, 0.25), (1.0, 0.0)]
    assert config.scores_are_votes


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_a_share_is_kept_with_its_pair_and_makes_other_data(share, tmp_path):
    rows = [PLAIN | {"agreed": share, "user": f"u{n}", "prompt": f"p{n}"} for n in range(8)]
    whole = [row | {"agreed": 1} for row in rows]
    split = {"test_size": 0.25, "dev_size": 0}

    data, other = (
        load_preferences(_config(_write(folder, given), columns=SHARE, split=split), tmp_path)
        for folder, given in ((tmp_path / "a.jsonl", rows), (tmp_path / "b.jsonl", whole))
    )

    assert data.scores_are_votes
    np.testing.assert_allclose(vote_shares(data.train), share, rtol=1e-6)
    np.testing.assert_array_equal(vote_shares(other.train), 1.0)
    assert data.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("columns", "rule"),
    [
        (SCORED | SHARE, "chosen_share is of chosen and rejected"),
        (VOTES | SHARE, "set either chosen_share or chosen_votes"),
        ({"chosen_votes": "for"}, "chosen_votes and rejected_votes are set together"),
        (SCORED | VOTES, "chosen_votes are of chosen and rejected"),
    ],
)
def test_votes_and_shares_go_with_chosen_and_rejected(columns, rule, tmp_path):
    with pytest.raises(ValueError, match=rule):
        _config(tmp_path / "rows.jsonl", columns=columns)


# A second language

BOTH = {
    "second_language": {"prompt": "prompt_es", "chosen": "chosen_es", "rejected": "rejected_es"}
}
SPANISH = PLAIN | {"prompt_es": "¿p?", "chosen_es": "bueno", "rejected_es": "malo"}


def test_a_second_language_has_the_same_people_and_preferences_in_its_own_columns(tmp_path):
    file = _write(tmp_path / "rows.jsonl", [SPANISH])

    [first], [second] = (
        [i for _, i in open_preferences(config).read(Notes())]
        for config in (
            _config(file, columns=BOTH),
            _config(file, columns=BOTH, language="second"),
        )
    )

    assert (first.prompt, *first.responses) == ("p", "good", "bad")
    assert (second.prompt, *second.responses) == ("¿p?", "bueno", "malo")
    assert (first.culture, first.user, first.human_scores) == (
        *(second.culture, second.user, second.human_scores),
    )


def test_a_second_language_without_columns_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'language "second" needs columns\.second_language'):
        _config(tmp_path / "rows.jsonl", language="second")


def test_a_row_without_the_second_languages_texts_is_told(tmp_path):
    config = _config(_write(tmp_path / "rows.jsonl", [PLAIN]), columns=BOTH, language="second")
    notes = Notes()

    assert list(open_preferences(config).read(notes)) == []
    assert "chosen_es" in notes.problems[0]
