"""What a run leaves on disk and where; whole files or none."""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from scpo_ray.records import ComparisonResult, InputError, RunResult, Tokens
from scpo_ray.remote import RemoteFolder

log = logging.getLogger(__name__)

_RESULT: TypeAdapter[RunResult] = TypeAdapter(RunResult)
_COMPARISON: TypeAdapter[ComparisonResult] = TypeAdapter(ComparisonResult)
MANIFEST = "manifest.json"
_TEXTS_PER_PART = 16_384


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
            files = sorted(p for p in part.rglob("*") if p.is_file())
            manifest = {str(p.relative_to(part)): file_digest(p) for p in files}
            (part / MANIFEST).write_text(json.dumps(manifest, indent=1))
            for file in [*files, part / MANIFEST, part]:
                sync(file)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(part, path)
            sync(path.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def folder_fault(path: Path) -> str | None:
    """Why a folder written by `whole_folder` cannot be trusted; None if it is whole."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        manifest = None
    if not manifest or not isinstance(manifest, dict):
        return "its manifest is missing or unreadable"
    for name, digest in manifest.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file_digest(file) != digest:
            return f"{name} is not what was written"
    return None


def write_json(path: Path, document: Any) -> None:
    """One JSON document, whole or not at all; NaN and infinity are refused."""
    with whole_file(path) as part:
        part.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


class RunDir:
    """One run's folder: config, checkpoints, model, result; and the caches it shares.

    <output_dir>/cache/                      tables, tokens, scores: by content, shared
    <output_dir>/<experiment>/<run name>/    everything else of one run

    With `remote` the folder is this machine's alone, and what outlasts it is kept there too.
    """

    def __init__(self, path: Path, cache: Path, remote: RemoteFolder | None = None) -> None:
        self.path = path
        self.cache = cache
        self.remote = remote
        self.token_store = TokenStore(cache / "tokens")
        self.score_store = ScoreStore(cache / "scores")

    @property
    def model_dir(self) -> Path:
        return self.path / "model"

    @property
    def result_path(self) -> Path:
        return self.path / "result.json"

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def test_pairs_path(self) -> Path:
        return self.path / "test_pairs.parquet"

    @contextmanager
    def locked(self, *, wait_s: float) -> Iterator[None]:
        """Holds the folder for one process. Raises: InputError if another one does so longer."""
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=wait_s)
            try:
                lock.acquire()
            except Timeout:
                raise InputError(f"{self.path}: another process is running this run") from None
        try:
            yield
        finally:
            lock.release()

    def save_config(self, config: dict[str, Any], fingerprints: dict[str, str]) -> None:
        """Records what runs here; a run found again must find the data and model it began with.

        Raises: InputError if the folder belongs to a run on other data or another global model.
        """
        path = self.path / "run.json"
        if path.is_file():
            try:
                known = dict(json.loads(path.read_bytes())["fingerprints"])
            except (ValueError, TypeError, KeyError):
                raise InputError(f"{path}: damaged; delete it to begin anew") from None
            changed = [
                f"{name} fingerprint then {str(known.get(name))[:12]}, now {value[:12]}: "
                "the files have changed; delete the folder or choose another output_dir"
                for name, value in fingerprints.items()
                if known.get(name) != value
            ]
            if changed:
                raise InputError(f"{self.path}: began with other input", changed)
        write_json(path, {"config": config, "fingerprints": fingerprints})

    def remove_checkpoints(self) -> None:
        shutil.rmtree(self.checkpoints_dir, ignore_errors=True)
        if self.remote is not None:
            self.remote.remove(self.checkpoints_dir.name)

    def fetch(self) -> None:
        """Takes what `remote` has of the run, but its checkpoints, where this machine has not.

        The result comes last: with it the run has ended here too.
        """
        if self.remote is None or self.result_path.is_file():
            return
        result = self.result_path.name
        names = [n for n in self.remote.files() if n.split("/")[0] != self.checkpoints_dir.name]
        with disk_errors(self.path):
            for name in sorted(names, key=lambda name: name == result):
                with whole_file(self.path / name) as part:
                    self.remote.download(name, part)

    def keep(self) -> None:
        """Copies the run, but its checkpoints, to `remote`; the result last."""
        if self.remote is None:
            return
        files = [f for f in self.path.rglob("*") if f.is_file() and not f.name.startswith(".")]
        for file in sorted(files, key=lambda file: file == self.result_path):
            if self.checkpoints_dir not in file.parents:
                self.remote.upload(file, file.relative_to(self.path).as_posix())

    def save_result(self, result: RunResult) -> None:
        write_json(self.result_path, asdict(result))

    def save_test_pairs(self, columns: dict[str, Any]) -> None:
        with whole_file(self.test_pairs_path) as part:
            pq.write_table(pa.table(columns), part)


def load_result(path: Path) -> RunResult:
    """The result in a run's folder. Raises: InputError if there is none or it is damaged."""
    result: RunResult = _load(path / "result.json", _RESULT)
    return result


def load_comparison_result(path: Path) -> ComparisonResult:
    """The comparison in an experiment's folder. Raises: as `load_result`."""
    result: ComparisonResult = _load(path / "comparison.json", _COMPARISON)
    return result


def save_comparison_result(path: Path, result: ComparisonResult) -> None:
    write_json(path / "comparison.json", asdict(result))


def load_test_pairs(path: Path) -> dict[str, NDArray[Any]]:
    """Columns of a run's `test_pairs.parquet` as arrays."""
    file = path / "test_pairs.parquet"
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{file}: cannot be read", [str(error).splitlines()[0]]) from None
    return {name: table[name].to_numpy() for name in table.column_names}


def _load(path: Path, adapter: TypeAdapter[Any]) -> Any:
    try:
        return adapter.validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read", [error.strerror or str(error)]) from None
    except ValidationError as error:
        problems = [
            ": ".join([*filter(None, [".".join(map(str, each["loc"]))]), each["msg"]])
            for each in error.errors()
        ]
        raise InputError(f"{path}: not a result of this version", problems) from None


class TokenStore:
    """Rendered texts on disk, by key; memory-mapped when read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> Tokens | None:
        """The tokens under `key`, or None where there are none that are whole."""
        path = self.folder / key
        if not path.is_dir():
            return None
        try:
            offsets = np.load(path / "offsets.npy")
            truncated = np.load(path / "truncated.npy")
            input_ids = np.fromfile(path / "input_ids.bin", dtype=np.int32, count=0)
            if offsets[-1]:
                input_ids = np.memmap(path / "input_ids.bin", dtype=np.int32, mode="r")
            types = None
            if (path / "token_type_ids.bin").is_file() and offsets[-1]:
                types = np.memmap(path / "token_type_ids.bin", dtype=np.int8, mode="r")
            if len(input_ids) != offsets[-1] or (types is not None and len(types) != offsets[-1]):
                raise ValueError("lengths do not fit")
        except (OSError, ValueError, EOFError) as error:
            log.warning("tokens in %s are damaged (%s): rendering again", path, error)
            return None
        return Tokens(input_ids, types, offsets, truncated)

    def put(self, key: str, chunks: Iterator[Tokens]) -> Tokens:
        """Writes the chunks one after the other; returns them as one, memory-mapped.

        Of several processes that render the same texts at once, one writes and the others wait.
        """
        with disk_errors(self.folder / key):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f".{key}.lock"):
                tokens = self.get(key)
                if tokens is None:
                    self._write(key, chunks)
                    tokens = self.get(key)
        if tokens is None:
            raise InputError(f"{self.folder / key}: what was just written cannot be read back")
        return tokens

    def _write(self, key: str, chunks: Iterator[Tokens]) -> None:
        lengths, truncated = [], []
        with whole_folder(self.folder / key) as part:
            with (
                (part / "input_ids.bin").open("wb") as ids_file,
                (part / "token_type_ids.bin").open("wb") as types_file,
            ):
                for chunk in chunks:
                    chunk.input_ids.tofile(ids_file)
                    if chunk.token_type_ids is not None:
                        chunk.token_type_ids.tofile(types_file)
                    lengths.append(chunk.lengths)
                    truncated.append(chunk.truncated)
            if (part / "token_type_ids.bin").stat().st_size == 0:
                (part / "token_type_ids.bin").unlink()
            ends = np.cumsum(np.concatenate(lengths), dtype=np.int64)
            np.save(part / "offsets.npy", np.concatenate([[0], ends]))
            np.save(part / "truncated.npy", np.concatenate(truncated))


@dataclass(frozen=True)
class ScorePart:
    """Part `number` of a set of scores. `ids`: (n,) int64, the texts in it."""

    number: int
    ids: NDArray[np.int64]


class ScoreStore:
    """The global model's rewards on disk: per key a folder of Parquet files, one per part.

    A part is a run of texts, of a size that does not depend on who computes it: a scoring that
    was stopped, or that many machines share, gives the same files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / key

    def missing_parts(self, key: str, hashes: NDArray[np.uint64]) -> list[ScorePart]:
        """The parts of these texts' scores that are not there, or not to be trusted."""
        return [p for p in _parts(len(hashes)) if self._read(key, p, hashes) is None]

    def get(self, key: str, hashes: NDArray[np.uint64]) -> NDArray[np.float32]:
        """(T,) rewards of the texts with these hashes. Raises: InputError if some are missing."""
        parts = [self._read(key, part, hashes) for part in _parts(len(hashes))]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            missing = len(parts) - len(found)
            raise InputError(f"{self.path(key)}: {missing} of {len(parts)} parts cannot be read")
        return np.concatenate(found) if found else np.empty(0, np.float32)

    def put(
        self,
        key: str,
        part: ScorePart,
        hashes: NDArray[np.uint64],
        rewards: NDArray[np.float32],
    ) -> None:
        """Keeps the (n,) rewards of a part's texts; `hashes` are those of all T texts."""
        with whole_file(self._part_path(key, part)) as file:
            table = pa.table({"text_hash": hashes[part.ids], "reward": rewards})
            # Without checksums a page of zeros reads as rewards of zero.
            pq.write_table(table, file, write_page_checksum=True)

    def _part_path(self, key: str, part: ScorePart) -> Path:
        return self.path(key) / f"part-{part.number:06d}.parquet"

    def _read(
        self, key: str, part: ScorePart, hashes: NDArray[np.uint64]
    ) -> NDArray[np.float32] | None:
        path = self._part_path(key, part)
        if not path.is_file():
            return None
        try:
            table = pq.read_table(path, page_checksum_verification=True)
            stored = table["text_hash"].to_numpy()
            rewards = table["reward"].to_numpy().astype(np.float32)
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            log.warning("scores in %s are damaged (%s): computing again", path, error)
            return None
        if not np.array_equal(stored, hashes[part.ids]):
            log.warning("scores in %s are of other texts: computing again", path)
            return None
        return np.asarray(rewards)


def _parts(num_texts: int) -> list[ScorePart]:
    starts = range(0, num_texts, _TEXTS_PER_PART)
    return [
        ScorePart(number, np.arange(start, min(start + _TEXTS_PER_PART, num_texts)))
        for number, start in enumerate(starts)
    ]


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
