"""An MLflow store opened: within seconds or refused; its SQLite database whole or not there.

MLflow is imported when a store is opened, not before: commands that track nothing need none.
"""

import logging
import os
import re
import shutil
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from scpo_ray.records import InputError
from scpo_ray.settings.shown import password_fault
from scpo_ray.storage.disk import sync

log = logging.getLogger(__name__)

_DEFAULTS = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # By default a dead server blocks every call for four minutes.
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Requirements are given; a lock file in the working directory must not replace them.
    "MLFLOW_UV_AUTO_DETECT": "false",
}
_AT_THE_START = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "PGCONNECT_TIMEOUT": "5",
}
# A server answers an upload only once it has stored the file, which for weights takes longer.
_FOR_UPLOADS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "300"}
_REMEDIES = {
    r"error code 40[13]\b": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD give the user",
    r"password authentication failed|no password supplied": "PGPASSWORD gives the password",
}


class StoreAwayError(InputError):
    """The store cannot be opened now; it may come back."""


@contextmanager
def opening(uri: str) -> Iterator[None]:
    """Whatever fails inside is the store's fault or its URI's, and is found within seconds."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    check_uri(uri)
    with store_errors(uri), _environment(_AT_THE_START):
        if scheme_of(uri) == "sqlite":
            with _first_use_of_database(uri):
                yield
        else:
            _find_database_server(uri)
            yield


def check_uri(uri: str) -> None:
    """Raises: InputError if the URI holds a password: it is shown, and kept in a run's folder."""
    fault = password_fault(uri, is_uri=True)
    if fault is not None:
        raise InputError(f"the MLflow URI {fault}")


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """What a store raises inside becomes a StoreAwayError that names its URI."""
    title = f"tracking.uri = {uri}: MLflow cannot be used there"
    try:
        yield
    except InputError:
        raise
    except ModuleNotFoundError as error:
        # Not away: it stays so until somebody installs something.
        raise InputError(title, [f"its driver is not installed: {first_line(error)}"]) from error
    except Exception as error:  # Stores raise their drivers' own errors.
        problems = [first_line(error)]
        problems += [said for found, said in _REMEDIES.items() if re.search(found, str(error))]
        raise StoreAwayError(title, problems) from error


def open_client(uri: str) -> Any:
    from mlflow import MlflowClient

    _set_logging_level()
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _set_logging_level() -> None:
    """MLflow reads the variable only where nothing has imported it before."""
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())


@contextmanager
def slow_uploads() -> Iterator[None]:
    """Requests inside may take minutes, as those that carry weights do."""
    with _environment(_FOR_UPLOADS):
        yield


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]


def scheme_of(uri: str) -> str:
    """Of "postgresql+psycopg2://host/db": postgresql."""
    return urlsplit(uri).scheme.partition("+")[0]


def database_path(uri: str) -> Path:
    """The file of a SQLite database."""
    from sqlalchemy.engine import make_url

    return Path(make_url(uri).database or "")


@contextmanager
def _first_use_of_database(uri: str) -> Iterator[None]:
    """Alone in a SQLite file, which is whole: processes that open a new one together collide."""
    path = database_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        _make_whole(path)
        yield


def _make_whole(path: Path) -> None:
    """Makes MLflow's tables aside, or brings those of an older MLflow up to date, and puts the
    file in place: a stop among the steps, which cannot be repeated, would ruin it for ever.

    Raises: InputError if the file holds tables that cannot be brought up to date.
    """
    if not path.exists():
        log.info("making MLflow's database %s: some seconds", path)
    from mlflow.store.db import utils
    from sqlalchemy import create_engine
    from sqlalchemy.engine import URL

    _set_logging_level()
    tables, version = _tables_and_version(path)
    if version == utils._get_latest_schema_revision():
        return
    part = path.with_name(f".{path.name}.part")
    engine = create_engine(URL.create("sqlite", database=str(part)))
    try:
        _remove(part)
        if not tables:
            utils._initialize_tables(engine)
        else:
            shutil.copyfile(path, part)
            try:
                utils._upgrade_db(engine)
            except Exception as error:  # Alembic raises whatever the database does.
                raise InputError(
                    f"{path}: not a whole database of this MLflow",
                    [first_line(error), _what_to_do(path, tables)],
                ) from error
        engine.dispose()
        sync(part)
        os.replace(part, path)
        sync(path.parent)
    finally:
        engine.dispose()
        _remove(part)


def _tables_and_version(path: Path) -> tuple[set[str], str | None]:
    """Of a SQLite file: its tables, and MLflow's mark of their version; nothing without one."""
    if not path.exists():
        return set(), None
    # MLflow would try for 100 seconds to open what is no database.
    with closing(sqlite3.connect(path)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = {name for (name,) in names}
        found = None
        if "alembic_version" in tables:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return tables, found[0] if found else None


def _what_to_do(path: Path, tables: set[str]) -> str:
    num_runs = 0
    if "runs" in tables:
        with closing(sqlite3.connect(path)) as connection:
            num_runs = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
    if num_runs == 0:
        return "a process was stopped while it was made; it holds no run: delete it"
    return (
        f"it holds {num_runs} runs: open it with the MLflow that made it, put a copy of it back, "
        "or move it away (the runs' folders have all results)"
    )


def _remove(part: Path) -> None:
    for name in (part.name, f"{part.name}-journal", f"{part.name}-wal", f"{part.name}-shm"):
        part.with_name(name).unlink(missing_ok=True)


def _find_database_server(uri: str) -> None:
    """Raises soon where no server answers or lets us in: MLflow would try for 100 seconds."""
    default_port = {"postgresql": 5_432, "mysql": 3_306, "mssql": 1_433}.get(scheme_of(uri))
    if default_port is None:
        return
    from sqlalchemy import create_engine

    # First of all: it raises where the driver is missing.
    engine = create_engine(uri)
    parts = urlsplit(uri)
    if parts.hostname:
        with socket.create_connection((parts.hostname, parts.port or default_port), timeout=5):
            pass
    try:
        engine.connect().close()
    finally:
        engine.dispose()


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
