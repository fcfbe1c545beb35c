"""Runs started where the config says: in this process, on Ray; one, or a comparison's in turn."""

import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch.distributed

from scpo_ray.evaluation.comparable import ComparedRun, for_comparison, pair_outcomes
from scpo_ray.evaluation.comparison import compare_runs
from scpo_ray.evaluation.opinion_comparison import compare_opinions
from scpo_ray.experiment import RunInputs, ended_result, load_inputs
from scpo_ray.inputs import open_run_dir
from scpo_ray.launch.status import status_line, status_text, time_left
from scpo_ray.launch.worker import local_worker, torchrun_worker, work
from scpo_ray.records import ALONE, HeldOut, InputError
from scpo_ray.report.page import write_report
from scpo_ray.report.written import write_answer
from scpo_ray.results import ComparisonResult, RunResult
from scpo_ray.settings.comparison import ComparisonConfig
from scpo_ray.settings.naming import run_name
from scpo_ray.settings.run import RunConfig
from scpo_ray.settings.shown import duration
from scpo_ray.storage.run_dir import (
    COMPARISON_FILE,
    load_dev_pairs,
    load_result,
    load_test_opinions,
    load_test_pairs,
    save_comparison_result,
)
from scpo_ray.sweep.space import Trial, comparison_trials
from scpo_ray.tracking.comparison import track_comparison
from scpo_ray.tracking.trackers import check_tracking
from scpo_ray.training.deepspeed_settings import deepspeed_settings
from scpo_ray.workers import join_group, together

log = logging.getLogger(__name__)


def start_run(config: RunConfig) -> tuple[RunResult, Path]:
    """One run to its end, and its folder; a run that has ended is read, not run again.

    Under torchrun this process is one of the run's workers, whatever `train.num_workers` says.

    Raises: InputError for faults of the input; the folder stays resumable.
    """
    worker = torchrun_worker(config)
    if worker is None:
        _check_store(config)
        return _run(config, load_inputs(config, open_run_dir(config)))
    join_group(worker)
    try:
        with together(worker):
            if worker.rank == 0:
                _check_store(config)
        path = work(config, worker)
    finally:
        torch.distributed.destroy_process_group()
    return load_result(path), path


def _check_store(config: RunConfig) -> None:
    """Before the data are read, unless the run has ended."""
    run_dir = open_run_dir(config)
    run_dir.fetch()
    if not run_dir.result_path.is_file():
        check_tracking(config)


def _run(config: RunConfig, inputs: RunInputs) -> tuple[RunResult, Path]:
    run_dir = open_run_dir(config)
    run_dir.fetch()
    if ended_result(config, inputs.fingerprints["data"], run_dir) is not None:
        path = work(config, ALONE, inputs=inputs)
    elif _is_for_ray(config):
        if config.train.engine == "deepspeed":
            # Said here and now, not by workers half a minute later.
            deepspeed_settings(config.train)
        # Ray takes seconds to load, and a run in this process needs none of it.
        from scpo_ray.launch.ray_train import train_on_ray

        if _has_many_to_score(config, inputs):
            from scpo_ray.launch.ray_score import score_on_ray

            score_on_ray(config, inputs)
        path = train_on_ray(config)
    elif config.train.min_workers > 1:
        raise InputError(
            f"train.num_workers = {config.train.min_workers}: a process is one worker",
            ['leave launch.on out (or "ray"), or start scpo with torchrun'],
        )
    else:
        path = work(config, local_worker(config), inputs=inputs)
    return load_result(path), path


def _is_for_ray(config: RunConfig) -> bool:
    if config.launch.on != "auto":
        return config.launch.on == "ray"
    named = config.launch.address or os.environ.get("RAY_ADDRESS")
    return config.train.max_workers > 1 or bool(named)


def _has_many_to_score(config: RunConfig, inputs: RunInputs) -> bool:
    if not inputs.global_model.has_head:
        return False
    unscored = inputs.global_model.unscored(inputs.data.texts)
    return sum(map(len, unscored)) > config.launch.score_on_ray_above


def compare(comparison: ComparisonConfig) -> tuple[ComparisonResult, Path]:
    """Every run of a comparison, its summary and its report; the experiment's folder.

    A run that fails is named in the summary's failures, and the others go on.
    """
    run = comparison.run
    if torchrun_worker(run) is not None:
        raise InputError("a comparison starts the workers of its runs: call it without torchrun")
    folder = run.output_dir / run.experiment
    if not (folder / COMPARISON_FILE).is_file():
        check_tracking(run)
    # Read once, and before any run: what is wrong with the input is said once.
    inputs = load_inputs(run, open_run_dir(run))
    trials = comparison_trials(comparison, inputs.data.cultures)
    log.info("%d runs; method, seed and culture_weights come from the space", len(trials))
    compared, failures = _all_runs(comparison, trials, inputs)
    if not compared:
        raise InputError("no run of the comparison came to its end", list(failures.values()))
    summary = replace(
        compare_runs(compared, run.experiment, failures), opinions=compare_opinions(compared)
    )
    save_comparison_result(folder, summary)
    results = [c.result for c in compared]
    report = write_report(results, summary, folder / "report.html")
    texts = write_answer(results, summary, folder / "report.md")
    track_comparison(run, summary, [report, *texts, folder / COMPARISON_FILE])
    return summary, folder


def _all_runs(
    comparison: ComparisonConfig, trials: Sequence[Trial], inputs: RunInputs
) -> tuple[list[ComparedRun], dict[str, str]]:
    """Those that came to their end, one after the other, and why the others failed, by name."""
    compared: list[ComparedRun] = []
    # A method that pools is one run for all of its cultures: read once.
    known: dict[str, ComparedRun] = {}
    failures: dict[str, str] = {}
    took: dict[str, list[float]] = defaultdict(list)
    # Each id is a hash of all settings: made once.
    run_ids = [trial.config.run_id for trial in trials]
    to_come = {run_id: t.config.method for run_id, t in zip(run_ids, trials, strict=True)}
    with status_line() as show_status:
        for done, (run_id, trial) in enumerate(zip(run_ids, trials, strict=True)):
            name, started = run_name(trial.config), time.monotonic()
            seconds = time_left(took, Counter(to_come.values()))
            left = None if seconds is None else f"about {duration(seconds)}"
            show_status(status_text("runs", done, len(trials), [name], left))
            said = f"; {left} left" if left else ""
            log.info("run %d of %d: %s%s", done + 1, len(trials), name, said)
            try:
                if run_id not in known:
                    # Of two comparisons at once, one waits for the runs of the other and reads
                    # them.
                    open_run_dir(trial.config).wait_until_free()
                    result, path = _run(trial.config, inputs)
                    is_shown = result.seed == min(comparison.space.seed)
                    first = compared[0] if compared else None
                    found = compared_run(trial.culture, result, path, first)
                    like = first.result if first else None
                    slim = for_comparison(result, is_shown=is_shown, like=like)
                    known[run_id] = replace(found, result=slim)
                    took[trial.config.method].append(time.monotonic() - started)
                compared.append(replace(known[run_id], culture=trial.culture))
            except InputError as error:
                log.error("%s: %s", name, error)
                failures[name] = " ".join(str(error).split())
            # Tried again in the next culture if it failed and pools; that is quickly said.
            to_come.pop(run_id, None)
    return compared, failures


def compared_run(
    culture: str,
    result: RunResult,
    path: Path,
    like: ComparedRun | None = None,
    *,
    side: HeldOut = "test",
) -> ComparedRun:
    """A finished run with the outcomes of its dev or test pairs, read from its folder.

    Args:
        like: another run on the same pairs.
    """
    columns = load_dev_pairs(path) if side == "dev" else load_test_pairs(path)
    outcomes = pair_outcomes(columns, like.outcomes if like else None)
    opinions = load_test_opinions(path) if result.opinions and side == "test" else None
    return ComparedRun(result, culture, outcomes, opinions)
