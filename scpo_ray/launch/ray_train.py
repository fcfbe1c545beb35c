"""A run on workers that Ray Train starts, and starts again when one is lost."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
import ray.train
import ray.train.torch

from scpo_ray.inputs import open_run_dir
from scpo_ray.launch.ray_cluster import check_resources, connect, stand_where, worker_resources
from scpo_ray.launch.relay import RelayHandler, first_error, relayed_to_here, report_error
from scpo_ray.launch.worker import work
from scpo_ray.records import InputError, Worker
from scpo_ray.results import RunResult
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.remote import RemoteFolder, below_uri
from scpo_ray.tracking.trackers import Status, Sweep, Tracker
from scpo_ray.workers import BACKENDS, TIMEOUT

log = logging.getLogger(__name__)

# Ray gives up a start of the workers after a minute without room for them; so often it tries again.
_CONTROLLER_FAILURES = 2
_FOR_EVER = -1
# A worker group that was killed may hold the run's folder for a moment after the next has begun.
_LOCK_WAIT_S = 60.0


def train_on_ray(config: RunConfig, sweep: Sweep | None = None) -> Path:
    """One run to its end on Ray's workers; the run's folder.

    Args:
        sweep: the one the run belongs to.

    Raises: InputError for faults of the input, of the cluster, and for a run given up after
    `launch.max_failures` restarts; the folder stays resumable.
    """
    connect(config)
    check_resources(config)
    run_dir = open_run_dir(config)
    # Ray notes there which attempt it is at; all machines must see it.
    storage, cache = config.launch.storage, str((config.output_dir / "cache").resolve())
    name = f"{run_dir.path.name}-{uuid4().hex[:8]}"
    with relayed_to_here() as relay:
        trainer = ray.train.torch.TorchTrainer(
            _work_in_ray,
            train_loop_config={
                "config": config.model_dump_json(),
                "working_dir": os.getcwd(),
                "relay": relay,
                "sweep": sweep,
            },
            torch_config=_torch_config(config),
            scaling_config=_scaling(config),
            run_config=ray.train.RunConfig(
                # A name is never used twice: Ray takes a known one for a run that has ended.
                name=name,
                storage_path=below_uri(storage, "ray") if storage else f"{cache}/ray",
                failure_config=ray.train.FailureConfig(
                    max_failures=config.launch.max_failures,
                    controller_failure_limit=_FOR_EVER
                    if config.launch.wait_for_resources
                    else _CONTROLLER_FAILURES,
                ),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            ),
        )
        log.info("%s: starting on Ray", run_dir.path)
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as failure:
            raise first_error(relay) or _given_up(config, run_dir.path, failure) from None
        finally:
            RemoteFolder(storage or cache).remove(f"ray/{name}")
        error = first_error(relay)
        if error is not None:
            raise error
    run_dir.fetch()
    return run_dir.path


def _scaling(config: RunConfig) -> ray.train.ScalingConfig:
    each = worker_resources(config)
    resources = {"CPU": each.cpus} | ({"GPU": each.gpus} if each.gpus else {})
    workers = config.train.num_workers
    return ray.train.ScalingConfig(
        num_workers=workers if isinstance(workers, int) else tuple(workers),
        use_gpu=each.gpus > 0,
        resources_per_worker=resources,
        placement_strategy=config.launch.placement,
    )


def _torch_config(config: RunConfig) -> ray.train.torch.TorchConfig:
    gpus = worker_resources(config).gpus
    # Two workers on one GPU cannot talk by NCCL.
    shared = 0 < gpus < 1 and config.train.max_workers > 1
    backend = BACKENDS["cuda" if gpus and not shared else "cpu"]
    return ray.train.torch.TorchConfig(backend=backend, timeout_s=int(TIMEOUT.total_seconds()))


def _work_in_ray(settings: dict[str, Any]) -> None:
    """What Ray runs in each worker process."""
    relay = settings["relay"]
    if first_error(relay) is not None:
        return  # A start again after an error that no start can mend.
    config = RunConfig.model_validate_json(settings["config"])
    stand_where(settings["working_dir"])
    context = ray.train.get_context()
    device = str(ray.train.torch.get_device())
    worker = Worker(context.get_world_rank(), context.get_world_size(), device)
    package_log = logging.getLogger("scpo_ray")
    package_log.setLevel(logging.INFO)
    package_log.addHandler(RelayHandler(relay, worker))
    # What there is to say of the data has been said where the command was given.
    logging.getLogger("scpo_ray.data").setLevel(logging.ERROR)
    if worker.rank == 0:
        starts = ray.get(relay.start.remote())
        if starts > 1:
            log.warning("a worker was lost or joined: start %d, with %d", starts, worker.world_size)
    try:
        work(
            config,
            worker,
            lock_wait_s=_LOCK_WAIT_S,
            tracked_by=ReportingTracker,
            sweep=settings["sweep"],
        )
    except InputError as error:
        if not report_error(relay, error, worker):
            # The others wait for this worker for ever: only a start again ends them.
            raise


class ReportingTracker:
    """The tracker around which Ray is told of each point too, by all workers at once."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._tracker.log(metrics, step)
        ray.train.report({"step": step, **metrics})

    def log_result(self, result: RunResult, run_dir: Path) -> None:
        self._tracker.log_result(result, run_dir)

    def log_artifact(self, path: Path) -> None:
        self._tracker.log_artifact(path)

    def finish(self, status: Status) -> None:
        self._tracker.finish(status)


def _given_up(
    config: RunConfig, path: Path, failure: "ray.train.TrainingFailedError"
) -> InputError:
    workers = getattr(failure, "worker_failures", {})
    problems = [f"worker {rank}: {_last_line(error)}" for rank, error in sorted(workers.items())]
    if not problems:
        problems = [_last_line(failure)]
    times = config.launch.max_failures
    return InputError(
        f"{path}: the run was given up after {times} restart{'s' if times != 1 else ''}",
        [*problems, "the same command goes on from the last checkpoint"],
    )


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
