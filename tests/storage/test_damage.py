"""Whatever is kept on disk and read back: damaged, it is made anew or refused, never used."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from filelock import FileLock

from scpo_ray.data.loading import load_preferences
from scpo_ray.data.synthetic import SyntheticConfig
from scpo_ray.models.export import load_exported, save_reward_model
from scpo_ray.records import InputError
from scpo_ray.storage.disk import whole_folder, write_json
from scpo_ray.storage.run_dir import (
    load_comparison_result,
    load_dev_pairs,
    load_result,
    load_test_opinions,
    load_test_pairs,
    save_comparison_result,
    trained_model_dir,
)
from scpo_ray.storage.stores import ScoreStore, TokenStore, WeightStore
from scpo_ray.sweep.store import SweepDir, load_sweep_result
from scpo_ray.tracking.mlflow_store import NOTE_FILE, noted_run_id
from tests.results import comparison, run_result
from tests.storage.test_run_dir import run_dir
from tests.storage.test_stores import Renderer, complete, hashes_of
from tests.sweep_results import sweep_result

# What can befall a file


def flip(file: Path) -> None:
    """The lowest bit of one byte, in the midst of the content."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def flip_the_last(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def make_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def remove(file: Path) -> None:
    file.unlink()


DAMAGES = [flip, flip_the_last, cut, empty, zero, make_a_folder, remove]

# What is kept and made anew


class Cache(NamedTuple):
    """`ask` gives the values, made anew where they must be; `files` are those it keeps."""

    files: list[str]
    ask: Callable[[Path], Any]


def ask_tokens(folder: Path) -> list[Any]:
    tokens = Renderer(range(20), types=True).into(TokenStore(folder / "tokens"))
    assert tokens.token_type_ids is not None
    return [tokens.input_ids, tokens.token_type_ids, tokens.offsets, tokens.truncated]


def ask_scores(folder: Path, name: str = "scores", shape: tuple[int, ...] = ()) -> list[Any]:
    store, texts = ScoreStore(folder / name), list(range(20))
    complete(store, texts, shape)
    return [store.get("key", hashes_of(texts))]


def ask_features(folder: Path) -> list[Any]:
    return ask_scores(folder, "features", (3,))


def ask_weights(folder: Path) -> list[Any]:
    weights = {"a": np.arange(20, dtype=np.float32)}
    return [WeightStore(folder / "weights").get_or_learn("key", lambda: weights)["a"]]


def ask_data(folder: Path) -> list[Any]:
    config = SyntheticConfig(source="synthetic", users={"A": 8, "B": 8}, interactions_per_user=2)
    data = load_preferences(config, folder / "data")
    return [data.fingerprint, data.texts.hashes, [data.texts[0].prompt]]


CACHES = {
    "tokens": Cache(
        ["input_ids.bin", "token_type_ids.bin", "hashes.npy", "offsets.npy", "truncated.npy"],
        ask_tokens,
    ),
    "scores": Cache(["values.npy", "hashes.npy"], ask_scores),
    "features": Cache(["values.npy", "hashes.npy"], ask_features),
    "weights": Cache(["weights.safetensors"], ask_weights),
    "data": Cache(["interactions-*.arrow"], ask_data),
}
CACHED = [
    (name, file)
    for name, cache in CACHES.items()
    for file in [*cache.files, *(["manifest.json"] if name != "data" else [])]
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("name", "file"), CACHED)
def test_a_damaged_cache_entry_is_made_anew_and_said(tmp_path, caplog, name, file, damage):
    ask = CACHES[name].ask
    before = [np.array(values) for values in ask(tmp_path)]
    [path] = (tmp_path / name).rglob(file)

    damage(path)
    again = ask(tmp_path)
    said = caplog.text
    caplog.clear()
    once_more = ask(tmp_path)

    for found in (again, once_more):
        for values, expected in zip(found, before, strict=True):
            np.testing.assert_array_equal(values, expected)
    if not (name == "data" and damage is remove):  # Then it is as if there had been none.
        assert "damaged" in said
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert not [line for line in warned if "damaged" in line]


# What is kept and refused


class Kept(NamedTuple):
    """`read` gives what `write` has put into a run's (or an experiment's) folder."""

    file: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]


PAIRS = {"culture": ["Chile", "Peru"], "margin": np.array([0.5, -1.0], np.float32)}
PRINTS = {"data": "d" * 64, "model": "e" * 64}


def write_model(model: Path, folder: Path) -> None:
    with whole_folder(folder) as part:
        save_reward_model(load_exported(model, device="cpu"), part)


KEPT = {
    "result": Kept("result.json", lambda run: run.save_result(run_result()), load_result),
    "run": Kept(
        "run.json",
        lambda run: run.save_config({"seed": 0}, PRINTS),
        lambda path: run_dir(path.parent).save_config({"seed": 0}, PRINTS),
    ),
    "dev pairs": Kept("dev_pairs.parquet", lambda run: run.save_dev_pairs(PAIRS), load_dev_pairs),
    "test pairs": Kept(
        "test_pairs.parquet", lambda run: run.save_test_pairs(PAIRS), load_test_pairs
    ),
    "test opinions": Kept(
        "test_opinions.parquet", lambda run: run.save_test_opinions(PAIRS), load_test_opinions
    ),
    "comparison": Kept(
        "comparison.json",
        lambda run: save_comparison_result(run.path, comparison()[1]),
        load_comparison_result,
    ),
    "sweep's result": Kept(
        "sweep_result.json",
        lambda run: SweepDir(run.path).save_result(sweep_result()),
        load_sweep_result,
    ),
    "sweep": Kept(
        "sweep.json",
        lambda run: SweepDir(run.path).begin({"a": 1}, PRINTS, extend=False),
        lambda path: SweepDir(path).begin({"a": 1}, PRINTS, extend=False),
    ),
}


# Where there is no such file, there was no run and no sweep.
BEGINS = ["run", "sweep"]
REFUSED = [
    (name, damage)
    for name in KEPT
    for damage in DAMAGES
    if not (name in BEGINS and damage is remove)
]


@pytest.mark.parametrize(("name", "damage"), REFUSED)
def test_a_damaged_record_is_refused_by_name_with_the_remedy(tmp_path, name, damage):
    kept, run = KEPT[name], run_dir(tmp_path)
    kept.write(run)
    kept.read(run.path)

    damage(run.path / kept.file)

    with pytest.raises(InputError) as error:
        kept.read(run.path)
    assert error.value.title.startswith(f"{run.path / kept.file}: ")
    assert any("delete" in line or "makes it again" in line for line in error.value.problems)


@pytest.mark.parametrize("name", ["result", "test pairs"])
def test_no_single_byte_of_a_record_can_change_what_is_read(tmp_path, name):
    kept, run = KEPT[name], run_dir(tmp_path)
    kept.write(run)
    whole = (run.path / kept.file).read_bytes()
    expected = repr(kept.read(run.path))

    for place in range(0, len(whole), max(1, len(whole) // 200)):
        changed = bytearray(whole)
        changed[place] ^= 1
        (run.path / kept.file).write_bytes(changed)
        try:
            found = repr(kept.read(run.path))
        except InputError:
            continue
        # In a table, a byte that says nothing of its values.
        assert found == expected and name == "test pairs"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_note_of_the_mlflow_run_names_none(tmp_path, damage):
    note = tmp_path / NOTE_FILE
    write_json(note, {"uri": "sqlite:///mlflow.db", "run_id": "0123"})
    assert noted_run_id(tmp_path) == "0123"

    damage(note)

    assert noted_run_id(tmp_path) == ""


MODEL_FILES = ["model.safetensors", "config.json", "tokenizer.json", "scpo_model.json"]


@pytest.fixture(scope="module")
def whole_model(tiny_reward_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "model"
    write_model(tiny_reward_model, folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", [*MODEL_FILES, "manifest.json"])
def test_a_runs_damaged_model_is_refused(whole_model, tmp_path, file, damage):
    model = Path(shutil.copytree(whole_model, tmp_path / "run" / "model"))
    assert trained_model_dir(tmp_path / "run") == model

    damage(model / file)

    with pytest.raises(InputError, match=f"{model}: damaged\n  .* (is|is not)") as e:
        trained_model_dir(tmp_path / "run")
    assert e.value.problems[1].startswith(f"delete {tmp_path / 'run'}, and the command")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", MODEL_FILES)
def test_an_exported_model_that_is_damaged_is_refused(whole_model, tmp_path, file, damage):
    model = Path(shutil.copytree(whole_model, tmp_path / "exported"))
    load_exported(model, device="cpu")

    damage(model / file)

    with pytest.raises(InputError, match=str(model)):
        load_exported(model, device="cpu")


def test_a_model_changed_on_purpose_is_used_without_its_manifest(whole_model, tmp_path):
    model = Path(shutil.copytree(whole_model, tmp_path / "exported"))
    config = model / "config.json"
    config.write_text(config.read_text() + "\n")

    with pytest.raises(InputError, match=r"delete its manifest\.json if you changed it on purpose"):
        load_exported(model, device="cpu")
    (model / "manifest.json").unlink()
    load_exported(model, device="cpu")


def test_a_copied_model_gets_a_manifest_of_its_own(whole_model, tmp_path):
    with whole_folder(tmp_path / "run" / "model") as part:
        shutil.copytree(whole_model, part, dirs_exist_ok=True)
        (part / "README.md").write_text("a copy")

    assert trained_model_dir(tmp_path / "run") == tmp_path / "run" / "model"


# What killed writers leave


def test_what_a_killed_writer_left_goes_when_the_run_is_held_again(tmp_path):
    run = run_dir(tmp_path)
    (run.path / ".model.part").mkdir(parents=True)
    (run.path / ".model.part" / "model.safetensors").write_bytes(b"half")
    (run.path / ".result.json.0123.part").write_bytes(b"half")

    with run.locked(wait_s=0):
        assert [path.name for path in run.path.iterdir()] == [".lock"]


def test_tokens_that_a_killed_writer_left_go_and_those_of_a_living_one_stay(tmp_path):
    store = TokenStore(tmp_path)
    folder = tmp_path / "key"
    for name in ("dead", "alive"):
        (folder / f".{name}.part").mkdir(parents=True)

    with FileLock(folder / ".alive.lock"):
        Renderer([1, 2]).into(store)

    assert [path.name for path in folder.glob(".*.part")] == [".alive.part"]
