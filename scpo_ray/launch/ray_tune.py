"""A sweep's trials under Ray Tune: which process runs what when, and which is stopped early."""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import optuna
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.optuna import OptunaSearch

from scpo_ray.launch.ray_cluster import (
    check_resources,
    connect,
    is_one_machine,
    room_for,
    set_defaults,
    stand_where,
    worker_resources,
)
from scpo_ray.launch.sweep_trial import (
    TrialFunction,
    TrialJob,
    failed,
    layer_objectives,
    suggested_jobs,
)
from scpo_ray.methods.task import Midway
from scpo_ray.records import InputError, Layer
from scpo_ray.settings.run import RunConfig
from scpo_ray.settings.section import Section
from scpo_ray.settings.sweep import LogUniform, RandInt, SweepConfig, Uniform
from scpo_ray.sweep.records import TrialRecord
from scpo_ray.sweep.space import job_objective, run_objective, search_space
from scpo_ray.tracking.mlflow_store import noted_run_id
from scpo_ray.tracking.trackers import Sweep

log = logging.getLogger(__name__)

_DEFAULTS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # What a sweep is resumed from is its own: Tune's snapshots would only cost time.
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    # Ctrl-C is ours: it leaves a sweep that goes on.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
_DRIVER_MEMORY = 1e6
_OBJECTIVE, _STEP = "objective", "step"
_STUDY = "sweep"
BOTH_LAYERS: tuple[Layer, ...] = ("all", "agreed")
"""What a search for two objectives at once is told of a setting."""


@dataclass(frozen=True)
class Searched:
    """What an adaptive search knows already: suggestions and what they reached."""

    suggestions: list[dict[str, Any]]
    values: list[tuple[float, ...]]
    """Of each suggestion: the objective; or `all` and `agreed`."""
    num_known: int
    """Suggestions made, those among them that reached nothing."""


@dataclass(frozen=True)
class _Payload:
    """What every trial's process is given once."""

    sweep: str
    known_cultures: tuple[str, ...]
    tracked: Sweep
    working_dir: str
    run_trial: TrialFunction


def join(sweep: SweepConfig) -> int:
    """Connects to the cluster; how many trials run at once.

    That is what there is room for now. Where machines are waited for, it is `max_concurrent`:
    what waits is what an autoscaler adds them for.

    Raises: InputError at once if it cannot hold one trial, or if trials on several machines would
    write one SQLite file.
    """
    connect(sweep.run)
    waits = sweep.run.launch.wait_for_resources
    each = check_resources(one_trial(sweep))
    in_file = sweep.run.tracking.tracker == "mlflow" and sweep.run.mlflow_uri.startswith("sqlite")
    if in_file and (waits or not is_one_machine()):
        raise InputError(
            f"tracking.uri = {sweep.run.mlflow_uri}: a SQLite file is for one machine, and trials "
            "would write it from several",
            ["start an MLflow server and name it in run.tracking.uri (cluster/README.md)"],
        )
    room = max(1, room_for(each) // sweep.resources.workers)
    if waits and sweep.max_concurrent:
        return sweep.max_concurrent
    return min(room, sweep.max_concurrent or room)


def one_trial(sweep: SweepConfig) -> RunConfig:
    """A run with what every trial reserves."""
    resources = sweep.resources
    launch = sweep.run.launch.model_copy(
        update={"cpus_per_worker": resources.cpus, "gpus_per_worker": resources.gpus}
    )
    train = sweep.run.train.model_copy(update={"num_workers": resources.workers})
    return sweep.run.model_copy(update={"launch": launch, "train": train})


def run_jobs(
    sweep: SweepConfig,
    jobs: Sequence[TrialJob],
    tracked: Sweep,
    run_trial: TrialFunction,
    on_record: Callable[[TrialRecord], None],
    *,
    at_once: int,
) -> None:
    """Runs every job.

    Args:
        at_once: how many at a time, as `join` says.
        on_record: told of each trial as it ends, in this process; not of those that the budget's
            hours left in the middle.

    Raises: InputError if Tune itself gives up.
    """
    follow = _Follow(sweep, on_record)
    _fit(
        sweep,
        _Payload(sweep.model_dump_json(), (), tracked, os.getcwd(), run_trial),
        follow,
        at_once,
        {"job": tune.grid_search([_packed(job) for job in jobs])},
        metric=_OBJECTIVE,
        mode=sweep.objective.mode,
    )


def search(
    sweep: SweepConfig,
    known_cultures: Sequence[str],
    found: Searched,
    tracked: Sweep,
    run_trial: TrialFunction,
    on_record: Callable[[TrialRecord], None],
    on_suggestion: Callable[[int, Mapping[str, Any]], None],
    *,
    at_once: int,
) -> None:
    """Runs `search.num_draws` settings, each chosen after what is known of those before it.

    Args:
        found: what earlier commands have found out.
        on_record, at_once: as for `run_jobs`.
        on_suggestion: told of a suggestion and its number before it is run.

    Raises: as `run_jobs`.
    """
    follow = _Follow(sweep, on_record, on_suggestion, num_known=found.num_known)
    _fit(
        sweep,
        _Payload(sweep.model_dump_json(), tuple(known_cultures), tracked, os.getcwd(), run_trial),
        follow,
        at_once,
        None,
        search_alg=_search_algorithm(sweep, found),
        num_samples=(sweep.search.num_draws or 0) - found.num_known,
    )


def _fit(
    sweep: SweepConfig,
    payload: _Payload,
    follow: "_Follow",
    at_once: int,
    space: dict[str, Any] | None,
    **how: Any,
) -> None:
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name in ("ray.tune", "ray.train", "optuna"):
        # What ends a trial is said by us, in a line.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    each = worker_resources(one_trial(sweep))
    resources = {"cpu": each.cpus} | ({"gpu": each.gpus} if each.gpus else {})
    if sweep.resources.workers > 1:
        # The trial's own process starts workers and waits: if it held a CPU, they might have none.
        resources = {"memory": _DRIVER_MEMORY}
    storage = (sweep.run.output_dir / "cache" / "ray").resolve()
    name = f"sweep-{uuid4().hex[:8]}"
    hours = sweep.budget.hours
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_tune_trial, payload=payload), resources),
        param_space=space,
        tune_config=tune.TuneConfig(
            scheduler=_scheduler(sweep),
            max_concurrent_trials=at_once,
            time_budget_s=hours * 3_600 if hours else None,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
            **how,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=tune.FailureConfig(max_failures=sweep.max_trial_failures),
            callbacks=[follow],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except tune.TuneError as error:
        raise InputError("Ray Tune gave up", [str(error).strip().splitlines()[-1]]) from None
    finally:
        shutil.rmtree(storage / name, ignore_errors=True)


def _search_algorithm(sweep: SweepConfig, searched: Searched) -> Any:
    space = OptunaSearch.convert_search_space(
        {name: _tune_domain(domain) for name, domain in search_space(sweep).items()}
    )
    metric: Any = _OBJECTIVE
    mode: Any = sweep.objective.mode
    directions = ["maximize" if mode == "max" else "minimize"]
    if sweep.search.by == "tpe-all-agreed":
        metric, mode, directions = list(BOTH_LAYERS), ["max", "max"], ["maximize", "maximize"]
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name=_STUDY, directions=directions)
    # Not by Ray's `evaluated_rewards`, which know one objective alone.
    for suggestion, values in zip(searched.suggestions, searched.values, strict=True):
        study.add_trial(
            optuna.trial.create_trial(params=suggestion, distributions=space, values=values)
        )
    return OptunaSearch(
        space=space,
        metric=metric,
        mode=mode,
        study_name=_STUDY,
        storage=storage,
        # What is suggested after a stop is drawn anew, not what was drawn before it.
        seed=sweep.search.seed + searched.num_known,
    )


def _tune_domain(domain: Section | int) -> Any:
    match domain:
        case int():
            return tune.choice(list(range(domain)))
        case Uniform():
            return tune.uniform(*domain.uniform)
        case LogUniform():
            return tune.loguniform(*domain.loguniform)
        case RandInt():
            return tune.randint(domain.randint[0], domain.randint[1] + 1)
    raise TypeError(f"{type(domain).__name__} is not searched")


def _scheduler(sweep: SweepConfig) -> Any:
    scheduler = sweep.scheduler
    if scheduler.by == "none":
        return None
    return AsyncHyperBandScheduler(
        time_attr=_STEP,
        # A trial's own last report ends it, not the scheduler.
        max_t=10**9,
        grace_period=scheduler.first_steps,
        reduction_factor=scheduler.reduction_factor,
        brackets=3 if scheduler.by == "hyperband" else 1,
    )


def rungs(sweep: SweepConfig, max_steps: int) -> frozenset[int]:
    """Steps after which a trial is compared; none at its end, which is its result."""
    if sweep.scheduler.by == "none":
        return frozenset()
    steps, step = [], sweep.scheduler.first_steps
    while step < max_steps:
        steps.append(step)
        step *= sweep.scheduler.reduction_factor
    return frozenset(steps)


def _tune_trial(config: dict[str, Any], payload: _Payload) -> None:
    """What Ray runs in a trial's process, which is then used for the next trial."""
    set_defaults()
    stand_where(payload.working_dir)
    logging.getLogger("scpo_ray").setLevel(logging.ERROR)
    sweep = SweepConfig.model_validate_json(payload.sweep)
    if "job" in config:
        jobs = [_unpacked(config["job"])]
    else:
        try:
            jobs = suggested_jobs(sweep, config, payload.known_cultures)
        except InputError:
            jobs = []  # A setting that no run can have, as the driver has said.
    records = []
    for job in jobs:
        steps = rungs(sweep, job.config.train.max_steps)
        midway = Midway(steps, _teller(sweep, job.known.culture))
        records.append(payload.run_trial(job, sweep.objective, payload.tracked, midway))
    tune.report(
        {
            **_reached(sweep, records),
            _STEP: max((record.num_steps for record in records), default=0),
            "records": [asdict(record) for record in records],
        }
    )


def _packed(job: TrialJob) -> str:
    return json.dumps([job.config.model_dump(mode="json"), asdict(job.known), job.setting])


def _unpacked(text: str) -> TrialJob:
    config, known, setting = json.loads(text)
    return TrialJob(RunConfig.model_validate(config), TrialRecord(**known), setting)


def _teller(sweep: SweepConfig, culture: str) -> Callable[[int, dict[str, dict[str, float]]], None]:
    def tell(step: int, accuracies: dict[str, dict[str, float]]) -> None:
        value = run_objective(accuracies, sweep.objective, culture)
        if value is not None:
            tune.report({_OBJECTIVE: value, _STEP: step})

    return tell


def _reached(sweep: SweepConfig, records: Sequence[TrialRecord]) -> dict[str, float]:
    """What a search is told of a job: NaN where a run of it has no number."""
    reached = {_OBJECTIVE: job_objective([(r.culture, r.objective) for r in records], sweep)}
    if sweep.search.by == "tpe-all-agreed":
        for layer in BOTH_LAYERS:
            numbers = layer_objectives(records, sweep.objective, layer)
            reached[layer] = job_objective(numbers, sweep)
    return {name: math.nan if value is None else value for name, value in reached.items()}


class _Follow(tune.Callback):  # type: ignore[misc]
    """Tune's events, in the driver, as what became of each trial."""

    def __init__(
        self,
        sweep: SweepConfig,
        on_record: Callable[[TrialRecord], None],
        on_suggestion: Callable[[int, Mapping[str, Any]], None] | None = None,
        *,
        num_known: int = 0,
    ) -> None:
        self._on_record = on_record
        self._on_suggestion = on_suggestion
        self._next_number = num_known
        self._numbers: dict[str, int] = {}
        self._last: dict[str, dict[str, Any]] = {}
        hours = sweep.budget.hours
        self._deadline = time.monotonic() + hours * 3_600 if hours else math.inf

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self._on_suggestion is not None and trial.trial_id not in self._numbers:
            self._numbers[trial.trial_id] = self._next_number
            self._on_suggestion(self._next_number, trial.config)
            self._next_number += 1

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._last[trial.trial_id] = {name: result.get(name) for name in (_OBJECTIVE, _STEP)}
        for record in result.get("records", ()):
            self._tell(trial, TrialRecord(**record))
            self._last.pop(trial.trial_id, None)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        last = self._last.pop(trial.trial_id, None)
        if last is None or time.monotonic() >= self._deadline:
            return
        # Ended by the scheduler, after what it was told midway.
        for known in self._known(trial):
            self._tell(
                trial,
                replace(
                    known,
                    state="stopped",
                    objective=last[_OBJECTIVE],
                    num_steps=last[_STEP],
                    mlflow_run_id=noted_run_id(Path(known.path)),
                    error=f"stopped by the scheduler after step {last[_STEP]}",
                ),
            )

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        log.warning("a trial's process was lost; the trial starts again from its checkpoint")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._last.pop(trial.trial_id, None)
        lines = str(trial.get_error() or "").strip().splitlines() or ["lost"]
        error = f"its process or machine was lost {trial.num_failures} times: {lines[-1].strip()}"
        for known in self._known(trial):
            self._tell(trial, failed(known, error))

    def _known(self, trial: Any) -> list[TrialRecord]:
        return [_unpacked(trial.config["job"]).known] if "job" in trial.config else []

    def _tell(self, trial: Any, record: TrialRecord) -> None:
        number = self._numbers.get(trial.trial_id)
        self._on_record(record if number is None else replace(record, setting=number))
