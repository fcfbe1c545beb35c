"""What each worker of a run does, whoever started it: from a config to a saved result."""

import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import torch

import scpo_ray
from scpo_ray.experiment import (
    RunInputs,
    ended_result,
    load_inputs,
    prepare_run,
    run_experiment,
    run_fingerprints,
)
from scpo_ray.inputs import open_run_dir
from scpo_ray.methods.task import FitContext, Midway
from scpo_ray.models.reward_model import resolve_device
from scpo_ray.records import InputError, Worker
from scpo_ray.results import RunResult
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.disk import disk_errors
from scpo_ray.storage.run_dir import RunDir, load_result
from scpo_ray.tracking.trackers import SilentTracker, Sweep, Tracker, has_unsent, start_tracker
from scpo_ray.workers import check_alike, first_worker_first, from_first, together

log = logging.getLogger(__name__)


def local_worker(config: RunConfig) -> Worker:
    """This process, by itself."""
    return Worker(rank=0, world_size=1, device=resolve_device(config.device))


def torchrun_worker(config: RunConfig) -> Worker | None:
    """This process as one of those that torchrun started; None where it did not."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    device = resolve_device(config.device)
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    return Worker(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device)


def work(
    config: RunConfig,
    worker: Worker,
    *,
    inputs: RunInputs | None = None,
    lock_wait_s: float = 0.0,
    tracked_by: Callable[[Tracker], Tracker] = lambda tracker: tracker,
    sweep: Sweep | None = None,
    midway: Midway | None = None,
) -> Path:
    """One run to its end, on this worker and all others of it; the run's folder.

    A run that has ended is left as it is. The first worker alone tracks and writes results.

    Args:
        inputs: where they have been read already.
        lock_wait_s: how long to wait for a process that is running the run.
        tracked_by: what to put around the tracker.
        sweep: the one the run belongs to; its runs have no report of their own.
        midway: what to tell on the way.

    Raises: InputError for faults of the input; the folder stays resumable.
    """
    run_dir = open_run_dir(config)
    with _held_by_first(run_dir, worker, lock_wait_s):
        _check_all_see(run_dir, worker)
        check_alike(library_versions(), "library versions", worker)
        if inputs is None:
            with first_worker_first(worker):
                inputs = load_inputs(config, run_dir)
        check_alike(inputs.fingerprints, "fingerprints", worker)
        if from_first(lambda: _has_ended(config, inputs, run_dir, sweep), worker):
            return run_dir.path
        with _forgotten_if_refused(run_dir, worker):
            prepared = prepare_run(config, inputs, worker)
        with _tracked(config, worker, run_dir, sweep) as tracker:
            result = run_experiment(prepared, FitContext(run_dir, tracked_by(tracker), midway))
            if result is not None and sweep is None:
                _log_report(result, run_dir, tracker)
        with together(worker):
            if result is not None:
                # Last: from now on the run has ended. A crash before this line repeats what came
                # before.
                run_dir.save_result(result)
                run_dir.keep()
                run_dir.remove_checkpoints()
    return run_dir.path


def library_versions() -> dict[str, str]:
    """What two workers must have alike to compute alike."""
    return {
        "scpo_ray": scpo_ray.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        **{name: version(name) for name in ("torch", "transformers", "peft", "deepspeed")},
    }


@contextmanager
def _held_by_first(run_dir: RunDir, worker: Worker, wait_s: float) -> Iterator[None]:
    """The run's folder, locked by the first worker."""
    with ExitStack() as stack:
        with together(worker):
            if worker.rank == 0:
                stack.enter_context(run_dir.locked(wait_s=wait_s))
        yield


@contextmanager
def _forgotten_if_refused(run_dir: RunDir, worker: Worker) -> Iterator[None]:
    """What is refused before its first step is no run that was stopped."""
    try:
        yield
    except InputError:
        if worker.rank == 0:
            run_dir.forget_config()
        raise


def _check_all_see(run_dir: RunDir, worker: Worker) -> None:
    """Raises: InputError naming the worker that does not see what the first one writes."""
    if worker.world_size == 1 or run_dir.remote is not None:
        return
    note = run_dir.path / from_first(lambda: f".seen-{uuid4().hex}", worker)
    try:
        with first_worker_first(worker), disk_errors(note):
            if worker.rank == 0:
                note.touch()
            # A listing: a network file system may remember that a name was not there.
            elif not run_dir.path.is_dir() or note.name not in os.listdir(run_dir.path):
                raise InputError(
                    f"{run_dir.path}: worker {worker.rank} on {platform.node()} does not see this "
                    "folder as worker 0 does",
                    ["put output_dir on a file system all machines mount, or set launch.storage"],
                )
    finally:
        if worker.rank == 0:
            note.unlink(missing_ok=True)


def send_unsent(config: RunConfig, run_dir: RunDir, sweep: Sweep | None, *, patient: bool) -> None:
    """Tracks a run that has ended while its store could not take all of it.

    Args:
        patient: leaves a sweep's run as it is where the store is still away.

    Raises: as `start_tracker`.
    """
    result = load_result(run_dir.path)
    tracker = start_tracker(config, run_dir.path, sweep, patient=patient)
    tracker.log_result(result, run_dir.path)
    if sweep is None:
        _log_report(result, run_dir, tracker)
    tracker.finish("FINISHED")


def _has_ended(config: RunConfig, inputs: RunInputs, run_dir: RunDir, sweep: Sweep | None) -> bool:
    run_dir.fetch()
    run_dir.save_config(config.model_dump(mode="json"), run_fingerprints(config, inputs))
    if ended_result(config, inputs.fingerprints["data"], run_dir) is None:
        return False
    run_dir.settle()
    if has_unsent(run_dir.path):
        log.info("%s: has ended before; tracking it, which failed then", run_dir.path)
        send_unsent(config, run_dir, sweep, patient=sweep is not None)
    else:
        log.info("%s: has ended before, nothing to do", run_dir.path)
    return True


@contextmanager
def _tracked(
    config: RunConfig, worker: Worker, run_dir: RunDir, sweep: Sweep | None
) -> Iterator[Tracker]:
    """The first worker's tracker, told how the run ends; a silent one for the others."""
    tracker: Tracker = SilentTracker()
    with together(worker):
        if worker.rank == 0:
            tracker = start_tracker(config, run_dir.path, sweep, patient=sweep is not None)
    try:
        yield tracker
    except torch.OutOfMemoryError:
        tracker.finish("FAILED")
        raise InputError(
            f"{run_dir.path}: the GPU's memory is used up",
            ["lower train.micro_batch_tokens or model.inference_batch_tokens"],
        ) from None
    except (KeyboardInterrupt, SystemExit):  # The latter where a sweep stops its trial.
        tracker.finish("KILLED")
        raise
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish("FINISHED")


def _log_report(result: RunResult, run_dir: RunDir, tracker: Tracker) -> None:
    # With matplotlib: not for commands that draw nothing, and for a run at its end.
    from scpo_ray.report.page import write_report

    drawn = run_dir.path / "pictures"
    page = run_dir.path / "report.html"
    tracker.log_artifact(write_report([result], None, page, pictures_dir=drawn))
    tracker.log_artifact(drawn)
