import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.records import InputError, Tokens
from scpo_ray.storage.disk import folder_fault, whole_file, whole_folder, write_json
from scpo_ray.storage.stores import ScoreStore, TokenStore

REPOSITORY = Path(__file__).resolve().parents[2]


def everything_below(folder: Path) -> list[str]:
    """Files below `folder`; locks are no content."""
    files = (p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock"))
    return sorted(str(p.relative_to(folder)) for p in files)


@contextmanager
def child(code: str, *arguments: Path | str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that has come to its line `ready()`."""
    start = "import sys, time\ndef ready(): print('ready', flush=True)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", start + code, *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def tokens(*lengths: int, types: bool = False) -> Tokens:
    total = sum(lengths)
    return Tokens(
        input_ids=np.arange(total, dtype=np.int32),
        token_type_ids=np.arange(total, dtype=np.int8) % 2 if types else None,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        truncated=np.array([length > 3 for length in lengths]),
    )


def scores(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**63, count).astype(np.uint64)
    return hashes, rng.normal(size=count).astype(np.float32)


# Whole files and folders


def test_a_whole_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "new" / "a.txt"

    with whole_file(path) as part:
        part.write_text("content")
        assert not path.exists()

    assert path.read_text() == "content"
    assert everything_below(tmp_path) == ["new/a.txt"]


def test_an_exception_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    with pytest.raises(RuntimeError), whole_file(path) as part:
        part.write_text("half")
        raise RuntimeError

    assert path.read_text() == "old"
    assert everything_below(tmp_path) == ["a.txt"]


def test_an_exception_leaves_no_file_where_there_was_none(tmp_path):
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.txt") as part:
        part.write_text("half")
        raise RuntimeError

    assert everything_below(tmp_path) == []


def test_a_whole_folder_replaces_the_older_one_and_carries_its_manifest(tmp_path):
    path = tmp_path / "f"
    for name in ("old", "new"):
        with whole_folder(path) as part:
            (part / "below").mkdir()
            (part / "below" / name).write_text(name)

    assert everything_below(tmp_path) == ["f/below/new", "f/manifest.json"]
    assert folder_fault(path) is None


def test_an_exception_leaves_the_old_folder_and_no_rest(tmp_path):
    path = tmp_path / "f"
    with whole_folder(path) as part:
        (part / "a").write_text("old")

    with pytest.raises(RuntimeError), whole_folder(path) as part:
        (part / "a").write_text("half")
        raise RuntimeError

    assert (path / "a").read_text() == "old"
    assert everything_below(tmp_path) == ["f/a", "f/manifest.json"]


def test_a_killed_process_leaves_the_old_content_or_nothing(tmp_path):
    (tmp_path / "old.txt").write_text("old")
    with whole_folder(tmp_path / "old") as part:
        (part / "a").write_text("old")
    code = """
from pathlib import Path
from scpo_ray.storage.disk import whole_file, whole_folder
root = Path(sys.argv[1])
with (
    whole_file(root / "old.txt") as a, whole_file(root / "new.txt") as b,
    whole_folder(root / "old") as c, whole_folder(root / "new") as d,
):
    for half in (a, b, c / "a", d / "a"):
        half.write_text("half")
    ready()
    time.sleep(60)
"""
    with child(code, tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()

    assert (tmp_path / "old.txt").read_text() == "old"
    assert (tmp_path / "old" / "a").read_text() == "old"
    assert folder_fault(tmp_path / "old") is None
    assert not (tmp_path / "new.txt").exists()
    assert not (tmp_path / "new").exists()

    # The next writer of the folder finds the rest and removes it.
    with whole_folder(tmp_path / "new") as part:
        (part / "b").write_text("whole")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["b", "manifest.json"]


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda f: (f / "a").unlink(), "a is missing"),
        (lambda f: (f / "a").write_text("conten"), "a is not what was written"),
        (lambda f: (f / "a").write_text("cOntent"), "a is not what was written"),
        (lambda f: (f / "manifest.json").unlink(), "its manifest is missing or unreadable"),
        (lambda f: (f / "manifest.json").write_text('{"a"'), "its manifest is missing or unread"),
    ],
)
def test_a_damaged_folder_is_known_by_its_manifest(tmp_path, damage, fault):
    with whole_folder(tmp_path / "f") as part:
        (part / "a").write_text("content")

    damage(tmp_path / "f")

    assert str(folder_fault(tmp_path / "f")).startswith(fault)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_number_and_keeps_the_old_file(tmp_path, value):
    write_json(tmp_path / "a.json", {"x": 1})

    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": value})

    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


# Tokens


@settings(max_examples=30)
@given(
    chunks=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=3),
    types=st.booleans(),
)
def test_tokens_come_back_as_the_chunks_one_after_the_other(tmp_path_factory, chunks, types):
    store = TokenStore(tmp_path_factory.mktemp("tokens"))
    given_chunks = [tokens(*lengths, types=types) for lengths in chunks]

    stored = store.put("key", iter(given_chunks))

    for found in (stored, store.get("key")):
        assert found is not None
        np.testing.assert_array_equal(
            found.input_ids, np.concatenate([c.input_ids for c in given_chunks])
        )
        np.testing.assert_array_equal(found.lengths, np.concatenate(chunks))
        np.testing.assert_array_equal(
            found.truncated, np.concatenate([c.truncated for c in given_chunks])
        )
        if types and found.offsets[-1]:
            np.testing.assert_array_equal(
                found.token_type_ids, np.concatenate([c.token_type_ids for c in given_chunks])
            )
        else:
            assert found.token_type_ids is None


def test_tokens_under_another_key_are_none(tmp_path):
    store = TokenStore(tmp_path)
    store.put("one", iter([tokens(2, 3)]))

    assert store.get("other") is None


@pytest.mark.parametrize(
    ("file", "size"),
    [("input_ids.bin", 8), ("token_type_ids.bin", 3), ("offsets.npy", 20), ("truncated.npy", 0)],
)
def test_damaged_tokens_are_rendered_again_and_said_so(tmp_path, caplog, file, size):
    store = TokenStore(tmp_path)
    store.put("key", iter([tokens(2, 3, types=True)]))

    os.truncate(tmp_path / "key" / file, size)

    assert store.get("key") is None
    assert "are damaged" in caplog.text
    np.testing.assert_array_equal(store.put("key", iter([tokens(4)])).lengths, [4])


def test_a_failing_renderer_leaves_no_tokens(tmp_path):
    def chunks():
        yield tokens(2, 3)
        raise RuntimeError("the tokenizer failed")

    with pytest.raises(RuntimeError, match="the tokenizer failed"):
        TokenStore(tmp_path).put("key", chunks())

    assert everything_below(tmp_path) == []


def test_of_two_processes_that_render_the_same_texts_one_waits_for_the_other(tmp_path):
    code = """
from pathlib import Path
from scpo_ray.storage.stores import TokenStore
from tests.storage.test_stores import tokens
def chunks():
    yield tokens(2, 3)
    ready()
    time.sleep(0.5)
    yield tokens(4)
TokenStore(Path(sys.argv[1])).put("key", chunks())
"""

    def not_rendered():
        raise AssertionError("rendered a second time")
        yield

    with child(code, tmp_path):
        found = TokenStore(tmp_path).put("key", not_rendered())

    np.testing.assert_array_equal(found.lengths, [2, 3, 4])


# Scores


def put_scores(store: ScoreStore, key: str, hashes: np.ndarray, rewards: np.ndarray) -> None:
    for part in store.missing_parts(key, hashes):
        store.put(key, part, hashes, rewards[part.ids])


def part_path(store: ScoreStore) -> Path:
    return store.path("key") / "part-000000.parquet"


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("scpo_ray.storage.stores._TEXTS_PER_PART", 40)


@pytest.mark.parametrize("number", [0, 1, 39, 40, 41, 100])
def test_scores_are_read_back_for_the_same_texts(tmp_path, small_parts, number):
    store, (hashes, rewards) = ScoreStore(tmp_path), scores(number)

    put_scores(store, "key", hashes, rewards)

    assert store.missing_parts("key", hashes) == []
    found = store.get("key", hashes)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, rewards)
    assert len(store.missing_parts("other", hashes)) == -(-number // 40)


def test_a_stopped_scoring_lacks_only_the_parts_that_it_did_not_reach(tmp_path, small_parts):
    store, (hashes, rewards) = ScoreStore(tmp_path), scores(100)
    first, second, third = store.missing_parts("key", hashes)
    store.put("key", second, hashes, rewards[second.ids])

    assert [part.number for part in store.missing_parts("key", hashes)] == [0, 2]
    with pytest.raises(InputError, match="key: 2 of 3 parts cannot be read"):
        store.get("key", hashes)
    np.testing.assert_array_equal(
        np.concatenate([first.ids, second.ids, third.ids]), np.arange(100)
    )


@pytest.mark.parametrize("change", [lambda h: h[:-1], lambda h: h[::-1], lambda h: h + 1])
def test_scores_of_other_texts_are_not_trusted(tmp_path, caplog, change):
    store, (hashes, rewards) = ScoreStore(tmp_path), scores(100)
    put_scores(store, "key", hashes, rewards)

    assert store.missing_parts("key", change(hashes))
    assert "are of other texts: computing again" in caplog.text


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all"])
def test_a_file_that_is_no_score_table_is_computed_again(tmp_path, caplog, content):
    store = ScoreStore(tmp_path)
    part_path(store).parent.mkdir()
    part_path(store).write_bytes(content)

    assert store.missing_parts("key", scores(3)[0])
    assert "are damaged" in caplog.text


def test_a_score_table_without_its_columns_is_computed_again(tmp_path):
    store = ScoreStore(tmp_path)
    part_path(store).parent.mkdir()
    pq.write_table(pa.table({"reward": [0.5]}), part_path(store))

    assert store.missing_parts("key", scores(1)[0])


@pytest.mark.parametrize("kept_share", [0.0, 0.3, 0.9, 0.999])
def test_a_torn_score_file_is_computed_again(tmp_path, kept_share):
    store, (hashes, rewards) = ScoreStore(tmp_path), scores(5_000)
    put_scores(store, "key", hashes, rewards)

    path = part_path(store)
    os.truncate(path, int(path.stat().st_size * kept_share))

    assert store.missing_parts("key", hashes)


def test_a_hole_of_zeros_in_a_score_file_never_reads_as_rewards(tmp_path):
    store, (hashes, rewards) = ScoreStore(tmp_path), scores(2_000)
    put_scores(store, "key", hashes, rewards)
    path = part_path(store)
    whole = path.read_bytes()

    trusted = 0
    for start in range(0, len(whole) - 64, 499):
        path.write_bytes(whole[:start] + bytes(64) + whole[start + 64 :])
        if not store.missing_parts("key", hashes):
            # The hole fell on bytes that say nothing of the numbers.
            np.testing.assert_array_equal(store.get("key", hashes), rewards)
            trusted += 1
    assert trusted < 5
