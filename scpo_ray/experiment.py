"""The story of one run: from a config to a trained, evaluated, saved reward model."""

import logging
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scpo_ray.data.loading import load_preferences
from scpo_ray.evaluation.best_of_n import evaluate_best_of_n
from scpo_ray.evaluation.calibration import evaluate_calibration, fitting_pairs
from scpo_ray.evaluation.layers import evaluate_pairs
from scpo_ray.evaluation.nearness import opinion_examples
from scpo_ray.evaluation.opinions import (
    OpinionOutcomes,
    Options,
    evaluate_opinions,
    opinion_columns,
    opinion_outcomes,
)
from scpo_ray.evaluation.scales import reference_scale, reference_texts
from scpo_ray.inputs import truncated_texts, with_tokens
from scpo_ray.methods.account import (
    choice_told,
    examples,
    pair_columns,
    selection_summaries,
    training_record,
)
from scpo_ray.methods.mixture import culture_weights_of, cultures_mask, training_fingerprint
from scpo_ray.methods.task import FitContext, Fitted, PreparedRun, Selection, Task
from scpo_ray.models.export import load_exported, save_temperatures
from scpo_ray.models.global_model import GlobalModel, open_global_model
from scpo_ray.models.loading import check_recomputes
from scpo_ray.models.precision import check_dtype
from scpo_ray.models.same_tokens import check_pairs_left
from scpo_ray.models.scoring import score_tokens
from scpo_ray.records import InputError, OpinionExample, Pairs, PreferenceData, Tokens, Worker
from scpo_ray.results import (
    RESULT_FORMAT,
    BestOfN,
    Calibration,
    CultureEvaluation,
    OpinionScores,
    RunResult,
    TrainingRecord,
)
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.run_dir import RunDir, load_result, trained_model_dir
from scpo_ray.storage.scale_file import save_scale
from scpo_ray.training.loop import TrainingSummary
from scpo_ray.training.plan import plan_steps
from scpo_ray.workers import from_first, together

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunInputs:
    """What a run reads, before any network is loaded.

    `fingerprints`: "data"; "model" (the weights started from); "scores" (weights and renderer:
    the score store's key).
    """

    data: PreferenceData
    global_model: GlobalModel
    tokens: Tokens
    fingerprints: dict[str, str]


@dataclass(frozen=True)
class Evaluated:
    """What was found on the test side, and in `dev` on the users held out for choices (empty where
    nobody is); what is of opinions where the data holds them. `warnings`: why the numbers may be
    too good."""

    pairs: dict[str, CultureEvaluation]
    dev: dict[str, CultureEvaluation]
    calibration: dict[str, Calibration]
    best_of_n: dict[str, BestOfN]
    opinions: list[OpinionScores]
    outcomes: dict[Options, OpinionOutcomes] | None
    opinion_examples: list[OpinionExample]
    warnings: tuple[str, ...] = ()


def run_experiment(prepared: PreparedRun, context: FitContext) -> RunResult | None:
    """Fits (or goes on fitting), evaluates and saves one model; its result, not yet saved.

    Every worker calls it. What the first one returns and writes is the run's; the others, which
    have done their share, return None.
    """
    fitted = _fitted(prepared, context)
    rewards = _evaluated_rewards(prepared.task, fitted)
    if prepared.task.worker.rank > 0:
        return None
    found = evaluate_rewards(prepared.task, rewards)
    if fitted.makes_model:
        save_temperatures(context.run_dir.model_dir, found.calibration)
        _save_scale(prepared.task.data, rewards, context.run_dir)
    result = _result(prepared, fitted, found, context.run_dir)
    _save_outcomes(prepared.task, rewards, found, context.run_dir)
    context.tracker.log_result(result, context.run_dir.path)
    return result


def load_inputs(config: RunConfig, run_dir: RunDir) -> RunInputs:
    """The data, its tokens, and where the global model lies.

    Raises: InputError for whatever is wrong with the data or the model's folder, and naming each
        culture that has no pairs which the model can tell apart.
    """
    stores = run_dir.stores
    data = load_preferences(config.data, stores.data)
    global_model = open_global_model(
        config.model, stores, device=config.device, precision=config.train.precision
    )
    data, tokens = with_tokens(data, global_model.renderer, stores.tokens)
    check_pairs_left(data)
    fingerprints = {
        "data": data.fingerprint,
        "model": global_model.fingerprint,
        "scores": global_model.score_key,
    }
    fingerprints |= global_model.conversion
    return RunInputs(data, global_model, tokens, fingerprints)


def prepare_run(config: RunConfig, inputs: RunInputs, worker: Worker) -> PreparedRun:
    """The global model's rewards, selection and plan of a run.

    Raises: InputError for whatever is wrong with the model, the cultures or the settings.
    """
    model_dir = inputs.global_model.model_dir
    if config.how.trains:
        check_dtype(model_dir, config.model, worker.device)
    if config.train.gradient_checkpointing and config.how.trains:
        check_recomputes(model_dir, config.model, inputs.global_model.stores.converted)
    task = task_of(config, inputs, worker)
    config.how.check(task)
    selection: Selection = config.how.select(task)
    rows = np.flatnonzero(selection.keep.numpy())
    _check_every_culture_has_pairs(task, rows)
    weights = _weights(task, selection, rows)
    plan = None
    if config.how.trains:
        chosen, rejected = task.train_pairs.chosen[rows], task.train_pairs.rejected[rows]
        pairs, lengths = np.stack([chosen, rejected], axis=1), task.tokens.lengths
        plan = plan_steps(
            pairs,
            lengths,
            batch_size=config.train.batch_size,
            num_steps=config.train.max_steps,
            micro_batch_tokens=config.train.pass_tokens(
                worker.device, longest_pair=2 * int(lengths[pairs].max())
            ),
            num_workers=worker.world_size,
            seed=config.seed,
            groups=None if config.train.draw == "pairs" else task.train_pairs.interactions[rows],
        )
    return PreparedRun(task, selection, rows, weights, plan)


def run_fingerprints(config: RunConfig, inputs: RunInputs) -> dict[str, str]:
    """What a run that is found again must find as it was: the global model, and the pairs that it
    learns from. What it is tested on may change: then it is evaluated again."""
    of_model = {name: inputs.fingerprints[name] for name in ("model", "scores")}
    return {"training": training_fingerprint(config, inputs.data), **of_model}


def ended_result(config: RunConfig, data_fingerprint: str, run_dir: RunDir) -> RunResult | None:
    """The result of the run, evaluated as the config says on the data of that fingerprint; None if
    there is none yet. Raises: InputError if there is one and it is damaged."""
    if not run_dir.result_path.exists():
        return None
    result = load_result(run_dir.path)
    known = (result.evaluation_id, result.fingerprints["data"])
    return result if known == (config.evaluation_id, data_fingerprint) else None


def evaluate_rewards(
    task: Task, rewards: NDArray[np.float32], saved_temperatures: dict[str, float] | None = None
) -> Evaluated:
    """A model's rewards on the held-out pairs and opinions, beside the global model's.

    Args:
        rewards: (T,), of `evaluated_texts` at least.
        saved_temperatures: culture -> the model's own, where it has them; else they are fitted.
    """
    config, data, ref_rewards = task.config, task.data, task.ref_rewards
    lengths = response_lengths(data)

    def evaluated(side: Pairs) -> dict[str, CultureEvaluation]:
        settings, seed = config.evaluation, config.seed
        return evaluate_pairs(side, rewards, ref_rewards, lengths, settings, seed=seed)

    found = Evaluated(
        evaluated(data.test),
        evaluated(data.dev) if len(data.dev) else {},
        evaluate_calibration(
            data, rewards, ref_rewards, saved=saved_temperatures, seed=config.seed
        ),
        evaluate_best_of_n(data.test, rewards, ref_rewards),
        [],
        None,
        [],
    )
    if data.opinions is None:
        return found
    cultures = task.trained_cultures
    outcomes = opinion_outcomes(data.opinions, rewards, ref_rewards, trained_cultures=cultures)
    fitted = outcomes["all"].temperatures
    return replace(
        found,
        opinions=evaluate_opinions(outcomes),
        outcomes=outcomes,
        opinion_examples=opinion_examples(data.opinions, data.texts, rewards, fitted, cultures),
    )


def global_rewards(inputs: RunInputs, worker: Worker) -> NDArray[np.float32] | None:
    """(T,) the global model's rewards, computed or read from the store; None with a new head."""
    if not inputs.global_model.has_head:
        return None
    return inputs.global_model.on(worker).rewards(inputs.data.texts)


def response_lengths(data: PreferenceData) -> NDArray[np.int64]:
    """(T,) characters of each dev and test pair's responses; 0 for texts in none of them."""
    lengths = np.zeros(len(data.texts), dtype=np.int64)
    for text in _held_out_texts(data):
        lengths[text] = len(data.texts[int(text)].response)
    return lengths


def _held_out_texts(data: PreferenceData) -> NDArray[np.int64]:
    sides = data.dev, data.test
    return np.unique(np.concatenate([t for p in sides for t in (p.chosen, p.rejected)]))


def evaluated_texts(data: PreferenceData, *, seed: int) -> NDArray[np.int64]:
    """The texts whose rewards an evaluation needs: of dev and test pairs, of the pairs that fit the
    temperatures, and every option of opinions (those of training questions fit theirs)."""
    fitting = fitting_pairs(data, seed=seed)
    texts = np.union1d(_held_out_texts(data), np.concatenate([fitting.chosen, fitting.rejected]))
    return texts if data.opinions is None else np.union1d(texts, data.opinions.texts)


def task_of(config: RunConfig, inputs: RunInputs, worker: Worker) -> Task:
    """What a method is given. Raises: InputError naming an unknown culture, or as `rewards`."""
    data = inputs.data
    weights = culture_weights_of(config, data)
    learned = dict.fromkeys(data.cultures, 1.0) if config.how.learns_from_all else weights
    return Task(
        config=config,
        data=data,
        tokens=inputs.tokens,
        base=inputs.global_model.on(worker),
        worker=worker,
        ref_rewards=global_rewards(inputs, worker),
        culture_weights=weights,
        train_pairs=data.train.take(cultures_mask(data.train, learned)),
    )


def _weights(task: Task, selection: Selection, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(len(rows),) what each selected pair counts, with its culture's weight."""
    config, pairs = task.config, task.train_pairs
    of_cultures = task.culture_weights
    if config.how.learns_from_all:
        of_cultures = dict.fromkeys(task.data.cultures, 1.0)
    by_code = np.array([of_cultures.get(c, 0.0) for c in pairs.cultures], np.float32)
    weights = selection.weights.numpy()[rows] * by_code[pairs.culture_codes[rows]]
    if config.selection.normalize_weights and not weights.all():
        raise InputError(
            f"selection.weight_temperature = {config.selection.weight_temperature}: too low for "
            f"normalize_weights, {int((weights == 0).sum())} pairs have weight 0"
        )
    return np.asarray(weights, dtype=np.float32)


def _check_every_culture_has_pairs(task: Task, rows: NDArray[np.int64]) -> None:
    problems, pairs = [], task.train_pairs
    for code, culture in enumerate(pairs.cultures):
        if task.culture_weights.get(culture, 0.0) == 0:
            continue
        total = int((pairs.culture_codes == code).sum())
        kept = int((pairs.culture_codes[rows] == code).sum())
        log.info("%s: kept %d of %d training pairs", culture, kept, total)
        if kept == 0:
            problems.append(
                f"{culture}: no pair of {total} left at selection.filter_threshold = "
                f"{task.config.selection.filter_threshold}"
            )
    if problems:
        raise InputError("nothing to train on", problems)


def _fitted(prepared: PreparedRun, context: FitContext) -> Fitted:
    """What the method makes, or what it made before and another evaluation needs."""
    task, run_dir = prepared.task, context.run_dir
    record = from_first(run_dir.training_record, task.worker)
    if record is not None and record.makes_model:
        log.info("%s: trained before, evaluated anew", run_dir.path)
        return _fitted_before(record, task, context)
    fitted: Fitted = task.config.how.fit(prepared, context)
    with together(task.worker):
        if task.worker.rank == 0:
            run_dir.save_training_record(training_record(task, fitted))
    return fitted


def _fitted_before(record: TrainingRecord, task: Task, context: FitContext) -> Fitted:
    def rewards(texts: NDArray[np.int64]) -> NDArray[np.float32]:
        folder = trained_model_dir(context.run_dir.path)
        model = load_exported(folder, device=task.worker.device, config=task.config.model)
        model = replace(model, precision=task.config.train.precision)
        return score_tokens(model, task.tokens, text_ids=texts)

    curve = record.curve
    for place, step in enumerate(curve.step):
        values = {"loss": curve.loss, "lr": curve.lr, "grad_norm": curve.grad_norm}
        context.tracker.log({f"train/{n}": v[place] for n, v in values.items()}, step=step)
    summary = TrainingSummary(record.num_steps, record.num_pairs_seen, record.seconds, curve)
    return Fitted(
        # Without a common disk, the model lies on the first worker's machine alone.
        lambda texts: from_first(lambda: rewards(texts), task.worker),
        summary,
        tuple(record.told),
    )


def _evaluated_rewards(task: Task, fitted: Fitted) -> NDArray[np.float32]:
    """(T,) rewards of what is evaluated and of the reference texts, NaN elsewhere."""
    rewards = np.full(len(task.data.texts), np.nan, dtype=np.float32)
    evaluated = evaluated_texts(task.data, seed=task.config.seed)
    texts = np.union1d(evaluated, reference_texts(task.data))
    rewards[texts] = fitted.rewards(texts)
    return rewards


def _save_scale(data: PreferenceData, rewards: NDArray[np.float32], run_dir: RunDir) -> None:
    try:
        scale = reference_scale(data, rewards)
    except ValueError as error:
        log.warning("%s: the model gets no scale to be compared on: %s", run_dir.path, error)
    else:
        save_scale(run_dir.model_dir, scale)


def _result(prepared: PreparedRun, fitted: Fitted, found: Evaluated, run_dir: RunDir) -> RunResult:
    task = prepared.task
    config, data = task.config, task.data
    record = run_dir.training_record() or training_record(task, fitted)
    return RunResult(
        format=RESULT_FORMAT,
        run_id=config.run_id,
        evaluation_id=config.evaluation_id,
        experiment=config.experiment,
        method=config.method,
        seed=config.seed,
        culture_weights=task.culture_weights,
        config=config.model_dump(mode="json"),
        fingerprints={
            "data": data.fingerprint,
            "model": task.base.fingerprint,
            "scores": task.base.score_key,
            **task.base.conversion,
        },
        data=data.counts,
        warnings=list(data.warnings),
        truncated_texts=truncated_texts(data, task.tokens),
        selection=selection_summaries(prepared),
        examples=examples(prepared),
        num_steps=record.num_steps,
        num_pairs_seen=record.num_pairs_seen,
        train_seconds=record.seconds,
        curve=record.curve,
        evaluation=found.pairs,
        dev=found.dev,
        model_dir=str(run_dir.model_dir if fitted.makes_model else task.base.model_dir),
        device=record.device,
        versions=record.versions,
        num_workers=record.num_workers,
        engine=record.engine,
        passes=record.passes,
        opinions=found.opinions,
        opinion_examples=found.opinion_examples,
        told=[*choice_told(prepared.selection.chosen), *record.told],
        chosen_selection=prepared.selection.chosen,
        calibration=found.calibration,
        best_of_n=found.best_of_n,
    )


def _save_outcomes(
    task: Task, rewards: NDArray[np.float32], found: Evaluated, run_dir: RunDir
) -> None:
    run_dir.save_test_pairs(pair_columns(task, task.data.test, rewards))
    if found.dev:
        run_dir.save_dev_pairs(pair_columns(task, task.data.dev, rewards))
    if found.outcomes is not None:
        run_dir.save_test_opinions(opinion_columns(found.outcomes))
