"""What a run, a comparison or a sweep would do, and about how long it takes."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from scpo_ray.experiment import RunInputs, load_inputs, prepare_run
from scpo_ray.inputs import open_run_dir
from scpo_ray.launch.sweep_trial import InputsCache, trial_job
from scpo_ray.launch.worker import local_worker
from scpo_ray.methods.task import PreparedRun
from scpo_ray.models.shapes import network_shape
from scpo_ray.records import MemoryEstimate
from scpo_ray.report.overviews import PlannedRun, SweepCost
from scpo_ray.settings.comparison import ComparisonConfig
from scpo_ray.settings.naming import run_name
from scpo_ray.settings.run import RunConfig
from scpo_ray.settings.sweep import CULTURE, SearchConfig
from scpo_ray.sweep.space import comparison_trials, planned_settings, trials_of
from scpo_ray.training.engine import TorchEngine
from scpo_ray.training.loop import TrainingData, step_loss
from scpo_ray.training.memory import estimate_memory
from scpo_ray.training.pair_weights import FixedWeights

_TIMED_STEPS = 3
_LOOKED_AT_STEPS = 100
_SAMPLED_TRIALS = 12


def planned_run(config: RunConfig) -> PlannedRun:
    """Prepares a run (and so finds its input's faults), estimates its memory and times its first
    steps."""
    run_dir = open_run_dir(config)
    prepared = prepare_run(config, load_inputs(config, run_dir), local_worker(config))
    memory = _memory(config, prepared)
    planned = _planned(config, prepared, _seconds_per_token(config, prepared))
    return replace(planned, memory=memory)


def planned_runs(comparison: ComparisonConfig) -> list[PlannedRun]:
    """As `planned_run`, for every run; steps are timed once and scaled by their tokens."""
    inputs = load_inputs(comparison.run, open_run_dir(comparison.run))
    trials = comparison_trials(comparison, inputs.data.cultures)
    # A method that pools has one run for the trials of all cultures.
    configs = {trial.config.run_id: trial.config for trial in trials}
    return _planned_in_turn([(config, inputs) for config in configs.values()])


def sweep_cost(file: Path, overrides: Sequence[str]) -> SweepCost:
    """What a sweep would run, and about how long; finds faults of the input, and runs nothing.

    Raises: as `run_sweep`.
    """
    # Ray takes seconds to load, and no other command here needs it.
    from scpo_ray.launch.sweeps import prepare_sweep, read_sweep

    cache = InputsCache()
    sweep, folder = read_sweep(file, overrides)
    prepared = prepare_sweep(file, sweep, folder, cache)
    jobs, settings = prepared.missing, prepared.settings
    num_settings, num_trials = len(settings), len(prepared.jobs)
    if sweep.search.is_adaptive:
        # What a search will choose is not known: one draw from the space stands for it.
        drawn = sweep.model_copy(update={"search": SearchConfig(by="random", num_draws=1)})
        settings = planned_settings(drawn)[:1]
        examples = trials_of(sweep, settings, prepared.cultures)
        jobs = [trial_job(trial, cache.load(trial.config).fingerprints) for trial in examples]
        num_settings = sweep.search.num_draws or 0
        num_trials = len(examples) * num_settings
    sampled = [job.config for job in jobs[:: max(1, len(jobs) // _SAMPLED_TRIALS)]]
    plans = _planned_in_turn([(config, cache.load(config)) for config in sampled[:_SAMPLED_TRIALS]])
    seconds = None
    if plans:
        mean = sum(plan.seconds for plan in plans) / len(plans)
        seconds = mean * (num_trials - len(prepared.ended))
    return SweepCost(
        name=prepared.name,
        num_settings=num_settings,
        num_trials=num_trials,
        num_ended=len(prepared.ended),
        num_sampled=len(plans),
        seconds=seconds,
        axes={
            axis: len({json.dumps(s.values.get(axis), sort_keys=True) for s in settings})
            for axis in sweep.space
            if axis != CULTURE
        },
    )


def _planned_in_turn(runs: Sequence[tuple[RunConfig, RunInputs]]) -> list[PlannedRun]:
    speed: float | None = None
    planned = []
    for config, inputs in runs:
        prepared = prepare_run(config, inputs, local_worker(config))
        if speed is None and prepared.plan is not None:
            speed = _seconds_per_token(config, prepared)
        planned.append(_planned(config, prepared, speed or 0.0))
    return planned


def _planned(config: RunConfig, prepared: PreparedRun, seconds_per_token: float) -> PlannedRun:
    plan = prepared.plan
    return PlannedRun(
        name=run_name(config),
        num_train_pairs=len(prepared.task.train_pairs),
        num_selected=len(prepared.rows),
        num_steps=plan.num_steps if plan else 0,
        epochs=plan.num_steps * plan.batch_size / len(prepared.rows) if plan else 0.0,
        num_tokens=plan.num_tokens() if plan else 0,
        seconds=plan.num_tokens() * seconds_per_token if plan else 0.0,
    )


def _memory(config: RunConfig, prepared: PreparedRun) -> MemoryEstimate | None:
    """Of each of the workers that the run has at least; None where no network is trained."""
    if prepared.plan is None:
        return None
    base, lengths = prepared.task.base, prepared.plan.lengths
    passes = (
        (len(batch.texts), int(lengths[batch.texts].max()))
        for step in islice(prepared.plan.steps_from(0), _LOOKED_AT_STEPS)
        for batch in step.micro_batches(0)
    )
    texts, width = max(passes, key=lambda rows_width: rows_width[0] * rows_width[1])
    autocast = config.train.precision == "bf16"
    shape = network_shape(
        base.model_dir,
        base.config,
        texts=texts,
        width=width,
        autocast=autocast,
        cache=base.stores.converted,
    )
    device = prepared.task.worker.device
    return estimate_memory(shape, config.train, num_workers=config.train.min_workers, device=device)


def _seconds_per_token(config: RunConfig, prepared: PreparedRun) -> float:
    """Real optimizer steps on a model that is thrown away; the first is a warm-up."""
    if prepared.plan is None:
        return 0.0
    task = prepared.task
    model, worker = task.base.trainable(config.seed), task.worker
    # So small a rate that no setting makes these few steps diverge: only their time counts.
    engine = TorchEngine(model, config.train.model_copy(update={"learning_rate": 1e-12}), worker)
    data = TrainingData(task.tokens, FixedWeights(prepared.weights), lambda rows: [])
    num_steps = min(_TIMED_STEPS + 1, prepared.plan.num_steps)
    timed = replace(prepared.plan, num_steps=num_steps, in_rows=model.in_rows)
    started = time.monotonic()
    for step in timed.steps_from(0):
        if step.number == 2:
            started = time.monotonic()
        step_loss(engine, step, data, worker, normalize_weights=False)
        engine.step()
    num_timed = max(1, timed.num_steps - 1)
    per_step = (time.monotonic() - started) / num_timed
    return per_step * timed.num_steps / max(1, timed.num_tokens())
