"""Whole files and folders or none, signed with hashes, and the disk's refusals in words."""

import errno
import hashlib
import json
import mmap
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from glob import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

from scpo_ray.records import InputError

MANIFEST = "manifest.json"

# The first line of a JSON document signs the rest of it, and the whole is JSON to others.
_SIGNED = re.compile(rb'\{\n "sha256": "([0-9a-f]{64})",\n')

# What was written this shortly before may be written again without a change of its time.
_RECENT_NS = 2 * 10**9

# A writer that has not touched its part for so long is no more.
LEFT_BEHIND_S = 24 * 3_600.0

_DIGEST_BYTES = 32

_known_whole: set[tuple[Any, ...]] = set()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there takes its place at the end, or not.

    Raises: InputError if the disk is full or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path.parent, f".{escape(path.name)}.*.part", older_than_s=LEFT_BEHIND_S)
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
        remove(part)
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
    # One that was copied along speaks of another folder.
    digests = {name: digest for name, digest in digests.items() if name != MANIFEST}
    (part / MANIFEST).write_text(json.dumps(digests, indent=1))
    for file in (part / MANIFEST, part):
        sync(file)
    remove(path)
    os.replace(part, path)
    sync(path.parent)


def put_into(folder: Path, name: str, text: str) -> None:
    """Writes a file into a folder that `put_in_place` named, as part of it; it stays whole.

    A kill in between leaves the folder whole without the file. A folder without a manifest, as
    another program wrote it, gets none: it would speak of this file alone.
    """
    manifest = _manifest(folder)
    others = {n: digest for n, digest in (manifest or {}).items() if n != name}
    if manifest is not None:
        _write_manifest(folder, others)
    with whole_file(folder / name) as part:
        part.write_text(text, encoding="utf-8")
    if manifest is not None:
        _write_manifest(folder, {**others, name: file_digest(folder / name)})


def _write_manifest(folder: Path, digests: Mapping[str, str]) -> None:
    with whole_file(folder / MANIFEST) as part:
        part.write_text(json.dumps(digests, indent=1))


def folder_fault(path: Path) -> str | None:
    """Why a folder that `put_in_place` named cannot be trusted; None if it is whole.

    Its files are read once in this process, while their sizes and times stay.
    """
    digests = _manifest(path)
    if not digests:
        return "its manifest is missing or unreadable"
    states = []
    for name in digests:
        try:
            state = inside(path, name).stat()
        except InputError as error:
            return error.title
        except OSError:
            return f"{name} is missing"
        if not stat.S_ISREG(state.st_mode):
            return f"{name} is not a file"
        states.append((name, state.st_ino, state.st_size, state.st_mtime_ns))
    seen = (str(path), *states, *digests.values())
    if seen in _known_whole:
        return None
    started = time.time_ns()
    for name, digest in digests.items():
        if file_digest(path / name) != digest:
            return f"{name} is not what was written"
    if all(started - modified > _RECENT_NS for *_, modified in states):
        _known_whole.add(seen)
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


def check_folder(path: Path, remedy: str) -> None:
    """Raises: InputError with `remedy` if a folder that `put_in_place` named is not whole."""
    fault = folder_fault(path)
    if fault is not None:
        raise InputError(f"{path}: damaged", [fault, remedy])


def sign(path: Path) -> None:
    """Adds the hash of a file's content behind it, where its readers look for it."""
    digest = bytes.fromhex(file_digest(path))
    with path.open("ab") as file:
        file.write(digest)


def signed_content(path: Path) -> memoryview:
    """A file that `sign` was called on, memory-mapped, without the hash.

    It is read once in this process, while its size and time stay. Raises: OSError if it cannot be
    read, ValueError if it is not what was signed.
    """
    with path.open("rb") as file:
        state = os.fstat(file.fileno())
        if state.st_size <= _DIGEST_BYTES:
            raise ValueError("it is not what was written")
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    content = mapped[:-_DIGEST_BYTES]
    seen = (str(path), state.st_ino, state.st_size, state.st_mtime_ns)
    if seen not in _known_whole:
        started = time.time_ns()
        if hashlib.sha256(content).digest() != mapped[-_DIGEST_BYTES:]:
            raise ValueError("it is not what was written")
        if started - state.st_mtime_ns > _RECENT_NS:
            _known_whole.add(seen)
    return content


def _manifest(path: Path) -> Mapping[str, str] | None:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return manifest if isinstance(manifest, dict) else None


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """A JSON object, whole or not at all, as `signed_json` writes it.

    Raises: ValueError for NaN, infinity and an object without members.
    """
    text = signed_json(document)
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def signed_json(document: Mapping[str, Any]) -> str:
    """A JSON object with the hash of the rest as its first member.

    Raises: ValueError for NaN, infinity and an object without members.
    """
    if not document:
        raise ValueError("nothing to write")
    content = json.dumps(dict(document), indent=1, allow_nan=False) + "\n"
    body = content.removeprefix("{\n")
    return f'{{\n "sha256": "{hashlib.sha256(body.encode()).hexdigest()}",\n{body}'


def read_json(path: Path, remedy: str) -> bytes:
    """A document that `write_json` wrote, as JSON without the hash.

    Raises: InputError with `remedy` if it cannot be read, or is not what was written.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read", [error.strerror or str(error), remedy]
        ) from None
    signed = _SIGNED.match(content)
    body = b"" if signed is None else content[signed.end() :]
    if signed is None or hashlib.sha256(body).hexdigest() != signed[1].decode():
        raise InputError(f"{path}: damaged", ["it is not what was written", remedy])
    return b"{\n" + body


def free_bytes(path: Path) -> int:
    """What the disk at `path` has left."""
    return shutil.disk_usage(path).free


def clear_leftovers(folder: Path, pattern: str, *, older_than_s: float = 0.0) -> None:
    """Removes what killed writers left half-written in `folder`."""
    for path in folder.glob(pattern):
        try:
            if time.time() - path.lstat().st_mtime >= older_than_s:
                remove(path)
        except OSError:
            continue  # Its writer, or another one who clears up, was faster.


def remove(path: Path) -> None:
    """The file, link or folder at `path`, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
            errno.EISDIR: "a folder stands where a file should",
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


def digest_once(path: Path) -> str:
    """As `file_digest`; read once in this process while the file's size and time stay."""
    state = path.stat()
    return _known_digest(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _known_digest(path: Path, size: int, modified_ns: int) -> str:
    return file_digest(path)


def sync(path: Path) -> None:
    """Makes sure that a file's or folder's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
