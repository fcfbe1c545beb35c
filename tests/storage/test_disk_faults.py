"""What every writer does on a full disk and on one that cannot be written."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scpo_ray.data.loading import load_preferences
from scpo_ray.data.synthetic import SyntheticConfig
from scpo_ray.records import ALONE, InputError
from scpo_ray.storage.disk import folder_fault, read_json, whole_file, whole_folder, write_json
from scpo_ray.storage.stores import ScoreStore, TokenStore
from scpo_ray.training.checkpoints import open_checkpoints
from tests.storage.test_disk import everything_below
from tests.storage.test_run_dir import run_dir
from tests.storage.test_stores import Renderer, assert_tokens_of, complete, hashes_of, rewards_of
from tests.training.test_checkpoints import write_checkpoint


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    with mounted_tmpfs(tmp_path / "disk") as folder:
        yield folder


@contextmanager
def mounted_tmpfs(folder: Path, size: str = "1m") -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        # Lazily: memory maps of a failed test may still be open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


# A full disk


def write_large_file(disk: Path) -> None:
    with whole_file(disk / "large") as part:
        part.write_bytes(bytes(2_000_000))


def write_large_weights(disk: Path) -> None:
    with whole_folder(disk / "large") as part:
        save_file({"w": torch.zeros(600_000)}, part / "weights.safetensors")


def write_large_checkpoint(disk: Path) -> None:
    checkpoints = open_checkpoints(run_dir(disk))
    with checkpoints.saving(5, 1.0, keep=2, worker=ALONE) as part:
        save_file({"w": torch.zeros(600_000)}, part / "weights.safetensors")


def write_many_tokens(disk: Path) -> None:
    Renderer(range(4, 600_000, 5)).into(TokenStore(disk / "tokens"))


def write_many_short_texts(disk: Path) -> None:
    Renderer(range(0, 1_000_000, 5)).into(TokenStore(disk / "tokens"))


def write_many_scores(disk: Path) -> None:
    texts = range(200_000)
    ScoreStore(disk / "scores").put("large", hashes_of(texts), rewards_of(texts))


def write_large_result(disk: Path) -> None:
    write_json(disk / "result.json", {"x": ["x" * 100] * 20_000})


def write_many_test_pairs(disk: Path) -> None:
    margins = np.random.default_rng(0).random(300_000)
    run_dir(disk).save_test_pairs({"margin": margins})


def write_many_interactions(disk: Path) -> None:
    config = SyntheticConfig(source="synthetic", users={"A": 700, "B": 700})
    load_preferences(config, disk / "data")


WRITERS = [
    write_large_file,
    write_large_weights,
    write_large_checkpoint,
    write_many_tokens,
    write_many_short_texts,
    write_many_scores,
    write_large_result,
    write_many_test_pairs,
    write_many_interactions,
]


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_is_told_with_the_path_and_leaves_nothing_half_written(small_disk, write):
    with pytest.raises(InputError) as error:
        write(small_disk)

    assert str(small_disk) in error.value.title
    assert "cannot be written" in error.value.title
    assert "no space left" in error.value.problems[0].lower()
    # Whole parts of a list of tokens stay: the next call goes on from them.
    left = [name.rpartition("/")[0] for name in everything_below(small_disk)]
    assert all(name.rpartition("/")[0].endswith(".parts") for name in left)
    assert all(folder_fault(small_disk / name) is None for name in left)


def test_a_full_disk_leaves_the_older_files_as_they_were(small_disk):
    write_json(small_disk / "result.json", {"old": 1})
    checkpoint = write_checkpoint(small_disk, 4)

    for write in (write_large_result, write_large_checkpoint):
        with pytest.raises(InputError):
            write(small_disk)

    assert json.loads(read_json(small_disk / "result.json", "")) == {"old": 1}
    assert open_checkpoints(run_dir(small_disk)).newest(ALONE) == checkpoint


# A folder that cannot be written


def hold_run_folder(disk: Path) -> None:
    with run_dir(disk).locked(wait_s=0):
        pass


@pytest.mark.parametrize("write", [hold_run_folder, *WRITERS])
def test_a_read_only_folder_is_told_with_the_path(small_disk, write):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    with pytest.raises(InputError) as error:
        write(small_disk)

    assert str(small_disk) in error.value.title
    assert "cannot be written" in error.value.title
    assert "read-only" in error.value.problems[0].lower()


def test_what_lies_in_a_read_only_cache_is_used(small_disk):
    token_store, score_store = TokenStore(small_disk / "t"), ScoreStore(small_disk / "s")
    renderer, texts = Renderer([2, 3]), list(range(10))
    renderer.into(token_store)
    complete(score_store, texts)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    assert_tokens_of(renderer.into(token_store), renderer)
    assert renderer.rendered == [2, 3]
    np.testing.assert_array_equal(score_store.get("key", hashes_of(texts)), rewards_of(texts))
