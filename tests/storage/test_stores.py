"""Tokens, scores and weights are kept by text and by content, and computed once."""

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.records import InputError, Tokens
from scpo_ray.storage.disk import LEFT_BEHIND_S
from scpo_ray.storage.stores import ScoreStore, TokenStore, WeightStore
from tests.storage.test_disk import child, everything_below


def hashes_of(texts) -> np.ndarray:
    """A hash for each number, in no order."""
    return np.array([(int(t) + 1) * 0x9E3779B97F4A7C15 % 2**64 for t in texts], np.uint64)


# Tokens


class Renderer:
    """Text t has t % 5 tokens, all of them t; it notes which texts it was asked for."""

    def __init__(self, texts, *, types: bool = False) -> None:
        self.texts = np.array(texts, np.int64)
        self.types = types
        self.rendered: list[int] = []

    def __call__(self, groups) -> Iterator[Tokens]:
        return map(self.encode, groups)

    def encode(self, ids: np.ndarray) -> Tokens:
        texts = self.texts[ids]
        self.rendered += texts.tolist()
        input_ids = np.repeat(texts, texts % 5).astype(np.int32)
        return Tokens(
            input_ids=input_ids,
            token_type_ids=(input_ids % 2).astype(np.int8) if self.types else None,
            offsets=np.concatenate([[0], np.cumsum(texts % 5)]),
            truncated=texts % 5 > 3,
        )

    def into(self, store: TokenStore, key: str = "key") -> Tokens:
        return store.get_or_encode(key, hashes_of(self.texts), self)


def name_of(texts) -> str:
    """Of a list of texts."""
    return hashlib.sha256(hashes_of(texts).tobytes()).hexdigest()[:32]


def assert_tokens_of(found: Tokens, renderer: Renderer) -> None:
    expected = Renderer(renderer.texts, types=renderer.types).encode(np.arange(len(renderer.texts)))
    np.testing.assert_array_equal(found.input_ids, expected.input_ids)
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    np.testing.assert_array_equal(found.truncated, expected.truncated)
    assert found.input_ids.dtype == np.int32
    if renderer.types and len(expected.input_ids):
        np.testing.assert_array_equal(found.token_type_ids, expected.token_type_ids)
    else:
        assert found.token_type_ids is None


lists = st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True)


@settings(max_examples=30)
@given(asked=st.lists(lists, min_size=1, max_size=5), types=st.booleans(), chunk=st.integers(1, 9))
def test_any_list_of_texts_gets_its_tokens_and_none_is_rendered_twice(
    tmp_path_factory, asked, types, chunk
):
    store = TokenStore(tmp_path_factory.mktemp("tokens"))
    rendered = []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scpo_ray.storage.stores._TEXTS_PER_CHUNK", chunk)
        for texts in asked:
            renderer = Renderer(texts, types=types)
            assert_tokens_of(renderer.into(store), renderer)
            assert_tokens_of(renderer.into(store), renderer)
            rendered += renderer.rendered

    assert sorted(rendered) == sorted({text for texts in asked for text in texts})


def test_tokens_of_another_renderer_are_none(tmp_path):
    store = TokenStore(tmp_path)
    Renderer([3, 4]).into(store, "one")
    other = Renderer([3, 4])

    other.into(store, "other")

    assert other.rendered == [3, 4]


def test_tokens_are_mapped_and_not_read(tmp_path):
    found = Renderer([3, 4], types=True).into(TokenStore(tmp_path))

    assert isinstance(found.input_ids, np.memmap)
    assert isinstance(found.token_type_ids, np.memmap)


def test_a_failing_renderer_leaves_no_tokens(tmp_path):
    def encode(ids):
        raise RuntimeError("the tokenizer failed")

    with pytest.raises(RuntimeError, match="the tokenizer failed"):
        TokenStore(tmp_path).get_or_encode("key", hashes_of([1]), encode)

    assert everything_below(tmp_path) == []


def test_of_two_processes_that_render_the_same_texts_one_waits_for_the_other(tmp_path):
    code = """
from pathlib import Path
from scpo_ray.storage.stores import TokenStore
from tests.storage.test_stores import Renderer, hashes_of
renderer = Renderer([3, 4, 6])
def encode(groups):
    ready()
    time.sleep(0.5)
    return renderer(groups)
TokenStore(Path(sys.argv[1])).get_or_encode("key", hashes_of([3, 4, 6]), encode)
"""
    second = Renderer([3, 4, 6])

    with child(code, tmp_path):
        found = second.into(TokenStore(tmp_path))

    assert_tokens_of(found, second)
    assert second.rendered == []


@pytest.fixture
def parts_of_four(monkeypatch):
    monkeypatch.setattr("scpo_ray.storage.stores._TEXTS_PER_PART", 4)
    monkeypatch.setattr("scpo_ray.storage.stores._TEXTS_PER_CHUNK", 3)


STOPPED = """
from pathlib import Path
import scpo_ray.storage.stores as stores
from tests.storage.test_stores import Renderer, hashes_of
stores._TEXTS_PER_PART, stores._TEXTS_PER_CHUNK = 4, 3
renderer = Renderer(range(22), types=True)
def encode(groups):
    for number, group in enumerate(groups):
        if number == 5:
            ready()
            time.sleep(600)
        yield renderer.encode(group)
stores.TokenStore(Path(sys.argv[1])).get_or_encode("key", hashes_of(range(22)), encode)
"""


def test_after_a_kill_rendering_goes_on_from_the_parts_that_are_done(tmp_path, parts_of_four):
    whole, rest = Renderer(range(22), types=True), Renderer(range(22), types=True)
    whole.into(TokenStore(tmp_path / "whole"))

    with child(STOPPED, tmp_path / "stopped"):
        pass
    found = rest.into(TokenStore(tmp_path / "stopped"))

    assert rest.rendered == list(range(8, 22))
    assert_tokens_of(found, whole)
    names = everything_below(tmp_path / "whole")
    assert everything_below(tmp_path / "stopped") == names
    for name in names:
        there = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "stopped" / name).read_bytes() == there


def test_a_damaged_part_is_rendered_again_and_said(tmp_path, parts_of_four, caplog):
    rest = Renderer(range(22), types=True)
    with child(STOPPED, tmp_path):
        pass
    [part] = {path.parent for path in tmp_path.rglob(f".*.parts/{name_of(range(4, 8))}/*")}
    (part / "input_ids.bin").write_bytes(b"something else")

    found = rest.into(TokenStore(tmp_path))

    assert rest.rendered == list(range(4, 22))
    assert_tokens_of(found, rest)
    assert f"tokens in {part} are damaged" in caplog.text


def test_parts_of_other_lists_go_when_nobody_went_on_with_them_for_long(tmp_path):
    for name, age_s in (("recent", 60.0), ("old", 2 * LEFT_BEHIND_S)):
        parts = tmp_path / "key" / f".{name}.parts"
        parts.mkdir(parents=True)
        os.utime(parts, times=(time.time() - age_s,) * 2)

    Renderer([1, 2]).into(TokenStore(tmp_path))

    assert [path.name for path in tmp_path.rglob("*.parts")] == [".recent.parts"]


# Scores


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("scpo_ray.storage.stores._TEXTS_PER_PART", 40)


def rewards_of(texts, shape: tuple[int, ...] = ()) -> np.ndarray:
    """What the texts deserve: their numbers."""
    numbers = np.array(texts, np.float32).reshape(-1, *[1 for _ in shape])
    return np.broadcast_to(numbers, (len(texts), *shape)) + np.arange(
        *(shape or (1,)), dtype=np.float32
    ).reshape(shape or ())


def complete(store: ScoreStore, texts, shape: tuple[int, ...] = ()) -> list[int]:
    """Scores what is missing; which texts that were."""
    hashes, computed = hashes_of(texts), []
    for ids in store.missing("key", hashes):
        mine = [texts[i] for i in ids]
        store.put("key", hashes[ids], rewards_of(mine, shape))
        computed += mine
    return computed


def parts_of(store: ScoreStore) -> list[Path]:
    return sorted(store.path("key").glob("part-*"))


@pytest.mark.parametrize("number", [0, 1, 39, 40, 41, 100])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_scores_are_read_back_for_the_same_texts(tmp_path, small_parts, number, shape):
    store, texts = ScoreStore(tmp_path), list(range(number))

    assert complete(store, texts, shape) == texts

    assert store.missing("key", hashes_of(texts)) == []
    assert len(parts_of(store)) == -(-number // 40)
    found = store.get("key", hashes_of(texts))
    assert found.dtype == np.float32
    if number:
        np.testing.assert_array_equal(found, rewards_of(texts, shape))
    assert len(store.missing("other", hashes_of(texts))) == -(-number // 40)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_rows_left_on_the_disk_are_read_in_any_order_from_any_part(tmp_path, small_parts, shape):
    store, texts = ScoreStore(tmp_path), list(range(100))
    complete(store, texts, shape)

    rows = store.mapped("key", hashes_of(texts))

    assert (len(rows), rows.shape) == (100, (100, *shape))
    assert len(rows.parts) == 3 and all(part.base is not None for part in rows.parts)
    for asked in ([99, 0, 41, 40, 0], []):
        found = rows[np.array(asked, dtype=np.int64)]
        np.testing.assert_array_equal(found, rewards_of(asked, shape).reshape(-1, *shape))
    with pytest.raises(InputError, match="1 of 101 texts cannot be read"):
        store.mapped("key", hashes_of([*texts, 1_000]))


@settings(max_examples=30)
@given(asked=st.lists(lists, min_size=1, max_size=5))
def test_any_list_of_texts_gets_its_scores_and_none_is_computed_twice(tmp_path_factory, asked):
    store, computed = ScoreStore(tmp_path_factory.mktemp("scores")), []

    for texts in asked:
        computed += complete(store, texts)
        found = store.get("key", hashes_of(texts))
        np.testing.assert_array_equal(found, rewards_of(texts))

    assert sorted(computed) == sorted({text for texts in asked for text in texts})


def test_a_stopped_scoring_lacks_only_the_parts_that_it_did_not_reach(tmp_path, small_parts):
    store, texts = ScoreStore(tmp_path), list(range(100))
    hashes = hashes_of(texts)
    first, second, third = store.missing("key", hashes)
    store.put("key", hashes[second], rewards_of(second))

    again = store.missing("key", hashes)

    # The same portions, and so the same batches: the same bits.
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate([first, third]))
    assert [len(ids) for ids in again] == [40, 20]
    with pytest.raises(InputError, match="key: 60 of 100 texts cannot be read"):
        store.get("key", hashes)


def test_of_two_that_score_a_text_at_once_the_first_is_believed(tmp_path):
    store, texts = ScoreStore(tmp_path), [1, 2, 3]
    hashes = hashes_of(texts)
    assert len(store.missing("key", hashes)) == 1  # both find them missing

    store.put("key", hashes[:2], np.array([0.1, 0.2], np.float32))
    store.put("key", hashes, np.array([7.0, 7.0, 0.3], np.float32))
    store.put("key", hashes, np.array([8.0, 8.0, 8.0], np.float32))

    expected = np.array([0.1, 0.2, 0.3], np.float32)
    np.testing.assert_array_equal(store.get("key", hashes), expected)
    assert len(parts_of(store)) == 2


@pytest.mark.slow
def test_four_processes_that_fill_one_store_leave_each_text_once(tmp_path):
    code = """
import numpy as np
from pathlib import Path
from scpo_ray.storage.stores import ScoreStore
from tests.storage.test_stores import hashes_of
store, number = ScoreStore(Path(sys.argv[1])), int(sys.argv[2])
ready()
for start in range(0, 60, 4):
    hashes = hashes_of(range(start, start + 8))
    store.put("key", hashes, np.full(8, number, np.float32))
"""
    with child(code, tmp_path, "0") as a, child(code, tmp_path, "1") as b:
        with child(code, tmp_path, "2") as c, child(code, tmp_path, "3") as d:
            assert [process.wait() for process in (a, b, c, d)] == [0, 0, 0, 0]

    store = ScoreStore(tmp_path)
    stored = np.concatenate([np.load(part / "hashes.npy") for part in parts_of(store)])
    assert sorted(stored.tolist()) == sorted(hashes_of(range(64)).tolist())
    assert set(store.get("key", hashes_of(range(64)))) <= {0.0, 1.0, 2.0, 3.0}


# Weights


def test_weights_are_learned_once(tmp_path):
    store, learned = WeightStore(tmp_path), []

    def learn():
        learned.append(1)
        return {"a": np.arange(3, dtype=np.float32)}

    for _ in range(2):
        np.testing.assert_array_equal(store.get_or_learn("key", learn)["a"], [0, 1, 2])

    assert learned == [1]
