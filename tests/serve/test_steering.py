"""Who would get what: picks of cultures and mixtures, and the page of them."""

import json

import pytest

from scpo_ray.commands.rewards import Where, steer
from scpo_ray.evaluation.mixtures import people_shares
from scpo_ray.evaluation.picks import agreement, loss_to_others, picks_of
from scpo_ray.records import InputError
from scpo_ray.serve.core import CultureRewards
from scpo_ray.serve.items import RewardItem


def test_judges_part_by_what_they_lose_to_each_others_picks():
    values = {"one": [1.0, 0.0, -1.0], "other": [0.0, 0.0, 5.0], "third": [2.0, 2.0, 2.0]}

    assert picks_of(values) == {"one": 0, "other": 2, "third": 0}
    # one loses 2 of its sd 0.8165 to other and nothing to third; other all 5 of its 2.357 to both
    assert loss_to_others(values) == pytest.approx((2 / 0.81650 + 2 * 5 / 2.35702) / 6, rel=1e-4)
    assert loss_to_others({"one": [1.0, 0.0]}) == 0.0


def test_agreement_is_the_share_of_equal_picks():
    picks = [{"a": 0, "b": 0}, {"a": 1, "b": 0}, {"a": 2, "b": 2}, {"a": 0, "b": 1}]

    assert agreement(picks) == {"a": {"a": 1.0, "b": 0.5}, "b": {"a": 0.5, "b": 1.0}}


@pytest.fixture
def where(models):
    named = tuple(f"{culture}={folder}" for culture, folder in models[True].items())
    return Where(named, None, "cpu", "float32", "sqlite:///none.db")


def prompts(folder, rows):
    file = folder / "prompts.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


WORDS = ("kind", "cold", "formal", "bold", "brief", "funny", "modern")
ROWS = [
    {"prompt": f"please tell me about {t}", "responses": [f"<b>{t}</b> is {w}" for w in WORDS]}
    for t in ("food", "art")
]


def test_every_culture_and_mixture_picks_and_the_page_shows_where_they_part(
    tmp_path, where, models
):
    one = CultureRewards.load({c: str(f) for c, f in models[True].items()})
    mix = {"Chile": 0.25, "Mexico": 0.75}

    found, page = steer(
        where,
        prompts(tmp_path, ROWS),
        tmp_path / "steering.html",
        mixes=["Chile=0.25,Mexico=0.75"],
        how="people",
    )

    name = "0.25 Chile + 0.75 Mexico (people)"
    assert found.judges == ["Chile", "Mexico", "New Zealand", name]
    assert found.num_prompts == 2
    raw = {c: [[r.value for r in one.rewards(items(row, c))] for row in ROWS] for c in one.cultures}
    for example in found.examples:
        number = [row["responses"] for row in ROWS].index(example.responses)
        for culture in one.cultures:
            best = raw[culture][number].index(max(raw[culture][number]))
            assert example.picks[culture] == best
        shares = people_shares([raw[c][number] for c in mix], [1.0, 1.0], list(mix.values()))
        assert example.values[name] == pytest.approx(shares, abs=1e-5)
    assert found.num_parted == len(found.examples) > 0
    text = page.read_text()
    assert "<b>food</b>" not in text and "&lt;b&gt;food&lt;/b&gt;" in text
    assert text.count("<article") == len(found.examples)
    assert "http" not in text.replace("http://www.w3.org", "")


def items(row, culture):
    return [RewardItem(text, row["prompt"], culture=culture) for text in row["responses"]]


FAULTS = {
    "one response": ({"prompt": "a", "responses": ["b"]}, "line 1: .*at least 2 responses"),
    "no list": ({"prompt": "a", "response": "b"}, "line 1: .*at least 2 responses"),
    "no prompt": ({"responses": ["a", "b"]}, "line 1: no column 'prompt'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_prompt_at_fault_is_named(tmp_path, where, fault):
    row, said = FAULTS[fault]

    with pytest.raises(InputError, match=said):
        steer(where, prompts(tmp_path, [row]), tmp_path / "a.html", mixes=[], how="linear")
