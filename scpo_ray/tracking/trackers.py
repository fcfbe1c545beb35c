"""Where a run's numbers and models go besides its folder: MLflow, a JSON-lines file, nowhere."""

import logging
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from scpo_ray.records import LAYERS, Layer
from scpo_ray.results import RunResult
from scpo_ray.settings.data import DataSection
from scpo_ray.settings.naming import (
    MODEL_PREFIX,
    printable,
    result_metrics,
    result_tags,
    tracked_name,
)
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.disk import write_json
from scpo_ray.storage.json_lines import append_json_lines, read_json_lines
from scpo_ray.tracking.mlflow_store import (
    check_store,
    log_batches,
    log_data,
    log_model,
    open_run,
    registered_versions,
)
from scpo_ray.tracking.notes import NOTE_TAG, run_note
from scpo_ray.tracking.opening import StoreAwayError, first_line, slow_uploads

log = logging.getLogger(__name__)

SPOOL_FILE = "mlflow_spool.jsonl"
UNSENT_FILE = "mlflow_unsent.json"
"""In the folder of a run that ended while its store could not take all of it."""

Status = Literal["FINISHED", "FAILED", "KILLED"]
_RETRY_AFTER_S = 60.0


class Tracker(Protocol):
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Records each metric at `step`, unless this run already has it at that or a later one."""

    def log_result(self, result: RunResult, run_dir: Path) -> None:
        """Records what a run found, and its model in `run_dir`; again is the same as once."""

    def log_artifact(self, path: Path) -> None:
        """Keeps a file, or every file of a folder, with the run."""

    def finish(self, status: Status) -> None:
        """Nothing is logged after it."""


@dataclass(frozen=True)
class Sweep:
    """What a run of a sweep tracks differently: below the sweep's MLflow run, without its model,
    for the sweep registers the best."""

    mlflow_run_id: str | None
    """None where the sweep is not tracked in MLflow."""
    setting: str = ""
    """Of the run that is told: the setting's values in one line."""


def start_tracker(
    config: RunConfig, run_dir: Path, sweep: Sweep | None = None, *, patient: bool = False
) -> Tracker:
    """The tracker that the config asks for; on a known `run_dir` it goes on where it stopped.

    Args:
        sweep: the one the run belongs to.
        patient: where the store is away, what is tracked waits in the run's folder.

    Raises: InputError if the store cannot be used; StoreAwayError if it is away, unless `patient`.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if config.tracking.tracker == "none":
        return SilentTracker()
    if config.tracking.tracker == "jsonl":
        return JsonLinesTracker(run_dir / "metrics.jsonl")
    try:
        client, run = open_run(
            config,
            run_dir,
            name=tracked_name(config, sweep.setting if sweep else ""),
            parent_run_id=sweep.mlflow_run_id if sweep else None,
            started_ms=_first_spooled(run_dir / SPOOL_FILE),
        )
    except StoreAwayError as error:
        if not patient:
            raise
        log.warning("%s: %s: its points wait in its folder", run_dir, error.problems[0])
        return SpoolingTracker(run_dir)
    logs_model = config.tracking.log_model and sweep is None
    return MlflowTracker(client, run, run_dir, config.data, logs_model=logs_model)


def check_tracking(config: RunConfig) -> None:
    """For a run that is about to begin: says now what would be found when its data is read.

    Raises: as `start_tracker`, where the store cannot be used.
    """
    if config.tracking.tracker == "mlflow":
        check_store(config)


def _first_spooled(spool: Path) -> int | None:
    """Unix milliseconds of the first waiting point: when a run that was never sent began."""
    return min((point["timestamp"] for point in read_json_lines(spool)), default=None)


@dataclass(frozen=True)
class RegisteredModel:
    """A version of a model in MLflow's registry.

    `run_id`: ours, as in `RunResult`. `accuracy`: by layer, of the one culture; None for a
    mixture. `created`: ISO 8601, UTC.
    """

    name: str
    version: int
    aliases: list[str]
    run_id: str
    culture: str
    method: str
    accuracy: dict[Layer, float] | None
    created: str


def list_models(uri: str) -> list[RegisteredModel]:
    """Every version of the models that runs registered, by name and then newest first.

    Raises: InputError if the store at `uri` cannot be reached.
    """
    models = [
        _registered(version, aliases)
        for version, aliases in registered_versions(uri, MODEL_PREFIX)
        if "scpo.run_id" in version.tags
    ]
    return sorted(models, key=lambda model: (model.name, -model.version))


def _registered(version: Any, aliases: list[str]) -> RegisteredModel:
    accuracy = {
        layer: float(version.tags[f"scpo.accuracy.{layer}"])
        for layer in LAYERS
        if f"scpo.accuracy.{layer}" in version.tags
    }
    return RegisteredModel(
        name=version.name,
        version=int(version.version),
        aliases=aliases,
        run_id=version.tags["scpo.run_id"],
        culture=version.tags["scpo.culture"],
        method=version.tags["scpo.method"],
        accuracy=accuracy or None,
        created=datetime.fromtimestamp(version.creation_timestamp / 1_000, UTC).isoformat(),
    )


class SilentTracker:
    """Tracks nothing: for the workers beside the first, and for `tracker: none`."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def log_result(self, result: RunResult, run_dir: Path) -> None:
        pass

    def log_artifact(self, path: Path) -> None:
        pass

    def finish(self, status: Status) -> None:
        pass


class JsonLinesTracker:
    """One JSON object a line: `step`, `time` (Unix seconds) and the metrics logged together.

    What is not a finite number is written as text ("nan", "inf"), since JSON has none. Models
    and artifacts lie in the run's folder already.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last_steps: dict[str, int] = {}
        self._last_values: dict[str, Any] = {}
        for line in read_json_lines(path):
            for name in line.keys() - {"step", "time"}:
                self._last_steps[name] = max(line["step"], self._last_steps.get(name, -1))
                self._last_values[name] = line[name]

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._write(_unseen(metrics, step, self._last_steps), step)

    def log_result(self, result: RunResult, run_dir: Path) -> None:
        # What another evaluation of the same model found is a new line.
        metrics = result_metrics(result)
        known = self._last_values
        self._write({k: v for k, v in metrics.items() if known.get(k) != v}, result.num_steps)

    def _write(self, metrics: Mapping[str, float], step: int) -> None:
        if metrics:
            numbers = {k: v if math.isfinite(v) else str(v) for k, v in metrics.items()}
            append_json_lines(self._path, [{"step": step, "time": time.time(), **numbers}])
            self._last_values |= numbers

    def log_artifact(self, path: Path) -> None:
        pass

    def finish(self, status: Status) -> None:
        pass


class SpoolingTracker:
    """For a run whose store is away at its start: points wait in its folder until it is tracked
    again (see `has_unsent`), which sends its result, its model and its artifacts too."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._last_steps: dict[str, int] = {}
        for point in read_json_lines(run_dir / SPOOL_FILE):
            self._last_steps[point["key"]] = point["step"]

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        new = _unseen(metrics, step, self._last_steps)
        append_json_lines(self._run_dir / SPOOL_FILE, _points(new, step))

    def log_result(self, result: RunResult, run_dir: Path) -> None:
        self.log(result_metrics(result), step=result.num_steps)

    def log_artifact(self, path: Path) -> None:
        pass

    def finish(self, status: Status) -> None:
        write_json(self._run_dir / UNSENT_FILE, {"status": status})


class MlflowTracker:
    """One MLflow run. A store that fails after the start costs warnings, never the training.

    Points that could not be sent wait in `mlflow_spool.jsonl` of the run's folder, with their
    times, and go out in order at the next success; what MLflow has twice with the same time it
    keeps once.
    """

    def __init__(
        self, client: Any, run: Any, run_dir: Path, data: DataSection, *, logs_model: bool
    ) -> None:
        self._client = client
        self._data = data
        self._run_id: str = run.info.run_id
        self._experiment_id: str = run.info.experiment_id
        self._logs_model = logs_model
        self._last_steps = {m.key: int(m.step) for m in run.data.to_proto().metrics}
        self._spool = run_dir / SPOOL_FILE
        # Points go out in order, so what MLflow has a later step of has been sent.
        self._pending = [
            point
            for point in read_json_lines(self._spool)
            if point["step"] > self._last_steps.get(point["key"], -1)
        ]
        for point in self._pending:
            self._last_steps[point["key"]] = point["step"]
        self._num_spooled = len(self._pending)
        self._retry_at = 0.0
        self._unsent = run_dir / UNSENT_FILE
        self._is_complete = True
        self._send_points()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        new = _unseen(metrics, step, self._last_steps)
        self._pending += _points(new, step)
        if new and time.monotonic() < self._retry_at:
            self._keep_points()
        elif new:
            self._send_points()

    def log_result(self, result: RunResult, run_dir: Path) -> None:
        self.log(result_metrics(result), step=result.num_steps)
        self._send_points()
        with self._surviving("the result"), tempfile.TemporaryDirectory() as folder:
            tags = result_tags(result) | {NOTE_TAG: printable(run_note(result))}
            log_batches(self._client, self._run_id, tags=tags)
            log_data(self._client, self._run_id, self._data, result.fingerprints["data"])
            write_json(Path(folder) / "result.json", asdict(result))
            self._client.log_artifact(self._run_id, str(Path(folder) / "result.json"))
        model_dir = run_dir / "model"
        if self._logs_model and model_dir.is_dir():
            with self._surviving("the model"), slow_uploads():
                log_model(self._client, self._experiment_id, self._run_id, model_dir, result)

    def log_artifact(self, path: Path) -> None:
        with self._surviving(str(path)), slow_uploads():
            if path.is_dir():
                self._client.log_artifacts(self._run_id, str(path), path.name)
            else:
                self._client.log_artifact(self._run_id, str(path))

    def finish(self, status: Status) -> None:
        self._send_points()
        with self._surviving(f"the status {status}"):
            self._client.set_terminated(self._run_id, status)
        if self._is_complete and not self._pending:
            self._unsent.unlink(missing_ok=True)
        else:
            write_json(self._unsent, {"status": status})

    def _send_points(self) -> None:
        try:
            log_batches(self._client, self._run_id, points=self._pending)
        except Exception as error:  # Whatever fails in a store must not end the training.
            if not self._retry_at:
                log.warning(
                    "MLflow run %s cannot be written (%s): training goes on, its points wait in %s",
                    self._run_id,
                    first_line(error),
                    self._spool,
                )
            # Each try costs seconds: not at every step.
            self._retry_at = time.monotonic() + _RETRY_AFTER_S
            self._keep_points()
            return
        if self._retry_at:
            log.info("MLflow run %s: %d waiting points sent", self._run_id, len(self._pending))
        self._pending = []
        self._num_spooled = 0
        self._retry_at = 0.0
        self._spool.unlink(missing_ok=True)

    def _keep_points(self) -> None:
        append_json_lines(self._spool, self._pending[self._num_spooled :])
        self._num_spooled = len(self._pending)

    @contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # As above; the run's folder has it all.
            self._is_complete = False
            log.warning(
                "MLflow run %s: %s could not be written (%s)",
                self._run_id,
                what,
                first_line(error),
            )


def has_unsent(run_dir: Path) -> bool:
    """Of a run that has ended: whether its MLflow store could not take all of it."""
    return any((run_dir / name).is_file() for name in (UNSENT_FILE, SPOOL_FILE))


def _points(metrics: Mapping[str, float], step: int) -> list[dict[str, Any]]:
    now = time.time_ns() // 1_000_000
    return [
        {"key": name, "value": value, "timestamp": now, "step": step}
        for name, value in metrics.items()
    ]


def _unseen(
    metrics: Mapping[str, float], step: int, last_steps: dict[str, int]
) -> dict[str, float]:
    """The metrics not yet recorded at `step` or later; `last_steps` then knows them."""
    new = {name: float(v) for name, v in metrics.items() if step > last_steps.get(name, -1)}
    last_steps.update(dict.fromkeys(new, step))
    return new
