"""Whole files and folders or none, and the disk's refusals in words."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

from scpo_ray.records import InputError

MANIFEST = "manifest.json"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there takes its place at the end, or not.

    Raises: InputError if the disk is full or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            sync(part)
            os.replace(part, path)
            sync(path.parent)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """As `whole_file`, for a folder; a manifest of sizes and hashes goes with it.

    An older folder at `path` is replaced at the end, and the rest of a killed writer removed;
    two writers of one path at a time are the caller's to prevent.
    """
    part = path.with_name(f".{path.name}.part")
    with disk_errors(path):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            yield part
            put_in_place(part, path, synced_digests(part, part))
        finally:
            shutil.rmtree(part, ignore_errors=True)


def synced_digests(folder: Path, root: Path) -> dict[str, str]:
    """The hash of every file in `folder`, by its name below `root`; all of it on the disk."""
    below = sorted(folder.rglob("*"))
    for path in [*below, folder]:
        sync(path)
    return {str(p.relative_to(root)): file_digest(p) for p in below if p.is_file()}


def put_in_place(part: Path, path: Path, digests: dict[str, str]) -> None:
    """Gives a folder that is written its manifest and then, in one step, its name."""
    (part / MANIFEST).write_text(json.dumps(digests, indent=1))
    for file in (part / MANIFEST, part):
        sync(file)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(part, path)
    sync(path.parent)


def folder_fault(path: Path) -> str | None:
    """Why a folder that `put_in_place` named cannot be trusted; None if it is whole."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        manifest = None
    if not manifest or not isinstance(manifest, dict):
        return "its manifest is missing or unreadable"
    for name, digest in manifest.items():
        try:
            file = inside(path, name)
        except InputError as error:
            return error.title
        if not file.is_file():
            return f"{name} is missing"
        if file_digest(file) != digest:
            return f"{name} is not what was written"
    return None


def inside(folder: Path, name: str) -> Path:
    """The path of a file in `folder` whose name was read from a file or from a store.

    Raises: InputError if the name leads out of the folder, by itself or by a link on the way.
    """
    parts = name.split("/")
    is_plain = all(part not in ("", ".", "..") for part in parts)
    if not is_plain or re.search(r"[\\\x00-\x1f\x7f]|^[A-Za-z]:", name):
        raise InputError(f"{folder}: {name!r} is no name of a file in it")
    path = folder.joinpath(*parts)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder}: {name!r} leads out of it, by a link")
    return path


def write_json(path: Path, document: Any) -> None:
    """One JSON document, whole or not at all; NaN and infinity are refused."""
    with whole_file(path) as part:
        part.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """The disk's refusals as errors of the user's place, not of this program."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "no space left on the disk",
            errno.EDQUOT: "the disk quota is used up",
            errno.EROFS: "the file system is read-only",
            errno.EACCES: "no permission to write here",
            errno.EPERM: "no permission to write here",
            errno.EEXIST: "a file stands where a folder should",
            errno.ENOTDIR: "a part of the path is a file, not a folder",
            errno.ENOENT: "there is no such folder, and none can be made",
            errno.ENAMETOOLONG: "a name in the path is too long",
        }
        number = error.errno
        # NumPy gives a write that a full disk cut short no error number.
        if number is None and "requested and" in str(error):
            number = errno.ENOSPC
        if number not in reasons:
            raise
        raise InputError(f"{path}: cannot be written", [reasons[number]]) from error
    except SafetensorError as error:
        # The weights' writer reports a full disk in words of its own.
        if "No space left" not in str(error):
            raise
        raise InputError(f"{path}: cannot be written", ["no space left on the disk"]) from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Makes sure that a file's or folder's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
