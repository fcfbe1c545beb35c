"""An MLflow store: opened within seconds or refused, one run found again, models registered.

MLflow is imported when a store is opened, not before: commands that track nothing need none.
"""

import json
import logging
import os
import socket
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from scpo_ray.records import InputError, RunResult
from scpo_ray.settings.naming import config_params, model_name, run_name, version_tags
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.disk import read_json, write_json
from scpo_ray.storage.run_dir import TEST_PAIRS_FILE

CANDIDATE = "candidate"
NOTE_FILE = "mlflow_run.json"
"""In a run's folder: the store and the id of its MLflow run."""
CHAMPION = "champion"
_PARENT = "mlflow.parentRunId"
_EVALUATION = "scpo.evaluation_id"
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
_AT_THE_START = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
# A server answers an upload only once it has stored the file, which for weights takes longer.
_FOR_UPLOADS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "300"}
# What the logged code imports; deepspeed, ray and the like have no part in giving rewards.
_MODEL_PACKAGES = (
    "filelock mlflow numpy pandas peft pyarrow pydantic pyyaml safetensors torch tqdm transformers"
).split()


class StoreAwayError(InputError):
    """The store cannot be opened now; it may come back."""


def open_run(
    config: RunConfig,
    run_dir: Path,
    *,
    parent_run_id: str | None = None,
    started_ms: int | None = None,
) -> tuple[Any, Any]:
    """The client and this config's MLflow run, new or found again, RUNNING.

    The run's id is kept in `mlflow_run.json`; where that is lost, its tag finds it.

    Args:
        parent_run_id: the MLflow run of the sweep that a new run belongs to.
        started_ms: Unix milliseconds at which a new run began; None: now.

    Raises: StoreAwayError if the store cannot be opened; InputError for settings that differ.
    """
    uri, shown = config.mlflow_uri, _shown(config.mlflow_uri)
    note = run_dir / NOTE_FILE
    with _opening(uri):
        client = _client(uri)
        experiment_id = _experiment_id(client, config, uri)
        run = _known_run(client, note, shown, experiment_id, config.evaluation_id)
        params = config_params(config)
        changed = [
            f"{name} = {value}: was {run.data.params[name]}"
            for name, value in params.items()
            if run is not None and run.data.params.get(name, value) != value
        ]
        if changed:
            raise InputError(f"{run_dir}: settings changed since this run began", changed)
        if run is None:
            run = client.create_run(
                experiment_id,
                run_name=run_name(config),
                start_time=started_ms,
                tags={
                    "scpo.run_id": config.run_id,
                    _EVALUATION: config.evaluation_id,
                    "scpo.method": config.method,
                }
                | ({_PARENT: parent_run_id} if parent_run_id else {}),
            )
        run_id = run.info.run_id
        kept = {"uri": shown, "run_id": run_id, "evaluation_id": config.evaluation_id}
        write_json(note, kept)
        client.update_run(run_id, status="RUNNING")
        log_batches(client, run_id, params=params)
        client.log_dict(run_id, config.model_dump(mode="json"), "config.yaml")
        return client, client.get_run(run_id)


def open_sweep_run(config: RunConfig, name: str, sweep_id: str) -> tuple[Any, str]:
    """The client and the id of a sweep's MLflow run, new or found again by its tag, RUNNING.

    Args:
        config: any run of the sweep's: they share experiment and store.

    Raises: as `open_run`.
    """
    uri = config.mlflow_uri
    with _opening(uri):
        client = _client(uri)
        experiment_id = _experiment_id(client, config, uri)
        run = _tagged_run(client, experiment_id, "scpo.sweep_id", sweep_id)
        if run is None:
            run = client.create_run(
                experiment_id, run_name=name, tags={"scpo.sweep_id": sweep_id, "scpo.sweep": name}
            )
        run_id = str(run.info.run_id)
        client.update_run(run_id, status="RUNNING")
        return client, run_id


def end_open_run(config: RunConfig, run_dir: Path, status: str) -> None:
    """Gives a run that was killed its status; one that has a status, or was never opened, none."""
    run_id = noted_run_id(run_dir)
    if not run_id:
        return
    with _opening(config.mlflow_uri):
        client = _client(config.mlflow_uri)
        run = client.get_run(run_id)
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, status)


def noted_run_id(run_dir: Path) -> str:
    """The MLflow run that a run's folder names, "" where it names none."""
    return str(_note(run_dir / NOTE_FILE).get("run_id", ""))


def _note(path: Path) -> dict[str, Any]:
    try:
        note: dict[str, Any] = json.loads(read_json(path, "the run is found again by its tag"))
    except InputError:
        return {}
    return note


def find_run(config: RunConfig, run_dir: Path) -> tuple[Any, Any | None]:
    """The client and this config's MLflow run as it is, or None. Raises: as `open_run`."""
    uri = config.mlflow_uri
    with _opening(uri):
        client = _client(uri)
        experiment_id = _experiment_id(client, config, uri)
        note = run_dir / NOTE_FILE
        return client, _known_run(client, note, _shown(uri), experiment_id, config.evaluation_id)


def forget_run(config: RunConfig, run_dir: Path) -> None:
    """Deletes (as MLflow does: it can be restored there) the run that a run's folder names."""
    run_id = noted_run_id(run_dir)
    if run_id:
        with _opening(config.mlflow_uri):
            _client(config.mlflow_uri).delete_run(run_id)


def _known_run(
    client: Any, note: Path, uri: str, experiment_id: str, evaluation_id: str
) -> Any | None:
    """The MLflow run of this evaluation of a model; another evaluation of it is another run."""
    from mlflow.exceptions import MlflowException

    known = _note(note)
    if (known.get("uri"), known.get("evaluation_id")) == (uri, evaluation_id):
        try:
            run = client.get_run(known["run_id"])
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            if run.info.lifecycle_stage == "active":
                return run
    return _tagged_run(client, experiment_id, _EVALUATION, evaluation_id)


def _tagged_run(client: Any, experiment_id: str, tag: str, value: str) -> Any | None:
    found = client.search_runs(
        [experiment_id],
        f"tags.`{tag}` = '{value}'",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    return found[0] if found else None


def _experiment_id(client: Any, config: RunConfig, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(config.experiment)
    if experiment is None:
        # A server knows where its artifacts go; a database alone does not.
        artifacts = config.output_dir.resolve() / "mlartifacts"
        location = None if _scheme(uri) in ("http", "https", "databricks") else artifacts.as_uri()
        try:
            return str(client.create_experiment(config.experiment, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = client.get_experiment_by_name(config.experiment)
    if experiment.lifecycle_stage != "active":
        raise InputError(
            f"experiment = {config.experiment}: deleted in MLflow at {_shown(uri)}",
            ["restore it there or choose another name"],
        )
    return str(experiment.experiment_id)


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    # MLflow reads the variable only where nothing has imported it before.
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _opening(uri: str) -> Iterator[None]:
    """Whatever fails inside is the store's fault or its URI's, and is found within seconds."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    with store_errors(uri), _environment(_AT_THE_START):
        if _scheme(uri) == "sqlite":
            with _first_use_of_database(uri):
                yield
        else:
            _find_database_server(uri)
            yield


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """What a store raises inside becomes a StoreAwayError that names its URI."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # Stores raise their drivers' own errors.
        raise StoreAwayError(
            f"tracking.uri = {_shown(uri)}: MLflow cannot be used there",
            [first_line(error).replace(uri, _shown(uri))],
        ) from error


@contextmanager
def _first_use_of_database(uri: str) -> Iterator[None]:
    """Alone in a SQLite file: processes that open a new one together collide."""
    path = _database_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    # MLflow would try for 100 seconds to open what is no database.
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA schema_version")
    with FileLock(path.with_name(f"{path.name}.lock")):
        yield


def _find_database_server(uri: str) -> None:
    """Raises OSError soon where no server answers: MLflow would try for 100 seconds."""
    default_port = {"postgresql": 5_432, "mysql": 3_306, "mssql": 1_433}.get(_scheme(uri))
    parts = urlsplit(uri)
    if default_port and parts.hostname:
        with socket.create_connection((parts.hostname, parts.port or default_port), timeout=5):
            pass


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


def log_batches(
    client: Any,
    run_id: str,
    *,
    points: Sequence[Mapping[str, Any]] = (),
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Sends any number of points, params or tags, as many at a time as MLflow takes.

    Args:
        points: each a metric's `key`, `value`, `timestamp` (Unix milliseconds) and `step`.
    """
    from mlflow.entities import Metric, Param, RunTag

    for kind, entries, size in (
        ("metrics", [Metric(**point) for point in points], 1_000),
        ("params", [Param(*param) for param in (params or {}).items()], 100),
        ("tags", [RunTag(*tag) for tag in (tags or {}).items()], 100),
    ):
        for start in range(0, len(entries), size):
            client.log_batch(run_id, **{kind: entries[start : start + size]})


@contextmanager
def slow_uploads() -> Iterator[None]:
    """Requests inside may take minutes, as those that carry weights do."""
    with _environment(_FOR_UPLOADS):
        yield


def open_models(uri: str, name_prefix: str) -> tuple[Any, dict[str, dict[str, int]]]:
    """The client, and of each model whose name begins so its aliases with their versions.

    Raises: InputError if the store at `uri` cannot be reached, or is a database not there yet.
    """
    if _scheme(uri) == "sqlite" and not _database_path(uri).is_file():
        raise InputError(f"{_shown(uri)}: no such database: nothing has been tracked there")
    with _opening(uri):
        client = _client(uri)
        # A search for versions leaves their aliases empty.
        models = _all_pages(client.search_registered_models, f"name LIKE '{name_prefix}%'")
    return client, {
        model.name: {alias: int(number) for alias, number in model.aliases.items()}
        for model in models
    }


def registered_versions(uri: str, name_prefix: str) -> list[tuple[Any, list[str]]]:
    """MLflow's versions of the models whose names begin so, each with its aliases.

    Raises: as `open_models`.
    """
    client, aliases = open_models(uri, name_prefix)
    with store_errors(uri):
        versions = _all_pages(client.search_model_versions, f"name LIKE '{name_prefix}%'")
    return [
        (
            v,
            [
                alias
                for alias, number in aliases.get(v.name, {}).items()
                if number == int(v.version)
            ],
        )
        for v in versions
    ]


def _all_pages(search: Callable[..., Any], pattern: str) -> list[Any]:
    page = search(pattern)
    found = list(page)
    while page.token:
        page = search(pattern, page_token=page.token)
        found += page
    return found


def log_model(client: Any, experiment_id: str, run_id: str, folder: Path, result: RunResult) -> Any:
    """Logs an exported folder as a pyfunc model from code and registers it; again is as once.

    The run's test pairs, which lie beside the folder, are logged first: without them the version
    could not be compared with a later one.

    Returns: MLflow's version.
    """
    if (folder.parent / TEST_PAIRS_FILE).is_file():
        client.log_artifact(run_id, str(folder.parent / TEST_PAIRS_FILE))
    model = _logged_model(client, run_id) or _send_model(
        client, experiment_id, run_id, folder, result
    )
    return _register(client, run_id, model, result)


def _logged_model(client: Any, run_id: str) -> Any | None:
    """The model that an earlier call logged whole, if one did."""
    from mlflow.entities import LoggedModelStatus

    outputs = client.get_run(run_id).outputs
    for output in outputs.model_outputs if outputs else []:
        model = client.get_logged_model(output.model_id)
        if model.status == LoggedModelStatus.READY:
            return model
    return None


def _send_model(
    client: Any, experiment_id: str, run_id: str, folder: Path, result: RunResult
) -> Any:
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    model = client.create_logged_model(
        experiment_id, model_name(result), run_id, tags=version_tags(result)
    )
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            written = Path(temporary) / "model"
            _save_pyfunc(written, folder, run_id, model)
            client.log_model_artifacts(model.model_id, str(written))
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, result.num_steps)])
    except BaseException:
        client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
        raise
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _save_pyfunc(path: Path, folder: Path, run_id: str, model: Any) -> None:
    """Writes the MLflow model: weights, this package's code, signature, exact requirements.

    Not `mlflow.pyfunc.log_model`: it needs MLflow's global state, puts the model into the
    default experiment where no run is active, and loads the weights a second time to check them.
    """
    import mlflow
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    package = Path(__file__).parents[1]
    prompt, response = ColSpec(DataType.string, "prompt"), ColSpec(DataType.string, "response")
    mlflow.pyfunc.save_model(
        path=str(path),
        python_model=str(Path(__file__).with_name("mlflow_model.py")),
        artifacts={"model": str(folder)},
        code_paths=[str(package)],
        signature=ModelSignature(
            inputs=Schema([prompt, response]),
            outputs=Schema([ColSpec(DataType.float, "reward")]),
        ),
        input_example=pd.DataFrame(
            {"prompt": ["What should I cook tonight?"], "response": ["A pot of lentil soup."]}
        ),
        # "+cpu" and the like name a build that package indexes do not have.
        pip_requirements=[
            f"{name}=={metadata.version(name).partition('+')[0]}" for name in _MODEL_PACKAGES
        ],
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            model_uuid=model.model_id,
            run_id=run_id,
            model_id=model.model_id,
        ),
    )


def _register(client: Any, run_id: str, model: Any, result: RunResult) -> Any:
    """One version per run, and the alias `candidate` on the newest that is no champion.

    A repeated call moves nothing back: not to a version before the candidate's, nor, where there
    is none, to the champion or one before it.
    """
    from mlflow.exceptions import MlflowException

    name = model_name(result)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    version = next((v for v in versions if v.name == name), None)
    if version is None:
        version = client.create_model_version(
            name,
            source=model.artifact_location,
            run_id=run_id,
            tags=version_tags(result),
            model_id=model.model_id,
        )
    aliases = client.get_registered_model(name).aliases
    newest = int(aliases.get(CANDIDATE) or aliases.get(CHAMPION) or 0)
    if int(version.version) > newest and str(version.version) != str(aliases.get(CHAMPION)):
        client.set_registered_model_alias(name, CANDIDATE, version.version)
    return version


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]


def _scheme(uri: str) -> str:
    return urlsplit(uri).scheme.partition("+")[0]


def _database_path(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def _shown(uri: str) -> str:
    """The URI without a password, which must not get into logs and files."""
    password = urlsplit(uri).password
    return uri.replace(f":{password}@", ":***@") if password else uri
