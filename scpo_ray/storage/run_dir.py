"""What a run leaves on disk and where: its folder, its result."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from scpo_ray.records import InputError
from scpo_ray.results import RESULT_FORMAT, ComparisonResult, RunResult, TrainingRecord
from scpo_ray.storage.disk import (
    check_folder,
    clear_leftovers,
    disk_errors,
    inside,
    read_json,
    remove,
    whole_file,
    write_json,
)
from scpo_ray.storage.remote import RemoteFolder
from scpo_ray.storage.stores import Stores

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
RUN_FILE = "run.json"
LOCK_FILE = ".lock"
TRAINING_FILE = "training.json"
RESULT_FILE = "result.json"
COMPARISON_FILE = "comparison.json"
DEV_PAIRS_FILE = "dev_pairs.parquet"
TEST_PAIRS_FILE = "test_pairs.parquet"
TEST_OPINIONS_FILE = "test_opinions.parquet"
_TRAINING: TypeAdapter[TrainingRecord] = TypeAdapter(TrainingRecord)
_DIGEST = "sha256"
_RESULT: TypeAdapter[RunResult] = TypeAdapter(RunResult)
_COMPARISON: TypeAdapter[ComparisonResult] = TypeAdapter(ComparisonResult)


class RunDir:
    """One run's folder: config, checkpoints, model, result; and the caches it shares.

    <output_dir>/cache/                      tables, tokens, scores, features, predictors: by
                                             content, shared
    <output_dir>/<experiment>/<run name>/    everything else of one run

    With `remote` the folder is this machine's alone, and what outlasts it is kept there too.
    """

    def __init__(self, path: Path, cache: Path, remote: RemoteFolder | None = None) -> None:
        self.path = path
        self.stores = Stores(cache)
        self.remote = remote

    @property
    def model_dir(self) -> Path:
        return self.path / "model"

    @property
    def result_path(self) -> Path:
        return self.path / RESULT_FILE

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / CHECKPOINTS

    @contextmanager
    def locked(self, *, wait_s: float) -> Iterator[None]:
        """Holds the folder for one process. Raises: InputError if another one does so longer."""
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK_FILE, timeout=wait_s)
            try:
                lock.acquire()
            except Timeout:
                raise InputError(f"{self.path}: another process is running this run") from None
            # Whoever wrote these is gone, or the folder would not be free.
            clear_leftovers(self.path, ".*.part")
        try:
            yield
        finally:
            lock.release()

    def wait_until_free(self) -> None:
        """Returns once no other process is running this run."""
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK_FILE)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.info("%s: another process is running this run; waiting for it", self.path)
                lock.acquire()
            lock.release()

    def save_config(self, config: dict[str, Any], fingerprints: dict[str, str]) -> None:
        """Records what runs here; a run found again must find the data and model it began with.

        Raises: InputError if the folder belongs to a run on other data or another global model.
        """
        path = self.path / RUN_FILE
        if path.exists():
            known = json.loads(read_json(path, "delete it to begin anew"))["fingerprints"]
            changed = [
                f"{name} fingerprint then {str(known.get(name))[:12]}, now {value[:12]}: "
                "the files have changed; delete the folder or choose another output_dir"
                for name, value in fingerprints.items()
                if known.get(name) != value
            ]
            if changed:
                raise InputError(f"{self.path}: began with other input", changed)
        write_json(path, {"config": config, "fingerprints": fingerprints})

    def forget_config(self) -> None:
        """Undoes `save_config` where nothing of the run has been kept since."""
        if all(path.name in (RUN_FILE, LOCK_FILE) for path in self.path.iterdir()):
            remove(self.path / RUN_FILE)

    def remove_checkpoints(self) -> None:
        if self.remote is not None:
            self.remote.remove(self.checkpoints_dir.name)
        # Last: where it stands beside a result, a kill came before this was done.
        shutil.rmtree(self.checkpoints_dir, ignore_errors=True)

    def settle(self) -> None:
        """What comes after an ended run's result, where a kill left it undone."""
        if self.checkpoints_dir.is_dir():
            self.keep()
            self.remove_checkpoints()

    def fetch(self) -> None:
        """Takes what `remote` has of the run, but its checkpoints, where this machine has not.

        What says that something is whole comes after it: a kill in between repeats work.
        """
        if self.remote is None or self.result_path.exists():
            return
        names = [n for n in self.remote.files() if n.split("/")[0] != self.checkpoints_dir.name]
        with disk_errors(self.path):
            for name in sorted(names, key=_place_in_order):
                with whole_file(inside(self.path, name)) as part:
                    self.remote.download(name, part)

    def keep(self) -> None:
        """Copies the run, but its checkpoints, to `remote`; see `fetch` for the order."""
        if self.remote is None:
            return
        files = [f for f in self.path.rglob("*") if f.is_file() and not f.name.startswith(".")]
        kept = [f for f in files if self.checkpoints_dir not in f.parents]
        for name in sorted(
            (f.relative_to(self.path).as_posix() for f in kept), key=_place_in_order
        ):
            self.remote.upload(self.path / name, name)

    def save_training_record(self, record: TrainingRecord) -> None:
        """Says that the model is there, whole; what comes after it can be done again."""
        write_json(self.path / TRAINING_FILE, asdict(record))

    def training_record(self) -> TrainingRecord | None:
        """What was kept of the fit, None before its end. Raises: InputError if it is damaged."""
        path = self.path / TRAINING_FILE
        record: TrainingRecord | None = None
        if path.exists():
            record = load_document(path, _TRAINING, _run_again(self.path))
        return record

    def save_result(self, result: RunResult) -> None:
        write_json(self.result_path, asdict(result))

    def save_test_pairs(self, columns: dict[str, Any]) -> None:
        _save_columns(self.path / TEST_PAIRS_FILE, columns)

    def save_dev_pairs(self, columns: dict[str, Any]) -> None:
        _save_columns(self.path / DEV_PAIRS_FILE, columns)

    def save_test_opinions(self, columns: dict[str, Any]) -> None:
        _save_columns(self.path / TEST_OPINIONS_FILE, columns)


def _place_in_order(name: str) -> int:
    """0 for content; then what says that the model is whole, and that the run has ended."""
    return {TRAINING_FILE: 1, RESULT_FILE: 2}.get(name, 0)


def load_result(path: Path) -> RunResult:
    """The result in a run's folder. Raises: InputError if there is none or it is damaged."""
    result: RunResult = load_document(path / RESULT_FILE, _RESULT, _run_again(path))
    return result


def trained_model_dir(path: Path) -> Path:
    """The model in an ended run's folder. Raises: InputError if there is none or it is damaged."""
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    folder = path / "model"
    if not folder.exists():
        raise InputError(f"{path}: has no trained model (no folder {folder.name} in it)")
    check_folder(folder, _run_again(path))
    return folder


def _run_again(path: Path) -> str:
    return f"delete {path}, and the command that made it makes it again"


def load_comparison_result(path: Path) -> ComparisonResult:
    """The comparison in an experiment's folder. Raises: as `load_result`."""
    result: ComparisonResult = load_document(
        path / COMPARISON_FILE, _COMPARISON, "scpo compare makes it again from the runs"
    )
    return result


def save_comparison_result(path: Path, result: ComparisonResult) -> None:
    write_json(path / COMPARISON_FILE, asdict(result))


def load_test_pairs(path: Path) -> dict[str, NDArray[Any]]:
    """Columns of a run's `test_pairs.parquet` as arrays."""
    return _load_columns(path / TEST_PAIRS_FILE, _run_again(path))


def load_dev_pairs(path: Path) -> dict[str, NDArray[Any]]:
    """The same of its `dev_pairs.parquet`, which is there if its result has `dev`."""
    return _load_columns(path / DEV_PAIRS_FILE, _run_again(path))


def load_test_opinions(path: Path) -> dict[str, NDArray[Any]]:
    """Columns of a run's `test_opinions.parquet`, which is there if its result has opinions.

    `culture`, `cluster` (the question), and "<predictor>/<options>/<base>" -> (D,) similarity to
    each test distribution, NaN where there is none.
    """
    return _load_columns(path / TEST_OPINIONS_FILE, _run_again(path))


def _save_columns(file: Path, columns: dict[str, Any]) -> None:
    table = pa.table(columns)
    digest = _columns_digest(_arrays(table))
    with whole_file(file) as part:
        pq.write_table(table.replace_schema_metadata({_DIGEST: digest}), part)


def _load_columns(file: Path, remedy: str) -> dict[str, NDArray[Any]]:
    try:
        table = pq.ParquetFile(file).read()
        columns = _arrays(table)
        digest = (table.schema.metadata or {}).get(_DIGEST.encode(), b"").decode()
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{file}: cannot be read", [reason, remedy]) from None
    if _columns_digest(columns) != digest:
        raise InputError(f"{file}: damaged", ["it is not what was written", remedy])
    return columns


def _arrays(table: pa.Table) -> dict[str, NDArray[Any]]:
    return {name: table[name].to_numpy() for name in table.column_names}


def _columns_digest(columns: dict[str, NDArray[Any]]) -> str:
    """Hash of what is read, however the file holds it."""
    digest = hashlib.sha256()
    for name, values in columns.items():
        # Text is an array of objects.
        texts = json.dumps(values.tolist()).encode() if values.dtype == object else b""
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
        digest.update(texts or np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def load_document(path: Path, adapter: TypeAdapter[Any], remedy: str) -> Any:
    """A record in a JSON file. Raises: InputError if it cannot be read or is none."""
    content = read_json(path, remedy)
    try:
        return adapter.validate_json(content)
    except ValidationError as error:
        formats = [each for each in error.errors() if each["loc"] == ("format",)]
        if formats:
            written = 1 if formats[0]["type"] == "missing" else formats[0]["input"]
            rule = f"it is of format {written}, and this version reads format {RESULT_FORMAT}"
            raise InputError(f"{path}: of another version", [rule, remedy]) from None
        problems = [
            ": ".join([*filter(None, [".".join(map(str, each["loc"]))]), each["msg"]])
            for each in error.errors()
        ]
        raise InputError(f"{path}: not a result of this version", [*problems, remedy]) from None
