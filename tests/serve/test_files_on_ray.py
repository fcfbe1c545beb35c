"""A file's rewards by Ray Data: by the number of rows, and the same output as without it."""

import json

import pytest

import scpo_ray.commands.rewards
import scpo_ray.serve.parts
from scpo_ray.commands.rewards import Where, reward_file

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


def test_beyond_a_number_of_rows_ray_writes_the_same_rows_in_their_order(
    tmp_path, models, monkeypatch
):
    import ray

    for module in (scpo_ray.serve.parts, scpo_ray.commands.rewards):
        monkeypatch.setattr(module, "PART_ROWS", 2)
    file = tmp_path / "rows.jsonl"
    rows = [
        {"id": number, "prompt": f"please tell me about {topic}", "response": "a kind answer"}
        for number, topic in enumerate(["food", "art", "work", "money", "sport", "music", "home"])
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    named = tuple(f"{culture}={folder}" for culture, folder in models[True].items())

    def scored(name):
        where = Where(named, None, "cpu", "float32", "sqlite:///none.db")
        asked = {"cultures": [], "mixes": [], "how": "linear", "form": "rows", "on_ray": None}
        reward_file(where, file, tmp_path / name, **asked)
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    here = scored("here.jsonl")
    assert not ray.is_initialized()
    monkeypatch.setattr(scpo_ray.commands.rewards, "RAY_ROWS", 7)
    try:
        there = scored("there.jsonl")
        assert ray.is_initialized()
    finally:
        ray.shutdown()

    assert [row["id"] for row in there] == list(range(7))
    assert [list(row) for row in there] == [list(row) for row in here]
    for one, other in zip(here, there, strict=True):
        numbers = {name: value for name, value in one.items() if isinstance(value, float)}
        assert len(numbers) == 9
        assert {name: other[name] for name in numbers} == pytest.approx(numbers, abs=1e-5)
