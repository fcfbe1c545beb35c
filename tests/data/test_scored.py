"""Two files of anybody's scores: what is paired, what is left out, what is refused."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scpo_ray.commands.evaluating import compare_scores
from scpo_ray.data.scored import read_scored_pairs
from scpo_ray.records import InputError

ROW = {"prompt": "p", "responses": ["a", "bb", "c"], "scores": [0.5, 2, 1]}
PEOPLE = ROW | {"human_scores": [1, 3, 3], "culture": "Chile", "user": "u0"}


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(
                {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
                for row in rows
            )
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_models_scores_are_found_by_prompt_and_response_in_any_order(ending, tmp_path):
    first = write(tmp_path / f"a.{ending}", [PEOPLE, PEOPLE | {"user": "u1", "culture": "Perú"}])
    other = {"prompt": "p", "responses": ["c", "bb", "a"], "scores": [30, 20, 10.0]}
    second = write(tmp_path / f"b.{ending}", [other])

    found = read_scored_pairs(first, second)

    assert found.scores.tolist() == [0.5, 2, 1] * 2
    assert found.other_scores.tolist() == [10, 20, 30] * 2
    assert found.lengths.tolist() == [1, 2, 1] * 2
    assert found.pairs.cultures == ("Chile", "Perú")
    # "bb" and "c" tie, and both are preferred to "a".
    assert found.pairs.chosen.tolist() == [1, 2, 4, 5]
    assert found.pairs.rejected.tolist() == [0, 0, 3, 3]
    assert found.pairs.cluster_codes.tolist() == [0, 0, 1, 1]
    assert found.left_out == {}


@pytest.mark.parametrize("offset", [1e8, 1e12, -1e12])
def test_what_is_added_to_all_of_a_models_scores_changes_no_outcome(offset, tmp_path):
    rows = [
        PEOPLE | {"prompt": f"p{n}", "scores": [0.5, 0.625, 0.75], "user": f"u{n}"}
        for n in range(4)
    ]
    moved = [row | {"scores": [score + offset for score in row["scores"]]} for row in rows]
    first, far = write(tmp_path / "a.jsonl", rows), write(tmp_path / "far.jsonl", moved)

    found = compare_scores(far, first)

    assert found.evaluation["Chile"].after["all"].value == 1
    assert found.macro["all"].value == 0
    assert found.best_of_n["Chile"].regret["model"].value == 0


def test_people_may_stand_in_the_second_file_and_what_one_model_lacks_is_counted(tmp_path):
    first = write(tmp_path / "a.jsonl", [ROW])
    more = PEOPLE | {"prompt": "q", "user": "u1"}
    nobody = ROW | {"prompt": "r"}
    second = write(tmp_path / "b.jsonl", [PEOPLE, more, nobody])

    found = read_scored_pairs(first, second)

    assert len(found.pairs) == 2
    assert found.left_out == {
        "a response is scored in one file alone": 1,
        "without human_scores": 1,
    }


def test_a_culture_may_have_its_own_scores(tmp_path):
    peru = PEOPLE | {"culture": "Perú", "scores": [9, 8, 7]}
    first = write(tmp_path / "a.jsonl", [PEOPLE, peru])

    found = read_scored_pairs(first, write(tmp_path / "b.jsonl", [ROW]))

    assert found.scores.tolist() == [0.5, 2, 1, 9, 8, 7]
    assert found.other_scores.tolist() == [0.5, 2, 1] * 2


def test_without_users_questions_are_clusters_and_without_either_prompts(tmp_path):
    row = {k: v for k, v in PEOPLE.items() if k not in ("user", "culture")}
    rows = [row, row | {"question": "q"}, row | {"question": "q"}, row, row | {"prompt": "other"}]
    first = write(tmp_path / "a.jsonl", rows)

    found = read_scored_pairs(first, first)

    assert found.pairs.cultures == ("all",)
    assert found.pairs.cluster_codes[::2].tolist() == [0, 1, 1, 0, 2]
    assert found.clusters == ("prompts", "questions")
    np.testing.assert_array_equal(found.scores, found.other_scores)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "p", "responses": ["a", "b"]}, "no column"),
        (ROW | {"responses": ["a"]}, "must be two texts or more"),
        (ROW | {"responses": ["a", "a", "b"]}, "must differ from each other"),
        (ROW | {"scores": [1, 2]}, "must be one per response, got 2 for 3"),
        (ROW | {"scores": [1, 2, None]}, "must be a number"),
        (ROW | {"scores": "many"}, "must be a list, or one as JSON text"),
        (ROW | {"human_scores": [1]}, "must be one per response, got 1 for 3"),
        (ROW | {"culture": 1.5, "human_scores": [1, 2, 3]}, "must be text, not blank"),
        (ROW | {"prompt": 3}, "prompt = 3"),
    ],
)
def test_a_bad_row_is_told_with_its_line(row, problem, tmp_path):
    first = write(tmp_path / "a.jsonl", [PEOPLE, row])

    with pytest.raises(InputError) as refused:
        read_scored_pairs(first, write(tmp_path / "b.jsonl", [ROW]))

    assert "a.jsonl, line 2: " in str(refused.value)
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([ROW], "nobody says what is preferred"),
        ([PEOPLE, ROW | {"culture": "Chile", "scores": [0, 0, 0]}], "a response has two scores"),
        ([PEOPLE | {"human_scores": [1, 1, 1]}], "all its human scores are equal, .* 1 rows"),
        (
            [PEOPLE | {"human_scores": [1 + 1e-9, 1, 1]}],
            "all its human scores are equal, .* 1 rows",
        ),
        ([PEOPLE | {"prompt": "q"}], "a response is scored in one file alone: 1 rows"),
        ([PEOPLE | {"responses": ["a", "bb", "C"]}], "is scored in one file alone: 1 rows"),
        (
            [PEOPLE | {"prompt": [{"role": "user", "content": "p"}]}],
            "its prompt is text in one file and chat messages .* in the other: 1 rows",
        ),
    ],
)
def test_what_cannot_be_compared_says_why(rows, problem, tmp_path):
    first = write(tmp_path / "a.jsonl", rows)

    with pytest.raises(InputError, match=problem):
        read_scored_pairs(first, write(tmp_path / "b.jsonl", [ROW]))


@pytest.mark.parametrize(
    ("mine", "others", "reason"),
    [
        ("Perú", ["PERÚ"], "scored for Perú in one file, for PERÚ in the other: 1 rows"),
        (None, ["Chile"], "scored for no culture in one file, for Chile in the other: 1 rows"),
        ("A", list("BCDEF"), "scored for A in one file, for B, C, D and 2 more in the other"),
    ],
)
def test_cultures_that_are_named_otherwise_are_told(mine, others, reason, tmp_path):
    first = write(tmp_path / "a.jsonl", [PEOPLE | {"culture": mine}])
    second = write(tmp_path / "b.jsonl", [ROW | {"culture": name} for name in others])

    with pytest.raises(InputError, match=reason):
        read_scored_pairs(first, second)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere.jsonl"):
        read_scored_pairs(tmp_path / "nowhere.jsonl", write(tmp_path / "b.jsonl", [ROW]))
