"""Weights that are pickles: read once, without running code, and kept as safetensors."""

import hashlib
import json
import logging
import os
import pickle
import shutil
import warnings
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from scpo_ray.records import InputError
from scpo_ray.storage.disk import digest_once, file_digest, whole_folder

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_PICKLE, _INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_WEIGHTS = "model.safetensors"
_RECORD = "converted.json"
# What a model's folder needs beside its weights.
_SMALL = ("*.json", "*.txt", "*.jinja", "*.model")


def pickle_files(folder: Path) -> list[Path]:
    """The model's weights as pickles, in the names that PyTorch and transformers give them."""
    index = folder / _INDEX
    if (folder / _PICKLE).is_file() or not index.is_file():
        return sorted([*folder.glob("*.bin"), *folder.glob("*.pt")])
    names = indexed_files(index)
    if any(PurePosixPath(n).name != n for n in names):
        raise InputError(f"{index}: names files that are not in its folder", names[:5])
    return [folder / name for name in names]


def indexed_files(index: Path) -> list[str]:
    """The names of the files that an index of weights says the weights are in.

    Raises: InputError if it cannot be read, points out of its folder or to no file.
    """
    try:
        names = sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise InputError(f"{index}: not an index of weights") from None
    # By the names, not where links lead: the hub's cache keeps its files as links.
    outside = [n for n in names if PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts]
    if outside:
        raise InputError(f"{index}: points out of its folder", outside[:5])
    # Unlike Path's, this takes a name longer than any file's for that of no file.
    absent = [name for name in names if not os.path.isfile(index.parent / name)]
    if absent:
        raise InputError(
            f"{index}: names files that are not there", [name[:100] for name in absent[:5]]
        )
    return names


def converted(folder: Path, pickles: list[Path], cache: Path, *, with_code: bool) -> Path:
    """A folder in `cache` with the same model, its weights as safetensors; made once.

    It is found by the hash of all it is made from, and made anew where its weights are damaged.

    Raises: InputError if the pickles hold anything but tensors, or the disk refuses.
    """
    weights = [path for path in pickles if path.name == _PICKLE] or [
        path for path in pickles if path.suffix == ".bin" and path.name.startswith("pytorch_model")
    ]
    if not weights:
        names = ", ".join(path.name for path in pickles)
        raise InputError(f"{folder}: no {_PICKLE} among its pickle files", [names])
    patterns = (*_SMALL, "*.py") if with_code else _SMALL
    small = sorted(
        path
        for pattern in patterns
        for path in folder.glob(pattern)
        if path.is_file() and not path.name.endswith(".index.json")
    )
    hashes = {path.name: digest_once(path) for path in weights}
    rest = {path.name: digest_once(path) for path in small}
    key = hashlib.sha256(json.dumps([hashes, rest], sort_keys=True).encode()).hexdigest()[:32]
    place = cache / key
    if _is_whole(place, hashes):
        return place
    # Finding a model's folder, which most commands do, needs no torch.
    from safetensors.torch import save_file

    log.info("%s: %s read into %s", folder, ", ".join(hashes), place / _WEIGHTS)
    tensors = _read(weights)
    with whole_folder(place) as part:
        for path in small:
            shutil.copyfile(path, part / path.name)
        save_file(tensors, part / _WEIGHTS, metadata={"format": "pt"})
        record = {"pickles": hashes, "safetensors": file_digest(part / _WEIGHTS)}
        (part / _RECORD).write_text(json.dumps(record) + "\n")
    return place


def conversion_record(folder: Path) -> dict[str, str]:
    """Of a converted model: the hash of its pickles and that of its safetensors; else nothing."""
    if not (folder / _RECORD).is_file():
        return {}
    record = json.loads((folder / _RECORD).read_text())
    pickles = json.dumps(record["pickles"], sort_keys=True).encode()
    only = list(record["pickles"].values())
    return {
        "pickle": only[0] if len(only) == 1 else hashlib.sha256(pickles).hexdigest(),
        "safetensors": record["safetensors"],
    }


def _is_whole(place: Path, hashes: dict[str, str]) -> bool:
    if not place.is_dir():
        return False
    try:
        record = json.loads((place / _RECORD).read_text())
        if record == {"pickles": hashes, "safetensors": digest_once(place / _WEIGHTS)}:
            return True
    except (OSError, ValueError, RecursionError):
        pass
    log.warning("%s: the converted weights are damaged; they are made anew", place)
    return False


def _read(paths: list[Path]) -> "dict[str, Tensor]":
    import torch

    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            with warnings.catch_warnings():
                # What it cannot read it refuses all the same.
                warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
                content: Any = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"{path}: cannot be read as weights alone", [reason]) from None
        if not isinstance(content, dict) or not content:
            raise InputError(f"{path}: holds no weights by name")
        others = [
            str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)
        ]
        if others:
            raise InputError(f"{path}: holds more than weights", others[:5])
        # Two names of one tensor become two: the format knows no sharing, the model ties anew.
        tensors |= {str(name): value.clone().contiguous() for name, value in content.items()}
    return tensors
