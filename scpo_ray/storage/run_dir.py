"""What a run leaves on disk and where: its folder, its result."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from scpo_ray.records import ComparisonResult, InputError, RunResult
from scpo_ray.storage.disk import disk_errors, inside, whole_file, write_json
from scpo_ray.storage.remote import RemoteFolder
from scpo_ray.storage.stores import ScoreStore, TokenStore, WeightStore

log = logging.getLogger(__name__)

COMPARISON_FILE = "comparison.json"
TEST_PAIRS_FILE = "test_pairs.parquet"
TEST_OPINIONS_FILE = "test_opinions.parquet"
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
        self.cache = cache
        self.remote = remote
        self.token_store = TokenStore(cache / "tokens")
        self.score_store = ScoreStore(cache / "scores")
        self.feature_store = ScoreStore(cache / "features")
        self.predictor_store = WeightStore(cache / "predictors")

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
        return self.path / TEST_PAIRS_FILE

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

    def wait_until_free(self) -> None:
        """Returns once no other process is running this run."""
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
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
                with whole_file(inside(self.path, name)) as part:
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

    def save_test_opinions(self, columns: dict[str, Any]) -> None:
        with whole_file(self.path / TEST_OPINIONS_FILE) as part:
            pq.write_table(pa.table(columns), part)


def load_result(path: Path) -> RunResult:
    """The result in a run's folder. Raises: InputError if there is none or it is damaged."""
    result: RunResult = load_document(path / "result.json", _RESULT)
    return result


def load_comparison_result(path: Path) -> ComparisonResult:
    """The comparison in an experiment's folder. Raises: as `load_result`."""
    result: ComparisonResult = load_document(path / COMPARISON_FILE, _COMPARISON)
    return result


def save_comparison_result(path: Path, result: ComparisonResult) -> None:
    write_json(path / COMPARISON_FILE, asdict(result))


def load_test_pairs(path: Path) -> dict[str, NDArray[Any]]:
    """Columns of a run's `test_pairs.parquet` as arrays."""
    return _load_columns(path / TEST_PAIRS_FILE)


def load_test_opinions(path: Path) -> dict[str, NDArray[Any]] | None:
    """Columns of a run's `test_opinions.parquet`; None where its data held no opinions.

    `culture`, `cluster` (the question), and "<predictor>/<options>/<base>" -> (D,) similarity to
    each test distribution, NaN where there is none.
    """
    file = path / TEST_OPINIONS_FILE
    return _load_columns(file) if file.exists() else None


def _load_columns(file: Path) -> dict[str, NDArray[Any]]:
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{file}: cannot be read", [str(error).splitlines()[0]]) from None
    return {name: table[name].to_numpy() for name in table.column_names}


def load_document(path: Path, adapter: TypeAdapter[Any]) -> Any:
    """A record in a JSON file. Raises: InputError if it cannot be read or is none."""
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
