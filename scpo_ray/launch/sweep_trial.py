"""What a trial's process does: the runs it is given, in turn; what became of each."""

import hashlib
import json
import logging
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scpo_ray.experiment import RunInputs, load_inputs
from scpo_ray.inputs import open_run_dir
from scpo_ray.launch.worker import local_worker, work
from scpo_ray.methods.task import Midway
from scpo_ray.records import InputError, Layer
from scpo_ray.results import RunResult
from scpo_ray.settings.run import RunConfig
from scpo_ray.settings.sweep import ObjectiveConfig, SweepConfig
from scpo_ray.storage.run_dir import RunDir, load_result
from scpo_ray.sweep.records import TrialRecord
from scpo_ray.sweep.space import (
    PlannedTrial,
    make_setting,
    run_objective,
    suggested_values,
    trial_id,
    trials_of,
)
from scpo_ray.tracking.mlflow_store import noted_run_id
from scpo_ray.tracking.trackers import Sweep

log = logging.getLogger(__name__)

_KEPT_INPUTS = 4
# Another process may be at the same run, of a sweep beside this one: then its result is taken.
_LOCK_WAIT_S = 24 * 3_600.0


@dataclass(frozen=True)
class TrialJob:
    """A trial as its process gets it; `known` is its record but for what is not known yet.

    `setting`: its setting's values in one line.
    """

    config: RunConfig
    known: TrialRecord
    setting: str


TrialFunction = Callable[[TrialJob, ObjectiveConfig, Sweep, Midway | None], TrialRecord]
"""What runs a trial; another one than `run_trial` stands in for it in benchmarks."""


class InputsCache:
    """What the last runs of this process read: trials that share data and model share it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, RunInputs] = OrderedDict()

    def load(self, config: RunConfig) -> RunInputs:
        """Raises: InputError as `load_inputs`."""
        key = inputs_key(config)
        if key not in self._kept:
            self._kept[key] = load_inputs(config, open_run_dir(config))
        self._kept.move_to_end(key)
        while len(self._kept) > _KEPT_INPUTS:
            self._kept.popitem(last=False)
        return self._kept[key]


_inputs = InputsCache()


def inputs_key(config: RunConfig) -> str:
    """Alike where two runs read the same data and the same model, and keep them in one place."""
    sections = [config.data.model_dump(mode="json"), config.model.model_dump(mode="json")]
    sections.append({"output_dir": str(config.output_dir)})
    return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()


def trial_job(trial: PlannedTrial, fingerprints: Mapping[str, str]) -> TrialJob:
    """A trial that is still to be run."""
    known = TrialRecord(
        trial_id=trial_id(trial.config, fingerprints, trial.culture),
        run_id=trial.config.run_id,
        setting=trial.setting.number,
        culture=trial.culture,
        seed=trial.seed,
        fold=trial.fold,
        state="waiting",
        reused=False,
        objective=None,
        num_steps=0,
        num_pairs=0,
        train_seconds=0.0,
        path=str(open_run_dir(trial.config).path),
        mlflow_run_id="",
        error="",
    )
    return TrialJob(trial.config, known, trial.setting.label)


def suggested_jobs(
    sweep: SweepConfig, suggestion: Mapping[str, Any], known_cultures: Sequence[str]
) -> list[TrialJob]:
    """All runs of a setting that a search suggests; who started it knows the setting's number."""
    setting = make_setting(-1, suggested_values(sweep, suggestion))
    trials = trials_of(sweep, [setting], known_cultures)
    return [trial_job(trial, _inputs.load(trial.config).fingerprints) for trial in trials]


def layer_objectives(
    records: Sequence[TrialRecord], objective: ObjectiveConfig, layer: Layer
) -> list[tuple[str, float | None]]:
    """Culture and value on another layer than the objective's, of runs that have ended."""
    on_layer = objective.model_copy(update={"metric": layer})
    found: list[tuple[str, float | None]] = []
    for record in records:
        value = None
        if record.state == "finished":
            value = run_objective(
                _accuracies(load_result(Path(record.path))), on_layer, record.culture
            )
        found.append((record.culture, value))
    return found


def run_trial(
    job: TrialJob, objective: ObjectiveConfig, sweep: Sweep, midway: Midway | None
) -> TrialRecord:
    """One run to its end, in this process or on workers of its own; what became of it.

    Faults of the input and of this program end the trial and not the sweep; a lost process or
    machine is the launcher's to notice.
    """
    config = job.config
    run_dir = open_run_dir(config)
    sweep = replace(sweep, setting=job.setting)
    try:
        if config.train.max_workers > 1:
            from scpo_ray.launch.ray_train import train_on_ray

            train_on_ray(config, sweep)
        else:
            work(
                config,
                local_worker(config),
                inputs=_inputs.load(config),
                lock_wait_s=_LOCK_WAIT_S,
                sweep=sweep,
                midway=midway,
            )
        return finished(job.known, load_result(run_dir.path), run_dir, objective)
    except InputError as error:
        return failed(job.known, " ".join(str(error).split()))
    except Exception as error:
        log.error("%s", traceback.format_exc())
        return failed(job.known, f"{type(error).__name__}: {error}")


def finished(
    known: TrialRecord, result: RunResult, run_dir: RunDir, objective: ObjectiveConfig
) -> TrialRecord:
    """The record of a run that has ended."""
    return TrialRecord(
        **{
            **asdict(known),
            "state": "finished",
            "objective": run_objective(_accuracies(result), objective, known.culture),
            "num_steps": result.num_steps,
            "num_pairs": sum(s.num_selected for s in result.selection.values()),
            "train_seconds": result.train_seconds,
            "mlflow_run_id": noted_run_id(run_dir.path),
            "error": "",
        }
    )


def failed(known: TrialRecord, error: str) -> TrialRecord:
    """The record of a run that came to no end."""
    changed = {"state": "failed", "error": error, "mlflow_run_id": noted_run_id(Path(known.path))}
    return TrialRecord(**{**asdict(known), **changed})


def _accuracies(result: RunResult) -> dict[str, dict[str, float | None]]:
    """On the users that choices are made on."""
    chosen_on = result.dev if result.chosen_on == "dev" else result.evaluation
    return {
        culture: {layer: estimate.value for layer, estimate in evaluation.after.items()}
        for culture, evaluation in chosen_on.items()
    }
