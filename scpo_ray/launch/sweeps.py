"""The story of a sweep: what is to be run, what has been, the rest under Ray Tune, the table."""

import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from scpo_ray.evaluation.comparable import ComparedRun
from scpo_ray.experiment import ended_result, global_rewards
from scpo_ray.inputs import open_run_dir
from scpo_ray.launch.ray_cluster import worker_resources
from scpo_ray.launch.ray_score import score_on_ray
from scpo_ray.launch.ray_tune import BOTH_LAYERS, Searched, join, run_jobs, search
from scpo_ray.launch.runs import compared_run
from scpo_ray.launch.status import status_line
from scpo_ray.launch.sweep_book import Book, PreparedSweep
from scpo_ray.launch.sweep_live import LivePage
from scpo_ray.launch.sweep_trial import (
    InputsCache,
    TrialFunction,
    TrialJob,
    failed,
    finished,
    inputs_key,
    layer_objectives,
    run_trial,
    trial_job,
)
from scpo_ray.launch.worker import local_worker, send_unsent
from scpo_ray.records import HeldOut, InputError
from scpo_ray.report.sweep_page import write_sweep_report
from scpo_ray.settings.files import load_header, load_sweep
from scpo_ray.settings.run import RunConfig
from scpo_ray.settings.sweep import SweepConfig
from scpo_ray.storage.run_dir import RunDir, load_result
from scpo_ray.sweep.records import SweepResult, TrialRecord
from scpo_ray.sweep.space import (
    check_choices,
    check_space,
    job_objective,
    make_setting,
    planned_settings,
    suggested_values,
    sweep_cultures,
    trials_of,
)
from scpo_ray.sweep.store import RESULT_FILE, SweepDir
from scpo_ray.sweep.summary import summarize_sweep
from scpo_ray.tracking.mlflow_store import forget_run, noted_run_id
from scpo_ray.tracking.opening import StoreAwayError
from scpo_ray.tracking.registry import register_champion
from scpo_ray.tracking.sweep import SweepTracker
from scpo_ray.tracking.trackers import check_tracking, has_unsent

log = logging.getLogger(__name__)

OnStep = Callable[[Sequence[str]], None]
"""Told again and again which trials run, by their ids."""

_STORE_WAIT_S = 600.0
_STORE_RETRY_S = 10.0


def read_sweep(file: Path, overrides: Sequence[str]) -> tuple[SweepConfig, SweepDir]:
    """The sweep in a file, and its folder. Raises: InputError naming every problem at once."""
    sweep = load_sweep(file, overrides)
    check_space(sweep, file)
    return sweep, SweepDir(sweep.run.output_dir / sweep.run.experiment / f"sweep-{file.stem}")


def prepare_sweep(
    file: Path, sweep: SweepConfig, folder: SweepDir, cache: InputsCache
) -> PreparedSweep:
    """Reads the data and what there is of the sweep already; starts nothing.

    Raises: InputError for faults of the data and of settings that no run can have.
    """
    base = cache.load(sweep.run)
    settings = folder.settings() if sweep.search.is_adaptive else planned_settings(sweep)
    fingerprints: dict[str, dict[str, str]] = {}
    jobs = []
    for trial in trials_of(sweep, settings, base.data.cultures):
        key = inputs_key(trial.config)
        if key not in fingerprints:
            inputs = cache.load(trial.config)
            check_choices(inputs.data, trial.config, sweep_cultures(sweep, base.data.cultures))
            fingerprints[key] = inputs.fingerprints
        jobs.append(trial_job(trial, fingerprints[key]))
    return PreparedSweep(
        name=file.stem,
        question=load_header(file),
        file=file,
        sweep=sweep,
        folder=folder,
        cultures=base.data.cultures,
        fingerprints={name: base.fingerprints[name] for name in ("data", "model")},
        settings=settings,
        jobs=jobs,
        ended=_ended(jobs, folder.trials(), sweep, fingerprints),
    )


def _ended(
    jobs: Sequence[TrialJob],
    known: Mapping[str, TrialRecord],
    sweep: SweepConfig,
    fingerprints: Mapping[str, Mapping[str, str]],
) -> dict[str, TrialRecord]:
    """Trial id -> record of what has ended: in this sweep, or as a run of its experiment.

    `fingerprints`: those of the trials' inputs, by `inputs_key`.
    """
    ended = {}
    for job in jobs:
        record = known.get(job.known.trial_id)
        if record is not None and record.state == "stopped":
            ended[record.trial_id] = replace(record, setting=job.known.setting)
            continue
        run_dir = open_run_dir(job.config)
        run_dir.fetch()
        data_fingerprint = fingerprints[inputs_key(job.config)]["data"]
        try:
            result = ended_result(job.config, data_fingerprint, run_dir)
            if result is not None:
                sides: tuple[HeldOut, ...] = ("dev", "test") if result.dev else ("test",)
                for side in sides:
                    compared_run(job.known.culture, result, run_dir.path, side=side)
        except InputError as error:
            # It costs this trial alone, and the command after the remedy runs it again.
            log.error("%s", error)
            ended[job.known.trial_id] = failed(job.known, " ".join(str(error).split()))
            continue
        if result is None:
            continue
        if record is not None and record.state == "finished":
            ended[record.trial_id] = replace(record, setting=job.known.setting)
        else:
            found = finished(job.known, result, run_dir, sweep.objective)
            ended[found.trial_id] = replace(found, reused=True)
    return ended


def run_sweep(
    file: Path,
    overrides: Sequence[str] = (),
    *,
    rerun: bool = False,
    extend: bool = False,
    trial: TrialFunction = run_trial,
) -> tuple[SweepResult, Path]:
    """A sweep to its end, or on to it: what has ended is not run again; its result and folder.

    Args:
        rerun: forgets what the sweep's own trials have found, and runs them again.
        extend: goes on with a file that has changed.
        trial: what a trial does.

    Raises: InputError for faults of the input that no trial can be run with; what has been found
    out stays, and the same call goes on. What ends a single trial is in the result.
    """
    cache = InputsCache()
    sweep, folder = read_sweep(file, overrides)
    # Before anything of it is read: what another command is doing is not known halfway.
    with folder.locked():
        check_tracking(sweep.run)
        prepared = prepare_sweep(file, sweep, folder, cache)
        folder.begin(prepared.sweep.document, prepared.fingerprints, extend=extend)
        if rerun:
            _forget(prepared)
            prepared = replace(prepared, ended={})
        sweep_id = "-".join([prepared.name, *prepared.fingerprints.values()])
        tracker = SweepTracker(prepared.sweep.run, prepared.name, sweep_id, file)
        status = "KILLED"
        try:
            with _ended_by_sigterm():
                result = _run(prepared, cache, tracker, trial)
            waiting = any(trial.state == "waiting" for trial in result.trials)
            status = "KILLED" if waiting else "FINISHED"
        finally:
            tracker.finish(status)
    return result, folder.path


def _run(
    prepared: PreparedSweep, cache: InputsCache, tracker: SweepTracker, trial: TrialFunction
) -> SweepResult:
    book = Book(prepared)
    live = LivePage(prepared.folder.report_path, lambda: _summary(prepared, book))
    try:
        with status_line() as show_status:

            def on_step(running: Sequence[str]) -> None:
                names = book.names(running)
                show_status(book.status(names))
                live.step(names)

            on_step([])
            run_them = _search if prepared.sweep.search.is_adaptive else _run_missing
            run_them(prepared, book, on_step, cache, tracker, trial)
    finally:
        _end_children(book, tracker)
    _send_unsent(prepared, book, tracker)
    result = _summary(prepared, book)
    prepared.folder.save_result(result)
    drawn = prepared.folder.pictures_dir
    report = write_sweep_report(result, prepared.folder.report_path, pictures_dir=drawn)
    files = [prepared.folder.path / RESULT_FILE, report, drawn]
    tracker.log_result(result, files)
    _register(prepared, result)
    return result


def _run_missing(
    prepared: PreparedSweep,
    book: Book,
    on_step: OnStep,
    cache: InputsCache,
    tracker: SweepTracker,
    trial: TrialFunction,
) -> None:
    sweep, missing = prepared.sweep, prepared.missing
    limit = sweep.budget.trials
    if limit is not None and len(missing) > limit:
        log.info(
            "the budget is %d trials: %d wait for the next command", limit, len(missing) - limit
        )
        missing = missing[:limit]
    log.info(
        "%s: %d settings, %d trials; %d have ended before",
        prepared.folder.path,
        len(prepared.settings),
        len(prepared.jobs),
        len(prepared.ended),
    )
    if not missing:
        return
    at_once = join(sweep)
    log.info("Ray: %d trials at once", at_once)
    if trial is run_trial:
        _score([job.config for job in missing], cache)
    run_jobs(
        *(sweep, missing, tracker.sweep, trial, book.add),
        on_step=on_step,
        at_once=at_once,
    )


def _score(configs: Sequence[RunConfig], cache: InputsCache) -> None:
    """The global model's rewards, once for all runs that need the same."""
    seen = set()
    for config in configs:
        key = inputs_key(config)
        if key in seen or config.model.new_head:
            continue
        seen.add(key)
        inputs, worker = cache.load(config), local_worker(config)
        num_missing = sum(map(len, inputs.global_model.unscored(inputs.data.texts)))
        # The command itself may run on a head without a GPU.
        is_slow_here = worker.device == "cpu" and worker_resources(config).gpus > 0
        if num_missing > (0 if is_slow_here else config.launch.score_on_ray_above):
            score_on_ray(config, inputs)
        else:
            global_rewards(inputs, worker)


def _search(
    prepared: PreparedSweep,
    book: Book,
    on_step: OnStep,
    cache: InputsCache,
    tracker: SweepTracker,
    trial: TrialFunction,
) -> None:
    """What earlier commands left open, and then what the search suggests after all of that."""
    sweep = prepared.sweep
    num_draws, num_known = sweep.search.num_draws or 0, len(prepared.settings)
    cultures = sweep_cultures(sweep, prepared.cultures)
    per_setting = len(cultures) * len(sweep.repeat.seeds) * len(sweep.repeat.folds)
    book.expect(per_setting * num_draws)
    log.info(
        "%s: %d of %d settings chosen before, %d trials each; %d trials have ended",
        prepared.folder.path,
        num_known,
        num_draws,
        per_setting,
        len(prepared.ended),
    )
    open_jobs = prepared.missing
    if not open_jobs and num_known >= num_draws:
        return
    at_once = join(sweep)
    _score([sweep.run, *(job.config for job in open_jobs)], cache)
    if open_jobs:
        run_jobs(
            *(sweep, open_jobs, tracker.sweep, trial, book.add),
            on_step=on_step,
            at_once=at_once,
        )
    if num_known >= num_draws:
        return

    def on_suggestion(number: int, suggestion: Mapping[str, Any]) -> None:
        setting = make_setting(number, suggested_values(sweep, suggestion))
        jobs = []
        try:
            for planned in trials_of(sweep, [setting], prepared.cultures):
                jobs.append(trial_job(planned, cache.load(planned.config).fingerprints))
        except InputError as error:
            log.error("%s: no run can have it: %s", setting.label, " ".join(str(error).split()))
        book.add_setting(setting, suggestion, jobs)

    found = _searched(prepared, book)
    search(
        sweep,
        prepared.cultures,
        found,
        tracker.sweep,
        trial,
        book.add,
        on_suggestion,
        on_step=on_step,
        at_once=at_once,
    )


def _searched(prepared: PreparedSweep, book: Book) -> Searched:
    """What the settings chosen so far have reached; those that reached nothing are left out."""
    sweep = prepared.sweep
    suggestions, values = [], []
    for number, suggestion in prepared.folder.suggestions().items():
        records = [record for record in book.records.values() if record.setting == number]
        if sweep.search.by == "tpe-all-agreed":
            reached = [layer_objectives(records, sweep.objective, layer) for layer in BOTH_LAYERS]
        else:
            reached = [[(record.culture, record.objective) for record in records]]
        numbers = [job_objective(each, sweep) for each in reached]
        if all(number is not None for number in numbers):
            suggestions.append(suggestion)
            values.append(tuple(float(number) for number in numbers if number is not None))
    return Searched(suggestions, values, len(prepared.settings))


def _end_children(book: Book, tracker: SweepTracker) -> None:
    """Gives runs that were stopped in the middle their status in MLflow."""
    for trial_id, job in book.jobs.items():
        record = book.records.get(trial_id)
        if record is None and not tracker.end_child(Path(job.known.path), "KILLED"):
            return  # The store is away: what runs again has its status then.
        if record is not None and record.state == "failed":
            tracker.end_child(Path(job.known.path), "FAILED")


def _send_unsent(prepared: PreparedSweep, book: Book, tracker: SweepTracker) -> None:
    """Sends what a store that was away could not take, and waits for it a while."""
    unsent = [
        record
        for record in book.records.values()
        if record.state == "finished" and has_unsent(Path(record.path))
    ]
    deadline = time.monotonic() + _STORE_WAIT_S
    while unsent:
        record = unsent[0]
        run_dir = RunDir(Path(record.path), prepared.sweep.run.output_dir / "cache")
        config = RunConfig.model_validate(load_result(run_dir.path).config)
        try:
            # Not patient: this time a store that is away is an error.
            send_unsent(config, run_dir, tracker.sweep, patient=False)
        except StoreAwayError as error:
            if time.monotonic() > deadline:
                log.warning("%d runs are not in MLflow yet (%s)", len(unsent), error.title)
                log.warning("the same command sends them once the store is back")
                return
            log.info("waiting for MLflow, to send %d runs", len(unsent))
            time.sleep(_STORE_RETRY_S)
            continue
        sent = replace(record, mlflow_run_id=noted_run_id(run_dir.path))
        book.records[record.trial_id] = sent
        prepared.folder.add_trials([sent])
        unsent = unsent[1:]


def _summary(prepared: PreparedSweep, book: Book) -> SweepResult:
    sweep = prepared.sweep
    trials = [book.records.get(trial_id, job.known) for trial_id, job in book.jobs.items()]

    def load(trial: TrialRecord, side: HeldOut) -> ComparedRun:
        path = Path(trial.path)
        return compared_run(trial.culture, load_result(path), path, side=side)

    return summarize_sweep(
        name=prepared.name,
        experiment=sweep.run.experiment,
        question=prepared.question,
        objective=sweep.objective,
        axes=list(sweep.space),
        settings=list(book.settings.values()),
        trials=trials,
        measured_on=sweep.run.data.split.chosen_on,
        load=load,
        seed=min(sweep.repeat.seeds),
    )


def _register(prepared: PreparedSweep, result: SweepResult) -> None:
    """Registers the best model of each culture, once every trial has ended."""
    tracking = prepared.sweep.run.tracking
    is_wanted = tracking.tracker == "mlflow" and tracking.log_model
    if not is_wanted or any(trial.state == "waiting" for trial in result.trials):
        return
    records = {trial.trial_id: trial for trial in result.trials}
    for culture, trial_id in result.best_trials.items():
        path = Path(records[trial_id].path)
        run = load_result(path)
        if not (path / "model").is_dir():
            log.info("%s: the best setting trains nothing: no model to register", culture)
            continue
        try:
            register_champion(RunConfig.model_validate(run.config), run, path)
        except InputError as error:
            log.warning("%s: its best model is not registered: %s", culture, error)


def _forget(prepared: PreparedSweep) -> None:
    for job in prepared.jobs:
        path = Path(job.known.path)
        if path.is_dir():
            if job.config.tracking.tracker == "mlflow":
                forget_run(job.config, path)
            shutil.rmtree(path)
        if (remote := open_run_dir(job.config).remote) is not None:
            remote.remove("result.json")


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """`ray job stop` (or a SLURM signal before the time limit) ends a sweep as Ctrl-C does."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
