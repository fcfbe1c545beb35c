"""A model's folder as strangers left it: names and documents that lead nowhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from scpo_ray.models.files import (
    adapter_base,
    model_fingerprint,
    resolve_model_dir,
    weight_files,
)
from scpo_ray.models.pickles import pickle_files
from scpo_ray.records import InputError
from scpo_ray.settings.model import ModelConfig

DEEP = "[" * 100_000
LONG = "x" * 5_000


def folder_with(folder: Path, **documents: str) -> Path:
    """A folder with files called so, "__" for a full stop."""
    folder.mkdir()
    for name, text in documents.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def adapters_on(base: Any, folder: Path) -> Path:
    document = json.dumps({"base_model_name_or_path": base})
    folder = folder_with(folder, adapter_config__json=document)
    save_file({"a": np.ones(1, np.float32)}, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": ["a"]}', DEEP])
def test_an_index_that_is_none_is_refused(tmp_path, kind, text):
    (tmp_path / f"{kind}.index.json").write_text(text)
    read = weight_files if kind == "model.safetensors" else pickle_files

    with pytest.raises(InputError, match=r"index\.json: not an index of weights"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("name", ["", ".", "loop", "folder", "a\0", LONG, None, 5, ["a"], "\ud800"])
def test_an_index_that_names_no_file_is_refused(tmp_path, kind, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / f"{kind}.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    read = weight_files if kind == "model.safetensors" else pickle_files

    with pytest.raises(InputError, match=r"index\.json: names files that are not"):
        read(tmp_path)


def test_a_path_that_is_too_long_for_one_is_no_model():
    with pytest.raises(InputError, match="neither a folder nor a hub model"):
        resolve_model_dir(ModelConfig(path=LONG))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DEEP, "cannot be read"),
        ("[]", "must be an object"),
        ("{}", "names no base model"),
        ('{"base_model_name_or_path": 3}', "names no base model"),
        (
            '{"base_model_name_or_path": "https://me:hunter2@host/x"}',
            "base_model_name_or_path holds a user's password",
        ),
    ],
)
def test_adapters_without_a_base_are_refused(tmp_path, text, message):
    folder = folder_with(tmp_path / "adapters", adapter_config__json=text)

    with pytest.raises(InputError, match=message) as caught:
        adapter_base(folder, ModelConfig(path=str(folder)))

    assert "hunter2" not in str(caught.value)


def test_adapters_on_adapters_are_refused(tmp_path):
    own = adapters_on(str(tmp_path / "own"), tmp_path / "own")
    other = adapters_on(str(own), tmp_path / "other")

    for folder in (own, other):
        with pytest.raises(InputError, match=r"its base model .*own is adapters itself"):
            model_fingerprint(folder, ModelConfig(path=str(folder)))
