"""Runs in this process, on this machine: one, or a comparison's one after the other."""

import logging
from pathlib import Path

import torch

from scpo_ray.comparison import ComparedRun, PairOutcomes, compare_runs
from scpo_ray.config import ComparisonConfig, RunConfig
from scpo_ray.experiment import (
    RunInputs,
    load_inputs,
    open_run_dir,
    prepare_run,
    run_experiment,
)
from scpo_ray.models import resolve_device
from scpo_ray.naming import run_name
from scpo_ray.records import ComparisonResult, InputError, RunResult, Worker
from scpo_ray.report import write_pictures, write_report
from scpo_ray.storage import (
    RunDir,
    load_result,
    load_test_pairs,
    save_comparison_result,
)
from scpo_ray.sweep import comparison_trials
from scpo_ray.tracking import Tracker, has_unsent_points, start_tracker

log = logging.getLogger(__name__)


def local_worker(config: RunConfig) -> Worker:
    return Worker(rank=0, world_size=1, device=resolve_device(config.device))


def train_locally(config: RunConfig) -> tuple[RunResult, Path]:
    """One run to its end, and its folder; a run that has ended is read, not run again.

    Raises: InputError for faults of the input; the folder stays resumable.
    """
    return _run(config, load_inputs(config, open_run_dir(config)))


def _run(config: RunConfig, inputs: RunInputs) -> tuple[RunResult, Path]:
    run_dir = open_run_dir(config)
    with run_dir.locked():
        run_dir.save_config(config.model_dump(mode="json"), inputs.fingerprints)
        if run_dir.result_path.is_file():
            result = load_result(run_dir.path)
            if has_unsent_points(run_dir.path):
                log.info("%s: has ended before; tracking it, which failed then", run_dir.path)
                _track_again(config, result, run_dir)
            else:
                log.info("%s: has ended before, nothing to do", run_dir.path)
            return result, run_dir.path
        worker = local_worker(config)
        prepared = prepare_run(config, inputs, worker, run_dir)
        tracker = start_tracker(config, run_dir.path)
        try:
            result = run_experiment(config, prepared, worker, tracker, run_dir)
            _log_report(result, run_dir, tracker)
        except torch.OutOfMemoryError:
            tracker.finish("FAILED")
            raise InputError(
                f"{run_dir.path}: the GPU's memory is used up",
                ["lower train.micro_batch_tokens or model.inference_batch_tokens"],
            ) from None
        except KeyboardInterrupt:
            tracker.finish("KILLED")
            raise
        except BaseException:
            tracker.finish("FAILED")
            raise
        tracker.finish("FINISHED")
        # Last: from now on the run has ended. A crash before this line repeats what came before.
        run_dir.save_result(result)
        run_dir.remove_checkpoints()
        return result, run_dir.path


def compare_locally(comparison: ComparisonConfig) -> tuple[ComparisonResult, Path]:
    """Every run of a comparison, its summary and its report; the experiment's folder.

    A run that fails is named in the summary's failures, and the others go on.
    """
    run = comparison.run
    # Read once, and before any run: what is wrong with the input is said once.
    inputs = load_inputs(run, open_run_dir(run))
    trials = comparison_trials(comparison, inputs.data.cultures)
    log.info("%d runs; method, seed and culture_weights come from the space", len(trials))
    compared: list[ComparedRun] = []
    failures: dict[str, str] = {}
    for number, trial in enumerate(trials, start=1):
        name = run_name(trial.config)
        log.info("run %d of %d: %s", number, len(trials), name)
        try:
            result, path = _run(trial.config, inputs)
            compared.append(compared_run(trial.culture, result, path))
        except InputError as error:
            log.error("%s: %s", name, error)
            failures[name] = " ".join(str(error).split())
    if not compared:
        raise InputError("no run of the comparison came to its end", list(failures.values()))
    folder = run.output_dir / run.experiment
    summary = compare_runs(compared, run.experiment, failures)
    save_comparison_result(folder, summary)
    write_report([c.result for c in compared], summary, folder / "report.html")
    return summary, folder


def compared_run(culture: str, result: RunResult, path: Path) -> ComparedRun:
    """A finished run with its test pairs' outcomes, read from its folder."""
    columns = load_test_pairs(path)
    return ComparedRun(
        result=result,
        culture=culture,
        outcomes=PairOutcomes(
            culture=columns["culture"],
            pair_id=columns["pair_id"],
            cluster=columns["cluster"],
            ref_margin=columns.get("ref_margin"),
            margin=columns["margin"],
        ),
    )


def _track_again(config: RunConfig, result: RunResult, run_dir: RunDir) -> None:
    tracker = start_tracker(config, run_dir.path)
    tracker.log_result(result, run_dir.path)
    _log_report(result, run_dir, tracker)
    tracker.finish("FINISHED")


def _log_report(result: RunResult, run_dir: RunDir, tracker: Tracker) -> None:
    tracker.log_artifact(write_report([result], None, run_dir.path / "report.html"))
    write_pictures([result], None, run_dir.path / "pictures")
    tracker.log_artifact(run_dir.path / "pictures")
