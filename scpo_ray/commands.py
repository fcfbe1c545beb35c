"""What the commands beside train and compare do, without printing it."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from scpo_ray.data.loading import read_preferences
from scpo_ray.evaluation.metrics import ranked_right
from scpo_ray.experiment import (
    Evaluated,
    RunInputs,
    culture_weights_of,
    evaluate_rewards,
    evaluated_texts,
    global_rewards,
    load_inputs,
    open_run_dir,
    prepare_run,
    task_of,
    with_tokens,
)
from scpo_ray.launch.sweep_trial import InputsCache, trial_job
from scpo_ray.launch.worker import local_worker
from scpo_ray.methods.account import truncated_texts
from scpo_ray.methods.selection import disagreement_mask
from scpo_ray.methods.task import PreparedRun
from scpo_ray.models.adapters import merged_adapters
from scpo_ray.models.export import load_exported, model_section, save_reward_model
from scpo_ray.models.files import resolve_model_dir
from scpo_ray.models.global_model import tokenize
from scpo_ray.models.loading import load_reward_model
from scpo_ray.models.rendering import load_renderer
from scpo_ray.models.same_tokens import check_pairs_left, told_apart
from scpo_ray.models.scoring import score_tokens
from scpo_ray.records import InputError
from scpo_ray.report.overviews import CultureScores, DataHealth, GlobalScores, PlannedRun, SweepCost
from scpo_ray.report.page import write_report
from scpo_ray.results import ComparisonResult, RunResult
from scpo_ray.settings.comparison import ComparisonConfig
from scpo_ray.settings.documents import write_yaml
from scpo_ray.settings.files import holds_a_space, load_config, load_sweep
from scpo_ray.settings.naming import run_name
from scpo_ray.settings.run import RunConfig
from scpo_ray.settings.sweep import CULTURE, Grid, SearchConfig
from scpo_ray.statistics.intervals import detectable_difference
from scpo_ray.storage.disk import whole_file, whole_folder
from scpo_ray.storage.run_dir import (
    COMPARISON_FILE,
    load_comparison_result,
    load_result,
    trained_model_dir,
)
from scpo_ray.sweep.efficiency import FRACTION
from scpo_ray.sweep.records import SweepResult
from scpo_ray.sweep.space import comparison_trials, planned_settings, trials_of
from scpo_ray.training.engine import TorchEngine
from scpo_ray.training.loop import TrainingData, step_loss
from scpo_ray.training.pair_weights import FixedWeights

log = logging.getLogger(__name__)

# Supposed of two models worth comparing, before there is any: the share of pairs that one ranks
# right and the other wrong, and how much a person's pairs agree in which of the two it is.
DIFFERING_SHARE = 0.2
DIFFERENCE_CORRELATION = 0.05
EFFICIENCY_FRACTIONS = (0.125, 0.25, 0.5, 0.75, 1.0)
_TIMED_STEPS = 3
_SAMPLED_TRIALS = 12


def data_health(config: RunConfig) -> DataHealth:
    """The data's counts and warnings, and what a training would refuse.

    Without the model's tokenizer nothing is said of what is cut.

    Raises: InputError naming the bad rows.
    """
    run_dir = open_run_dir(config)
    data = read_preferences(config.data, run_dir.stores.data)
    refusals, cut = list(data.refusals), None
    try:
        culture_weights_of(config, data)
    except InputError as error:
        refusals += error.problems
    try:
        inputs = with_tokens(config, data, run_dir)
        data, cut = inputs.data, truncated_texts(inputs.data, inputs.tokens)
        check_pairs_left(data)
    except InputError as error:
        refusals += [": ".join([error.title, *error.problems])]
    return DataHealth(
        counts=data.counts,
        truncated_texts=cut,
        max_length=config.model.max_length,
        warnings=list(data.warnings),
        fingerprint=data.fingerprint,
        detectable={
            culture: detectable_difference(
                np.unique(
                    data.test.cluster_codes[data.test.culture_codes == code], return_counts=True
                )[1],
                differing_share=DIFFERING_SHARE,
                correlation=DIFFERENCE_CORRELATION,
            )
            for code, culture in enumerate(data.test.cultures)
        },
        refusals=refusals,
    )


def global_scores(config: RunConfig, *, on_ray: bool) -> GlobalScores:
    """Computes the global model's rewards, here or on Ray, or finds them in the score store."""
    if config.model.new_head:
        raise InputError("model.new_head = true: an untrained head has no scores worth keeping")
    run_dir = open_run_dir(config)
    inputs = load_inputs(config, run_dir)
    if on_ray:
        from scpo_ray.launch.ray_score import score_on_ray

        score_on_ray(config, inputs)
    rewards = global_rewards(inputs, local_worker(config))
    if rewards is None:
        raise ValueError("a model with a trained head must have rewards")
    pairs, threshold = inputs.data.train, config.selection.filter_threshold
    chosen, rejected = rewards[pairs.chosen], rewards[pairs.rejected]
    kept = np.ones(len(pairs), dtype=np.bool_)
    if threshold is not None:
        chosen_tensor, rejected_tensor = torch.from_numpy(chosen), torch.from_numpy(rejected)
        kept = disagreement_mask(chosen_tensor, rejected_tensor, threshold=threshold).numpy()
    cultures = {}
    for code, culture in enumerate(pairs.cultures):
        mine = pairs.culture_codes == code
        cultures[culture] = CultureScores(
            num_pairs=int(mine.sum()),
            accuracy=float(ranked_right(chosen[mine], rejected[mine]).mean()),
            mean_margin=float((chosen[mine] - rejected[mine]).mean()),
            kept_share=float(kept[mine].mean()),
        )
    path = run_dir.stores.scores.path(inputs.global_model.score_key)
    return GlobalScores(cultures, threshold, len(inputs.data.texts), str(path))


def planned_run(config: RunConfig) -> PlannedRun:
    """Prepares a run (and so finds its input's faults) and times its first steps."""
    run_dir = open_run_dir(config)
    prepared = prepare_run(config, load_inputs(config, run_dir), local_worker(config))
    return _planned(config, prepared, _seconds_per_token(config, prepared))


def planned_runs(comparison: ComparisonConfig) -> list[PlannedRun]:
    """As `planned_run`, for every run; steps are timed once and scaled by their tokens."""
    inputs = load_inputs(comparison.run, open_run_dir(comparison.run))
    trials = comparison_trials(comparison, inputs.data.cultures)
    # A method that pools has one run for the trials of all cultures.
    configs = {trial.config.run_id: trial.config for trial in trials}
    return _planned_in_turn([(config, inputs) for config in configs.values()])


def efficiency(path: Path | str, overrides: Sequence[str]) -> tuple[SweepResult, Path, Path]:
    """A sweep over the share of training users, to its end: result, its folder, and its file.

    Args:
        path: a sweep file with an axis `data.data_fraction`, or a run's: then scpo and finetune
            are compared on `EFFICIENCY_FRACTIONS` of its cultures' users with three seeds, by a
            sweep file that is written to the run's experiment folder.

    Raises: InputError if the sweep has no such axis with two values; else as `run_sweep`.
    """
    # Ray takes seconds to load, and no other command here needs it.
    from scpo_ray.launch.sweeps import run_sweep

    if holds_a_space(path):
        file = Path(path)
        axis = load_sweep(file, overrides).space.get(FRACTION)
        if not isinstance(axis, Grid) or len(axis.grid) < 2:
            rule = f"space.{FRACTION}: must be a grid of two values or more"
            raise InputError(f"{file}: no curve to draw", [rule])
    else:
        file, overrides = efficiency_file(load_config(path, overrides)), []
    return *run_sweep(file, overrides), file


def efficiency_file(config: RunConfig) -> Path:
    """Writes the sweep that `efficiency` runs for a run's file; the same run, the same sweep.

    The cultures are those that the run trains for, or else all that its data has.
    """
    cultures = [culture for culture, weight in (config.culture_weights or {}).items() if weight > 0]
    if not cultures:
        data = config.data
        cultures = data.cultures or list(load_inputs(config, open_run_dir(config)).data.cultures)
    run = config.model_dump(mode="json", exclude_unset=True)
    for varied in ("method", "seed", "culture_weights"):
        run.pop(varied, None)
    num_workers = run.get("train", {}).pop("num_workers", 1)
    run.get("data", {}).pop("data_fraction", None)
    document = {
        "run": run,
        "space": {
            CULTURE: {"grid": cultures},
            "method": {"grid": ["finetune", "scpo"]},
            FRACTION: {"grid": list(EFFICIENCY_FRACTIONS)},
        },
        "repeat": {"seeds": [config.seed + place for place in range(3)]},
        "resources": {"workers": num_workers},
    }
    folder = config.output_dir / config.experiment
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "efficiency.yaml"
    question = "# How many training pairs does scpo need to match finetune on all of them?\n\n"
    with whole_file(file) as part:
        part.write_text(question + write_yaml(document), encoding="utf-8")
    return file


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


def evaluate_model(path: Path, config: RunConfig) -> Evaluated:
    """A trained model on the config's test pairs and opinions, beside the config's global model.

    Args:
        path: a run's folder, that of any reward model, or a reward model's name on the hub.
        config: its `culture_weights` say which countries count as trained on.
    """
    model_dir = trained_model_dir(path) if (path / "model").exists() else path
    worker, run_dir = local_worker(config), open_run_dir(config)
    inputs = load_inputs(config, run_dir)
    task = task_of(config, inputs, worker)
    section = model_section(model_dir, config.model)
    cache = run_dir.stores.converted
    folder = resolve_model_dir(section, cache)
    renderer = load_renderer(folder, section)
    model = load_reward_model(folder, section, renderer, device=worker.device, seed=0, cache=cache)
    tokens = tokenize(renderer, task.data.texts, run_dir.stores.tokens)
    # Another tokenizer than the global model's may not tell other pairs apart.
    task = replace(task, data=told_apart(task.data, tokens, renderer.unknown_id))
    check_pairs_left(task.data)
    rewards = np.full(len(task.data.texts), np.nan, dtype=np.float32)
    texts = evaluated_texts(task.data)
    rewards[texts] = score_tokens(model, tokens, text_ids=texts)
    return evaluate_rewards(task, rewards)


def report_folders(folders: Sequence[Path], output: Path) -> Path:
    """One page about runs and comparisons.

    Args:
        folders: each a run's folder, or an experiment's with runs (and a comparison) in it.

    Raises: InputError naming each folder without a result.
    """
    results: list[RunResult] = []
    comparisons: list[ComparisonResult] = []
    problems = []
    for folder in folders:
        runs = [folder] if (folder / "result.json").is_file() else _runs_below(folder)
        if not runs:
            problems.append(f"{folder}: no result.json in it or one folder below")
        results += [load_result(run) for run in runs]
        if (folder / COMPARISON_FILE).is_file():
            comparisons.append(load_comparison_result(folder))
    if len(comparisons) > 1:
        problems.append("one page holds one comparison; name one experiment's folder")
    if problems:
        raise InputError("nothing to report", problems)
    comparison = comparisons[0] if comparisons else None
    if comparison is not None:
        others = [r for r in results if r.run_id not in comparison.run_ids]
        results = [r for r in results if r.run_id in comparison.run_ids]
        if others:
            names = ", ".join(f"{r.method} {r.run_id}" for r in others)
            log.warning("left out, not in the comparison: %d runs (%s)", len(others), names)
    return write_report(results, comparison, output)


def export_model(run: Path, folder: Path, *, merge: bool) -> None:
    """Writes a run's model as a plain Hugging Face folder.

    Raises: InputError if the run has no model, `folder` exists, or there is nothing to merge.
    """
    model_dir = trained_model_dir(run)
    if folder.exists():
        raise InputError(f"{folder}: exists; name a new folder")
    model = load_exported(model_dir, device="cpu")
    with whole_folder(folder) as part:
        save_reward_model(merged_adapters(model) if merge else model, part)


def _planned_in_turn(runs: Sequence[tuple[RunConfig, RunInputs]]) -> list[PlannedRun]:
    speed: float | None = None
    planned = []
    for config, inputs in runs:
        prepared = prepare_run(config, inputs, local_worker(config))
        if speed is None and prepared.plan is not None:
            speed = _seconds_per_token(config, prepared)
        planned.append(_planned(config, prepared, speed or 0.0))
    return planned


def _runs_below(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/result.json"))


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


def _seconds_per_token(config: RunConfig, prepared: PreparedRun) -> float:
    """Real optimizer steps on a model that is thrown away; the first is a warm-up."""
    if prepared.plan is None:
        return 0.0
    task = prepared.task
    model, worker = task.base.trainable(config.seed), task.worker
    # So small a rate that no setting makes these few steps diverge: only their time counts.
    engine = TorchEngine(model, config.train.model_copy(update={"learning_rate": 1e-12}), worker)
    data = TrainingData(task.tokens, FixedWeights(prepared.weights), lambda rows: [])
    timed = replace(prepared.plan, num_steps=min(_TIMED_STEPS + 1, prepared.plan.num_steps))
    started = time.monotonic()
    for step in timed.steps_from(0):
        if step.number == 2:
            started = time.monotonic()
        step_loss(engine, step, data, worker, normalize_weights=False)
        engine.step()
    num_timed = max(1, timed.num_steps - 1)
    per_step = (time.monotonic() - started) / num_timed
    return per_step * timed.num_steps / max(1, timed.num_tokens())
