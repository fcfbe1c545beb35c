"""A file's rewards: every column kept, in parts, gone on with, bad rows named."""

import csv
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import scpo_ray.serve.parts
from scpo_ray.commands.rewards import Where, reward_file
from scpo_ray.records import InputError
from scpo_ray.serve.core import CultureRewards
from scpo_ray.serve.items import RewardItem
from scpo_ray.serve.rewardbench import by_subset, right_share, ties_prompt, ties_score

ROWS = [
    {
        "id": number,
        "prompt": f"please tell me about {topic}",
        "response": f"a {word} answer",
        "culture": culture,
    }
    for number, (topic, word, culture) in enumerate(
        [
            ("food", "kind", "Chile"),
            ("art", "cold", "Mexico"),
            ("work", "bold", "Chile"),
            ("money", "brief", "New Zealand"),
            ("sport", "formal", "Mexico"),
        ]
    )
]


@pytest.fixture(autouse=True)
def parts_of_two_rows(monkeypatch):
    monkeypatch.setattr(scpo_ray.serve.parts, "PART_ROWS", 2)


@pytest.fixture
def where(models):
    named = tuple(f"{culture}={folder}" for culture, folder in models[True].items())
    return Where(named, None, "cpu", "float32", "sqlite:///none.db")


@pytest.fixture
def one(models):
    return CultureRewards.load({c: str(f) for c, f in models[True].items()})


def written(folder, ending, rows):
    file = folder / f"rows{ending}"
    if ending == ".jsonl":
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif ending == ".csv":
        with file.open("w", newline="") as stream:
            table = csv.DictWriter(stream, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def read(file):
    if file.suffix == ".parquet":
        return pq.read_table(file).to_pylist()
    return [json.loads(line) for line in file.read_text().splitlines()]


def ask(where, file, output=None, **asked):
    given = {"cultures": [], "mixes": [], "how": "linear", "form": "rows", "on_ray": None}
    return reward_file(where, file, output, **{**given, **asked})


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("to", [".jsonl", ".parquet"])
def test_every_column_is_kept_and_each_row_has_its_own_cultures_reward(
    tmp_path, where, one, ending, to
):
    file = written(tmp_path, ending, ROWS)

    found = ask(where, file, tmp_path / f"out{to}")

    rows = read(tmp_path / f"out{to}")
    kept = [{name: row[name] for name in ROWS[0]} for row in rows]
    assert kept == [row | {"id": str(row["id"])} if ending == ".csv" else row for row in ROWS]
    items = [RewardItem(row["response"], row["prompt"], culture=row["culture"]) for row in ROWS]
    expected = one.rewards(items)
    for column in ("standardised", "probability"):
        values = [getattr(reward, column) for reward in expected]
        assert [row[column] for row in rows] == pytest.approx(values, abs=1e-4)
    assert [row["reward"] for row in rows] == pytest.approx([e.value for e in expected], abs=1e-5)
    assert [row["truncated"] for row in rows] == [False] * 5
    assert (found.num_rows, found.output) == (5, str(tmp_path / f"out{to}"))
    assert found.columns == ["reward", "standardised", "probability", "truncated"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([file.name, f"out{to}"])


def test_lists_of_responses_for_every_culture_and_mixtures(tmp_path, where, one):
    answers = ["a kind answer", "it is cold"]
    rows = [{"prompt": [{"role": "user", "content": "tell me"}], "responses": answers}]
    file = written(tmp_path, ".jsonl", rows)

    ask(where, file)
    ask(where, file, tmp_path / "mix.jsonl", mixes=["Chile=0.5,Mexico=0.5"], how="worst")

    (row,) = read(tmp_path / "rows.rewards.jsonl")
    (mixed,) = read(tmp_path / "mix.jsonl")
    for culture in one.cultures:
        expected = one.rewards([RewardItem(a, "tell me", culture=culture) for a in answers])
        values = [reward.value for reward in expected]
        assert row[f"reward.{culture}"] == pytest.approx(values, abs=1e-5)
    lowest = [
        min(z) for z in zip(*(row[f"standardised.{c}"] for c in ("Chile", "Mexico")), strict=True)
    ]
    assert mixed["reward.Chile + Mexico (worst)"] == pytest.approx(lowest)
    assert "reward.Chile" not in mixed


def test_a_stopped_call_goes_on_and_another_question_begins_anew(tmp_path, where, monkeypatch):
    file = written(tmp_path, ".jsonl", ROWS)
    ask(where, file, tmp_path / "whole.jsonl")
    scored = []
    real = CultureRewards.rewards

    def stopping(self, items):
        if len(scored) == stop_after:
            raise KeyboardInterrupt
        scored.append(len(items))
        return real(self, items)

    monkeypatch.setattr(CultureRewards, "rewards", stopping)
    stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        ask(where, file, tmp_path / "out.jsonl")
    stop_after = 99
    ask(where, file, tmp_path / "out.jsonl")

    assert scored == [2, 2, 1]
    assert read(tmp_path / "out.jsonl") == read(tmp_path / "whole.jsonl")

    stop_after = 4
    with pytest.raises(KeyboardInterrupt):
        ask(where, file, tmp_path / "other.jsonl")
    stop_after = 99
    ask(where, file, tmp_path / "other.jsonl", cultures=["Chile"])
    assert scored == [2, 2, 1, 2, 2, 2, 1]


GOOD = ROWS[0]
BAD_ROWS = {
    "no prompt": ({"response": "a", "culture": "Chile"}, "no column 'prompt'"),
    "prompt is null": (GOOD | {"prompt": None}, "prompt = null: must be text or a list of"),
    "no response": ({"prompt": "a", "culture": "Chile"}, "no column 'response'"),
    "response is a number": (GOOD | {"response": 3}, "response = 3: must be text"),
    "both": (GOOD | {"responses": ["a"]}, "give response or responses, not both"),
    "none": ({"prompt": "a", "responses": [], "culture": "Chile"}, "at least 1 response"),
    "no list": ({"prompt": "a", "responses": "b", "culture": "Chile"}, "responses = 'b': must"),
    "unknown culture": (GOOD | {"culture": "Chlie"}, "culture = 'Chlie'.*nearest: 'Chile'"),
    "no culture": ({"prompt": "a", "response": "b"}, "no column 'culture'"),
    "half a character": (GOOD | {"response": "\ud800"}, "not UTF-8"),
    "ends with the assistant": (
        GOOD | {"prompt": [{"role": "assistant", "content": "a"}]},
        "must end with a user's message",
    ),
    "a column that is computed": (GOOD | {"reward": 1}, "reward = 1: this column is what is"),
}


@pytest.mark.parametrize("fault", BAD_ROWS)
def test_a_row_at_fault_is_named_before_anything_is_scored(tmp_path, where, fault, monkeypatch):
    row, said = BAD_ROWS[fault]
    file = written(tmp_path, ".jsonl", [GOOD, GOOD, row])
    monkeypatch.setattr(CultureRewards, "rewards", None)

    with pytest.raises(InputError, match=f"1 problem\n.*rows.jsonl, line 3: .*{said}"):
        ask(where, file)
    assert not (tmp_path / "rows.rewards.jsonl").exists()


BAD_FILES = {
    "not there": ("none.jsonl", None, "no such file"),
    "another ending": ("rows.txt", b"", "the ending must be one of .jsonl"),
    "empty": ("rows.jsonl", b"", "the file is empty"),
    "not JSON": ("rows.jsonl", b"{\n", "line 1: not JSON"),
    "not UTF-8": ("rows.jsonl", b'{"prompt": "\xff"}\n', "line 1: not UTF-8"),
    "no Parquet": ("rows.parquet", b"PAR1", "not a whole Parquet file"),
    "no CSV": ("rows.csv", b"prompt,response\na\n", "1 cells under 2 column names"),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_file_at_fault_is_named(tmp_path, where, fault):
    name, content, said = BAD_FILES[fault]
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(InputError, match=said):
        ask(where, tmp_path / name)


BAD_ASKS = {
    "output there": ({"output": "rows.jsonl"}, "exists; name a new file"),
    "output of another kind": ({"output": "out.csv"}, "the ending must be one of .jsonl, .parq"),
    "unknown culture": ({"cultures": ["Peru"]}, "--culture = 'Peru': no such culture; nearest"),
    "no weight": ({"mixes": ["Chile"]}, "--mix Chile: 'Chile' is no weight, as in"),
    "weight twice": ({"mixes": ["Chile=0.5,Chile=0.5"]}, "Chile twice"),
    "another sum": ({"mixes": ["Chile=0.5"]}, "weights must sum to 1, got 0.5"),
    "unknown way": ({"how": "mean"}, "--how mean: must be one of linear, people, worst"),
    "unknown format": ({"form": "csv"}, "--format csv: must be one of rows, rewardbench2"),
}


@pytest.mark.parametrize("fault", BAD_ASKS)
def test_a_question_at_fault_is_named(tmp_path, where, fault):
    asked, said = BAD_ASKS[fault]
    file = written(tmp_path, ".jsonl", ROWS)
    output = tmp_path / asked.get("output", "out.jsonl")

    with pytest.raises(InputError, match=said):
        ask(where, file, **{**asked, "output": output})


@pytest.mark.parametrize(
    "named, said",
    [
        (["runs/chile"], "runs/chile: must be CULTURE=MODEL, as in"),
        (["Chile=a", " Chile =b"], "a second model for Chile"),
    ],
)
def test_a_model_is_named_by_its_culture(named, said):
    with pytest.raises(InputError, match=said):
        Where(tuple(named), None, None, "float32", "").by_culture  # noqa: B018


def test_several_models_of_a_culture_give_their_mean_and_its_interval(tmp_path, models):
    chile, mexico = (str(models[True][culture]) for culture in ("Chile", "Mexico"))
    where = Where((f"Chile={chile},{mexico}",), None, "cpu", "float32", "sqlite:///none.db")

    found = ask(where, written(tmp_path, ".jsonl", ROWS), cultures=["Chile"])

    core = CultureRewards.load({"Chile": [chile, mexico]}, device="cpu")
    items = [RewardItem(row["response"], row["prompt"]) for row in ROWS]
    assert found.columns[-2:] == ["low.Chile", "high.Chile"]
    for row, reward in zip(read(tmp_path / "rows.rewards.jsonl"), core.rewards(items), strict=True):
        values = [row[f"{name}.Chile"] for name in ("reward", "low", "high")]
        assert values == pytest.approx([reward.value, reward.low, reward.high], abs=1e-4)
        assert values[1] < values[0] < values[2]


def test_rewardbench_rows_gain_scores_and_whether_the_best_is_right(tmp_path, where, one):
    rows = [
        {
            "id": str(number),
            "prompt": "please tell me about food",
            "chosen": ["a kind answer"],
            "rejected": ["a cold one", "it is bold"],
            "num_correct": 1,
            "total_completions": 3,
            "subset": subset,
        }
        for number, subset in enumerate(["Focus", "Focus", "Math"])
    ]
    file = written(tmp_path, ".jsonl", rows)

    found = ask(where, file, form="rewardbench2", cultures=["Chile"])

    first, *_ = read(tmp_path / "rows.rewards.jsonl")
    answers = ["a kind answer", "a cold one", "it is bold"]
    items = [RewardItem(a, rows[0]["prompt"], culture="Chile") for a in answers]
    scores = [reward.value for reward in one.rewards(items)]
    assert first == {
        **rows[0],
        "score.Chile": pytest.approx(scores, abs=1e-5),
        "right.Chile": float(scores[0] == max(scores)),
    }
    share = first["right.Chile"]
    assert found.subsets == {"right.Chile": {"Focus": (share, 2), "Math": (share, 1)}}


def test_of_several_best_completions_the_share_of_right_ones_counts():
    assert right_share([3.0, 1.0, 2.0], 1) == 1.0
    assert right_share([1.0, 3.0, 2.0], 1) == 0.0
    assert right_share([3.0, 3.0, 3.0, 0.0], 2) == pytest.approx(2 / 3)
    assert by_subset([("a", 1.0), ("b", 0.0), ("a", 0.0)]) == {"a": (0.5, 2), "b": (0.0, 1)}
    with pytest.raises(ValueError, match="num_correct = 2: must be 1 to 1"):
        right_share([1.0, 2.0], 2)


def test_ties_are_scored_by_the_benchmarks_own_rule():
    prompts = [
        ties_prompt("tied:1", [5.0, 4.0, 1.0], 2),  # Right ones differ by 1, wrong is 3 below.
        ties_prompt("ref:1", [2.0, 1.5], 1),  # Wrong is 0.5 below: less than right ones differ.
        ties_prompt("tied:2", [3.0, 1.0, 2.0], 2),  # A wrong one between the right ones.
        ties_prompt("ref:2", [1.0, 0.0, -1.0], 1),
    ]

    # Tied 1 of 2 right, ref 2 of 2; by more than right ones differ 1 of 2, in both prompts 0;
    # 0.5 / 1 - 1 and -1 / 2 - 1.
    times = (math.tanh(-0.5) + math.tanh(-1.5)) / 2
    expected = 0.3 * 0.5 + 0.3 * 1 + 0.2 * 0.5 + 0.2 * 0 + 0.01 * times
    assert ties_score(prompts) == pytest.approx(expected)
    same = [ties_prompt("tied:1", [1.0, 1.0, 0.0], 2), ties_prompt("ref:1", [1.0, 0.0], 1)]
    assert ties_score(same) == pytest.approx(1.01)
    assert math.isnan(ties_score(prompts[:1] + prompts[3:]))


BAD_TIES = {
    "no pair's id": ({"id": "7"}, "id = '7': must be as in ref:3 or tied:3"),
    "no number": ({"id": "tied:"}, "id = 'tied:': must be as in"),
    "one right": ({"id": "tied:1"}, "num_correct = 1: must be more than 1 where the id is tied:"),
    "two right": ({"id": "ref:1", "num_correct": 2}, "num_correct = 2: must be 1 where the id is"),
}


@pytest.mark.parametrize("fault", BAD_TIES)
def test_a_row_of_the_subset_ties_at_fault_is_named(tmp_path, where, fault):
    changed, said = BAD_TIES[fault]
    row = {
        "prompt": "please tell me about food",
        "chosen": ["a kind answer"],
        "rejected": ["a cold one", "it is bold"],
        "num_correct": 1,
        "subset": "Ties",
    }

    with pytest.raises(InputError, match=said):
        ask(where, written(tmp_path, ".jsonl", [row | changed]), form="rewardbench2")


def test_a_file_with_ties_says_the_subsets_score(tmp_path, where):
    rows = [
        {
            "id": f"{kind}:{number}",
            "prompt": "please tell me about food",
            "chosen": ["a kind answer", "a warm answer"][:num_correct],
            "rejected": ["a cold one"],
            "num_correct": num_correct,
            "subset": "Ties",
        }
        for number in range(2)
        for kind, num_correct in (("ref", 1), ("tied", 2))
    ]

    found = ask(where, written(tmp_path, ".jsonl", rows), form="rewardbench2", cultures=["Chile"])

    scored = read(tmp_path / "rows.rewards.jsonl")
    prompts = [ties_prompt(r["id"], r["score.Chile"], r["num_correct"]) for r in scored]
    assert found.subsets == {"right.Chile": {"Ties": (pytest.approx(ties_score(prompts)), 4)}}
