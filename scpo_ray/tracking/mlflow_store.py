"""An MLflow store: one run found again, models registered."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scpo_ray.records import InputError
from scpo_ray.results import RunResult
from scpo_ray.settings.data import DataSection
from scpo_ray.settings.documents import write_yaml
from scpo_ray.settings.naming import (
    config_params,
    model_name,
    printable,
    version_tags,
)
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.disk import read_json, write_json
from scpo_ray.storage.run_dir import DEV_PAIRS_FILE, TEST_PAIRS_FILE
from scpo_ray.tracking.opening import (
    check_uri,
    database_path,
    open_client,
    opening,
    scheme_of,
    store_errors,
)
from scpo_ray.tracking.pyfunc import save_pyfunc

CANDIDATE = "candidate"
NOTE_FILE = "mlflow_run.json"
"""In a run's folder: the store and the id of its MLflow run."""
CHAMPION = "champion"
_PARENT = "mlflow.parentRunId"
_DIGEST_LENGTH = 36
_MAX_SOURCE = 60_000
_EVALUATION = "scpo.evaluation_id"
_KIND = "mlflow.experimentKind"
"""What MLflow's pages open an experiment as: runs and their metrics, not an agent's traces."""


def open_run(
    config: RunConfig,
    run_dir: Path,
    *,
    name: str,
    parent_run_id: str | None = None,
    started_ms: int | None = None,
) -> tuple[Any, Any]:
    """The client and this config's MLflow run, new or found again, RUNNING.

    The run's id is kept in `mlflow_run.json`; where that is lost, its tag finds it.

    Args:
        name: of a new run.
        parent_run_id: the MLflow run of the sweep that a new run belongs to.
        started_ms: Unix milliseconds at which a new run began; None: now.

    Raises: StoreAwayError if the store cannot be opened.
    """
    uri, note = config.mlflow_uri, run_dir / NOTE_FILE
    with opening(uri):
        client = open_client(uri)
        experiment_id = _experiment_id(client, config, uri)
        run = _known_run(client, note, uri, experiment_id, config.evaluation_id)
        params = config_params(config)
        if run is None:
            run = client.create_run(
                experiment_id,
                run_name=name,
                start_time=started_ms,
                tags={
                    "scpo.run_id": config.run_id,
                    _EVALUATION: config.evaluation_id,
                    "scpo.method": config.method,
                }
                | ({_PARENT: parent_run_id} if parent_run_id else {}),
            )
        run_id = run.info.run_id
        kept = {"uri": uri, "run_id": run_id, "evaluation_id": config.evaluation_id}
        write_json(note, kept)
        client.update_run(run_id, status="RUNNING")
        log_batches(client, run_id, params=params)
        client.log_text(run_id, write_yaml(config.model_dump(mode="json")), "config.yaml")
        return client, client.get_run(run_id)


def check_store(config: RunConfig) -> None:
    """Raises: StoreAwayError or InputError, within seconds, if no run can be tracked there."""
    with opening(config.mlflow_uri):
        _experiment_id(open_client(config.mlflow_uri), config, config.mlflow_uri)


def open_run_of_runs(config: RunConfig, name: str, tags: Mapping[str, str]) -> tuple[Any, str]:
    """The client and the id of a sweep's or a comparison's MLflow run, RUNNING.

    Args:
        config: any of its runs': they share experiment and store.
        name: of a new run.
        tags: of a new run; the first one finds it again.

    Raises: as `open_run`.
    """
    uri = config.mlflow_uri
    with opening(uri):
        client = open_client(uri)
        experiment_id = _experiment_id(client, config, uri)
        run = _tagged_run(client, experiment_id, *next(iter(tags.items())))
        if run is None:
            run = client.create_run(experiment_id, run_name=name, tags=dict(tags))
        run_id = str(run.info.run_id)
        client.update_run(run_id, status="RUNNING")
        return client, run_id


def end_open_run(config: RunConfig, run_dir: Path, status: str) -> None:
    """Gives a run that was killed its status; one that has a status, or was never opened, none."""
    run_id = noted_run_id(run_dir)
    if not run_id:
        return
    with opening(config.mlflow_uri):
        client = open_client(config.mlflow_uri)
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
    with opening(uri):
        client = open_client(uri)
        experiment_id = _experiment_id(client, config, uri)
        note = run_dir / NOTE_FILE
        return client, _known_run(client, note, uri, experiment_id, config.evaluation_id)


def forget_run(config: RunConfig, run_dir: Path) -> None:
    """Deletes (as MLflow does: it can be restored there) the run that a run's folder names."""
    run_id = noted_run_id(run_dir)
    if run_id:
        with opening(config.mlflow_uri):
            open_client(config.mlflow_uri).delete_run(run_id)


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
        location = None if scheme_of(uri) in ("http", "https", "databricks") else artifacts.as_uri()
        try:
            return str(
                client.create_experiment(
                    config.experiment,
                    artifact_location=location,
                    tags={_KIND: "custom_model_development"},
                )
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = client.get_experiment_by_name(config.experiment)
    if experiment.lifecycle_stage != "active":
        raise InputError(
            f"experiment = {config.experiment}: deleted in MLflow at {uri}",
            ["restore it there or choose another name"],
        )
    return str(experiment.experiment_id)


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


def log_data(client: Any, run_id: str, data: DataSection, fingerprint: str) -> None:
    """Names the data that a run was trained and tested on; again is as once."""
    from mlflow.entities import Dataset, DatasetInput

    source = json.dumps(data.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)
    entity = Dataset(
        name=data.source,
        digest=fingerprint[:_DIGEST_LENGTH],
        source_type="scpo_ray",
        source=printable(source)[:_MAX_SOURCE],
    )
    client.log_inputs(run_id, [DatasetInput(entity)])


def open_models(uri: str, name_prefix: str) -> tuple[Any, dict[str, dict[str, int]]]:
    """The client, and of each model whose name begins so its aliases with their versions.

    Raises: InputError if the store at `uri` cannot be reached, or is a database not there yet.
    """
    check_uri(uri)
    if scheme_of(uri) == "sqlite" and not database_path(uri).is_file():
        raise InputError(f"{uri}: no such database: nothing has been tracked there")
    with opening(uri):
        client = open_client(uri)
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

    The run's dev and test pairs, which lie beside the folder, are logged first: without them the
    version could not be compared with a later one.

    Returns: MLflow's version.
    """
    for name in (DEV_PAIRS_FILE, TEST_PAIRS_FILE):
        if (folder.parent / name).is_file():
            client.log_artifact(run_id, str(folder.parent / name))
    model = _logged_model(client, run_id) or _send_model(
        client, experiment_id, run_id, folder, result
    )
    return _register(client, run_id, model, result)


def model_folder(version: Any, uri: str, downloads: Path) -> Path:
    """The exported folder in a registered version.

    Args:
        downloads: where it is fetched to, unless the store keeps it on this machine's disk.
    """
    import mlflow
    from mlflow.models import Model

    # Without a destination, a folder on this machine is named and not copied.
    local = scheme_of(version.source) in ("", "file")
    target = None if local else str(downloads / f"{version.name}-{version.version}")
    folder = Path(
        mlflow.artifacts.download_artifacts(version.source, dst_path=target, tracking_uri=uri)
    )
    artifacts = Model.load(str(folder)).flavors["python_function"]["artifacts"]
    return folder / str(artifacts["model"]["path"])


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
        # Named as what a killed writer leaves, so that the run's next holder removes it.
        beside = tempfile.TemporaryDirectory(dir=folder.parent, prefix=".mlflow-", suffix=".part")
        with beside as temporary:
            written = Path(temporary) / "model"
            save_pyfunc(written, folder, run_id, model, result)
            client.log_model_artifacts(model.model_id, str(written))
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, result.num_steps)])
    except BaseException:
        client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
        raise
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


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
