"""The story of one run: from a config to a trained, evaluated, saved reward model."""

import logging
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import scpo_ray
from scpo_ray.data.loading import load_preferences
from scpo_ray.evaluation.layers import evaluate_pairs, example_pairs, pair_ids, plain_accuracies
from scpo_ray.evaluation.opinions import (
    OpinionOutcomes,
    Options,
    evaluate_opinions,
    opinion_columns,
    opinion_outcomes,
)
from scpo_ray.methods.frozen import change_head, learn_heads
from scpo_ray.methods.gpo import (
    FewShot,
    few_shot,
    learn_predictor,
    predicted_logits,
    predictor_key,
    predictor_of,
    standardized,
)
from scpo_ray.methods.heads import rank_of
from scpo_ray.methods.selection import Selection, select_pairs
from scpo_ray.models.rendering import Renderer, load_renderer
from scpo_ray.models.reward_model import (
    RewardModel,
    load_reward_model,
    model_fingerprint,
    resolve_model_dir,
    save_reward_model,
)
from scpo_ray.models.scoring import (
    load_frozen_model,
    reference_features,
    reference_rewards,
    score_key,
    score_tokens,
    tokenize,
)
from scpo_ray.records import (
    CultureEvaluation,
    InputError,
    OpinionScores,
    Pairs,
    PreferenceData,
    RunResult,
    SelectionSummary,
    Tokens,
    TrainingCurve,
    Worker,
)
from scpo_ray.settings.files import check_culture_names
from scpo_ray.settings.methods import METHODS
from scpo_ray.settings.naming import run_name, trained_cultures
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.disk import whole_folder
from scpo_ray.storage.remote import RemoteFolder
from scpo_ray.storage.run_dir import RunDir
from scpo_ray.tracking.trackers import Tracker
from scpo_ray.training.checkpoints import open_checkpoints
from scpo_ray.training.engine import start_engine
from scpo_ray.training.group_dro import Groups
from scpo_ray.training.loop import TrainingData, TrainingSummary, train
from scpo_ray.training.plan import Plan, plan_steps
from scpo_ray.workers import from_first, together

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunInputs:
    """What a run reads, before any network is loaded.

    `fingerprints`: "data"; "model" (the weights started from); "scores" (weights, renderer and
    texts: the score store's key).
    """

    data: PreferenceData
    model_dir: Path
    renderer: Renderer
    tokens: Tokens
    fingerprints: dict[str, str]


@dataclass(frozen=True)
class PreparedRun:
    """All that is decided before the first gradient; making it finds every fault of the input.

    `ref_rewards`: (T,) the global model's, None with a new head. `train_pairs`: those of the
    trained cultures (of all, where heads are learned together); `selection` speaks of all of
    them, `rows` are the kept ones, `weights` (len(rows),) what each counts with its culture's
    weight. `plan` is None for a method that does not train the network.
    """

    inputs: RunInputs
    ref_rewards: NDArray[np.float32] | None
    culture_weights: dict[str, float]
    train_pairs: Pairs
    selection: Selection
    rows: NDArray[np.int64]
    weights: NDArray[np.float32]
    plan: Plan | None


@dataclass(frozen=True)
class Midway:
    """What a sweep wants to know before the end: after which steps, and who is told what.

    `tell` gets the step and culture -> layer -> share of test pairs ranked right.
    """

    steps: frozenset[int]
    tell: Callable[[int, dict[str, dict[str, float]]], None]


@dataclass(frozen=True)
class Evaluated:
    """What was found on the test side; `opinions` and `outcomes` where the data holds opinions."""

    pairs: dict[str, CultureEvaluation]
    opinions: list[OpinionScores]
    outcomes: dict[Options, OpinionOutcomes] | None


def open_run_dir(config: RunConfig) -> RunDir:
    """The run's folder: the same config finds the same one, and so resumes or is done."""
    below = Path(config.experiment) / f"{run_name(config)}-{config.run_id}"
    storage = config.launch.storage
    remote = None if storage is None else RemoteFolder(storage).below(below.as_posix())
    return RunDir(config.output_dir / below, config.output_dir / "cache", remote)


def load_inputs(config: RunConfig, run_dir: RunDir) -> RunInputs:
    """The data, its tokens, and where the global model lies.

    Raises: InputError for whatever is wrong with the data or the model's folder.
    """
    data = load_preferences(config.data, run_dir.cache / "data")
    model_dir = resolve_model_dir(config.model)
    renderer = load_renderer(model_dir, config.model)
    tokens = tokenize(renderer, data.texts, run_dir.token_store)
    if tokens.truncated.any():
        log.info(
            "%d of %d texts are longer than %d tokens and were cut",
            tokens.truncated.sum(),
            len(tokens.truncated),
            config.model.max_length,
        )
    fingerprints = {
        "data": data.fingerprint,
        "model": model_fingerprint(model_dir, config.model),
        "scores": score_key(model_dir, config.model, renderer, data.texts),
    }
    return RunInputs(data, model_dir, renderer, tokens, fingerprints)


def prepare_run(
    config: RunConfig, inputs: RunInputs, worker: Worker, run_dir: RunDir
) -> PreparedRun:
    """The global model's rewards, selection and plan of a run.

    Raises: InputError for whatever is wrong with the model, the cultures or the settings.
    """
    culture_weights = culture_weights_of(config, inputs.data)
    ref_rewards = global_rewards(config, inputs, worker, run_dir)
    _check_several_cultures(config, inputs.data, culture_weights)
    learned = culture_weights
    if METHODS[config.method].on_features:
        learned = dict.fromkeys(inputs.data.cultures, 1.0)
    train_pairs = inputs.data.train.take(_cultures_mask(inputs.data.train, learned))
    selection = _select(config, train_pairs, ref_rewards)
    rows = np.flatnonzero(selection.keep.numpy())
    _check_every_culture_has_pairs(config, train_pairs, rows, culture_weights)
    by_code = np.array([learned.get(c, 0.0) for c in train_pairs.cultures], np.float32)
    weights = selection.weights.numpy()[rows] * by_code[train_pairs.culture_codes[rows]]
    if config.selection.normalize_weights and not weights.all():
        raise InputError(
            f"selection.weight_temperature = {config.selection.weight_temperature}: too low for "
            f"normalize_weights, {int((weights == 0).sum())} pairs have weight 0"
        )
    plan = None
    if METHODS[config.method].trains:
        plan = plan_steps(
            np.stack([train_pairs.chosen[rows], train_pairs.rejected[rows]], axis=1),
            inputs.tokens.lengths,
            batch_size=config.train.batch_size,
            num_steps=config.train.max_steps,
            micro_batch_tokens=config.train.micro_batch_tokens,
            num_workers=worker.world_size,
            seed=config.seed,
        )
    return PreparedRun(
        inputs, ref_rewards, culture_weights, train_pairs, selection, rows, weights, plan
    )


def run_experiment(
    config: RunConfig,
    prepared: PreparedRun,
    worker: Worker,
    tracker: Tracker,
    run_dir: RunDir,
    midway: Midway | None = None,
) -> RunResult | None:
    """Trains (or goes on training), evaluates and saves one model; its result, not yet saved.

    Every worker calls it. What the first one returns and writes is the run's; the others, which
    have done their share, return None.
    """
    data = prepared.inputs.data
    if METHODS[config.method].on_features:
        rewards, summary = _rewards_on_features(config, prepared, worker, run_dir)
    else:
        model, summary = _trained_model(config, prepared, worker, tracker, run_dir, midway)
        rewards = _rewards(prepared, model, evaluated_texts(data), worker)
    if worker.rank > 0:
        return None
    found = evaluate_rewards(config, data, rewards, prepared.ref_rewards, prepared.culture_weights)
    result = _result(config, prepared, worker, run_dir, summary, found)
    run_dir.save_test_pairs(_test_pair_columns(prepared, rewards))
    if found.outcomes is not None:
        run_dir.save_test_opinions(opinion_columns(found.outcomes))
    tracker.log_result(result, run_dir.path)
    return result


def evaluate_rewards(
    config: RunConfig,
    data: PreferenceData,
    rewards: NDArray[np.float32],
    ref_rewards: NDArray[np.float32] | None,
    culture_weights: dict[str, float],
) -> Evaluated:
    """A model's rewards on the held-out pairs and opinions, beside the global model's.

    Args:
        rewards, ref_rewards: (T,), of `evaluated_texts` at least; None without a global model.
        culture_weights: what it was trained on.
    """
    pairs = evaluate_pairs(
        data.test,
        rewards,
        ref_rewards,
        response_lengths(data),
        config.evaluation,
        seed=config.seed,
    )
    if data.opinions is None:
        return Evaluated(pairs, [], None)
    trained = trained_cultures(culture_weights)
    outcomes = opinion_outcomes(data.opinions, rewards, ref_rewards, trained_cultures=trained)
    opinions = evaluate_opinions(outcomes, config.evaluation, seed=config.seed)
    return Evaluated(pairs, opinions, outcomes)


def global_rewards(
    config: RunConfig, inputs: RunInputs, worker: Worker, run_dir: RunDir
) -> NDArray[np.float32] | None:
    """(T,) the global model's rewards, computed or read from the store; None with a new head."""
    if config.model.new_head:
        return None
    return reference_rewards(
        inputs.model_dir,
        config.model,
        inputs.renderer,
        inputs.data.texts,
        inputs.tokens,
        run_dir.score_store,
        worker,
    )


def load_global_model(config: RunConfig, inputs: RunInputs, worker: Worker) -> RewardModel:
    """The model that training starts from, with its adapters or new head if it gets any."""
    return load_reward_model(
        inputs.model_dir,
        config.model,
        inputs.renderer,
        device=worker.device,
        seed=config.seed,
    )


def response_lengths(data: PreferenceData) -> NDArray[np.int64]:
    """(T,) characters of each test pair's responses; 0 for texts in no test pair."""
    lengths = np.zeros(len(data.texts), dtype=np.int64)
    for text in _test_texts(data):
        lengths[text] = len(data.texts[int(text)].response)
    return lengths


def culture_weights_of(config: RunConfig, data: PreferenceData) -> dict[str, float]:
    """Culture -> weight, as set or all alike. Raises: InputError naming an unknown culture."""
    if config.culture_weights is None:
        return dict.fromkeys(data.cultures, 1.0)
    check_culture_names(list(config.culture_weights), data.cultures, "culture_weights")
    return dict(config.culture_weights)


def _cultures_mask(pairs: Pairs, culture_weights: dict[str, float]) -> NDArray[np.bool_]:
    wanted = [c for c, name in enumerate(pairs.cultures) if culture_weights.get(name, 0.0) > 0]
    return np.isin(pairs.culture_codes, wanted)


def _check_several_cultures(
    config: RunConfig, data: PreferenceData, culture_weights: dict[str, float]
) -> None:
    """Raises: InputError if a method that learns from several cultures at once gets too few."""
    method = METHODS[config.method]
    trained = trained_cultures(culture_weights)
    learned = data.cultures if method.on_features else trained
    if method.needs_cultures and len(learned) < 2:
        raise InputError(
            f"method = {config.method}: learns from several cultures at once, got {[*learned]}",
            ["name more in data.cultures" if method.on_features else "give more than one a weight"],
        )
    if method.few_shot:
        _few_shot(config, data, trained)
    if method.heads == "low-rank":
        try:
            rank_of(config.rivals.lore, len(learned))
        except ValueError as error:
            raise InputError(f"rivals.lore: {error}") from None


def _few_shot(config: RunConfig, data: PreferenceData, trained: Sequence[str]) -> FewShot:
    """Raises: InputError naming what there is too little of."""
    if data.opinions is None or len(trained) != 1:
        raise InputError(
            f"method = {config.method}: predicts one country, got {len(trained)}",
            ["give one country in culture_weights, or compare over space.culture"],
        )
    try:
        return few_shot(data.opinions, trained[0], config.rivals.gpo, seed=config.seed)
    except ValueError as error:
        raise InputError(f"rivals.gpo: {error}") from None


def _select(config: RunConfig, pairs: Pairs, rewards: NDArray[np.float32] | None) -> Selection:
    return select_pairs(
        None if rewards is None else torch.from_numpy(rewards[pairs.chosen]),
        None if rewards is None else torch.from_numpy(rewards[pairs.rejected]),
        len(pairs),
        method=METHODS[config.method],
        config=config.selection,
    )


def _culture_groups(pairs: Pairs, config: RunConfig) -> Groups:
    """The cultures that the plan's pairs come from, for group DRO."""
    present, codes = np.unique(pairs.culture_codes, return_inverse=True)
    names = tuple(pairs.cultures[code] for code in present)
    return Groups(codes.astype(np.int64), names, config.rivals.group_dro.step_size)


def _check_every_culture_has_pairs(
    config: RunConfig,
    pairs: Pairs,
    rows: NDArray[np.int64],
    culture_weights: dict[str, float],
) -> None:
    problems = []
    for code, culture in enumerate(pairs.cultures):
        if culture_weights.get(culture, 0.0) == 0:
            continue
        total = int((pairs.culture_codes == code).sum())
        kept = int((pairs.culture_codes[rows] == code).sum())
        log.info("%s: kept %d of %d training pairs", culture, kept, total)
        if kept == 0:
            problems.append(
                f"{culture}: no pair of {total} left at selection.filter_threshold = "
                f"{config.selection.filter_threshold}"
            )
    if problems:
        raise InputError("nothing to train on", problems)


def _trained_model(
    config: RunConfig,
    prepared: PreparedRun,
    worker: Worker,
    tracker: Tracker,
    run_dir: RunDir,
    midway: Midway | None,
) -> tuple[RewardModel | None, TrainingSummary]:
    """The model after training, saved; None for the global method, whose rewards are known."""
    if prepared.plan is None:
        return None, TrainingSummary(0, 0, 0.0, TrainingCurve())
    inputs = prepared.inputs
    with together(worker):
        model = load_global_model(config, inputs, worker)
    engine = start_engine(model, config.train, worker)
    pairs = prepared.train_pairs.take(prepared.rows)
    groups = _culture_groups(pairs, config) if METHODS[config.method].reweights else None

    def look(step: int) -> None:
        if midway is None or step not in midway.steps:
            return
        accuracies = plain_accuracies(
            inputs.data.test,
            _rewards(prepared, model, _test_texts(inputs.data), worker),
            prepared.ref_rewards,
            distinctive_threshold=config.evaluation.distinctive_threshold,
        )
        midway.tell(step, accuracies)

    summary = train(
        engine,
        prepared.plan,
        TrainingData(
            inputs.tokens,
            prepared.weights,
            lambda rows: pair_ids(pairs.take(rows), prepared.inputs.data.interaction_ids),
            groups,
        ),
        config.train,
        tracker,
        open_checkpoints(run_dir),
        worker,
        seed=config.seed,
        normalize_weights=config.selection.normalize_weights,
        after_step=look,
    )
    weights = engine.whole_weights()
    with together(worker):
        if worker.rank == 0:
            with whole_folder(run_dir.model_dir) as folder:
                save_reward_model(model, folder, weights=weights)
    return model, summary


def _rewards_on_features(
    config: RunConfig, prepared: PreparedRun, worker: Worker, run_dir: RunDir
) -> tuple[NDArray[np.float32], TrainingSummary]:
    """(T,) rewards by what is learned from all cultures on the frozen network's features.

    Heads: those of the run's culture, and the model with it is saved; with several cultures in
    `culture_weights` the weighted mean of theirs. Few-shot: predicted logits, and no model.
    """
    inputs, ref_rewards = prepared.inputs, prepared.ref_rewards
    features = reference_features(
        inputs.model_dir,
        config.model,
        inputs.renderer,
        inputs.data.texts,
        inputs.tokens,
        run_dir.feature_store,
        worker,
    )

    def learn() -> tuple[NDArray[np.float32], TrainingSummary]:
        if features is None or ref_rewards is None:
            raise ValueError("this needs the global model's features and rewards")
        if METHODS[config.method].few_shot:
            return _few_shot_rewards(config, prepared, run_dir, features, worker.device)
        started = time.monotonic()
        changes, heads = learn_heads(
            config.method,
            prepared.train_pairs,
            features,
            ref_rewards,
            config.rivals,
            seed=config.seed,
        )
        seconds = time.monotonic() - started
        shares = np.array([prepared.culture_weights.get(culture, 0.0) for culture in changes])
        change = shares @ np.stack(list(changes.values())) / shares.sum()
        model = load_frozen_model(
            inputs.model_dir, config.model, inputs.renderer, device=worker.device
        )
        rewards = change_head(model, change, features, ref_rewards)
        with whole_folder(run_dir.model_dir) as folder:
            save_reward_model(model, folder)
        passes = heads.num_evaluations
        num_pairs = passes * len(prepared.train_pairs)
        return rewards, TrainingSummary(passes, num_pairs, seconds, TrainingCurve())

    return from_first(learn, worker)


def _few_shot_rewards(
    config: RunConfig,
    prepared: PreparedRun,
    run_dir: RunDir,
    features: NDArray[np.float32],
    device: str,
) -> tuple[NDArray[np.float32], TrainingSummary]:
    task = _few_shot(config, prepared.inputs.data, trained_cultures(prepared.culture_weights))
    log.info("learning from %s", ", ".join(task.learning))
    started = time.monotonic()
    learned = [answer for answers in task.learning.values() for answer in answers]
    texts = np.unique(np.concatenate([answer.texts for answer in learned]))
    features = standardized(features, texts)
    gpo, countries = config.rivals.gpo, list(task.learning.values())

    def learn() -> dict[str, NDArray[np.float32]]:
        predictor, loss = learn_predictor(countries, features, gpo, seed=config.seed, device=device)
        log.info("%d steps, loss %.4f", gpo.num_steps, loss)
        return {name: weight.cpu().numpy() for name, weight in predictor.state_dict().items()}

    key = predictor_key(countries, features, gpo, seed=config.seed)
    weights = run_dir.predictor_store.get_or_learn(key, learn)
    predictor = predictor_of(weights, num_features=features.shape[1], device=device)
    rewards = predicted_logits(predictor, task.context, features, device=device)
    seconds = time.monotonic() - started
    return rewards, TrainingSummary(gpo.num_steps, 0, seconds, TrainingCurve())


def _test_texts(data: PreferenceData) -> NDArray[np.int64]:
    return np.unique(np.concatenate([data.test.chosen, data.test.rejected]))


def evaluated_texts(data: PreferenceData) -> NDArray[np.int64]:
    """The texts whose rewards an evaluation needs: of test pairs, and every option of opinions
    (those of training questions fit the temperature)."""
    texts = _test_texts(data)
    return texts if data.opinions is None else np.union1d(texts, data.opinions.texts)


def _rewards(
    prepared: PreparedRun, model: RewardModel | None, texts: NDArray[np.int64], worker: Worker
) -> NDArray[np.float32]:
    """(T,) rewards of `texts`, NaN elsewhere."""
    if model is None and prepared.ref_rewards is not None:
        return prepared.ref_rewards
    if model is None:
        raise ValueError("neither a trained model nor a global model's rewards")
    rewards = np.full(len(prepared.inputs.data.texts), np.nan, dtype=np.float32)
    rewards[texts] = score_tokens(model, prepared.inputs.tokens, text_ids=texts, worker=worker)
    return rewards


def _result(
    config: RunConfig,
    prepared: PreparedRun,
    worker: Worker,
    run_dir: RunDir,
    summary: TrainingSummary,
    found: Evaluated,
) -> RunResult:
    data, inputs = prepared.inputs.data, prepared.inputs
    makes_model = prepared.plan is not None or METHODS[config.method].heads is not None
    examples = []
    if prepared.ref_rewards is not None:
        examples = example_pairs(
            prepared.train_pairs,
            prepared.ref_rewards,
            prepared.selection.keep.numpy(),
            prepared.selection.weights.numpy(),
            data.texts,
            data.interaction_ids,
            num_examples=config.evaluation.num_examples,
            seed=config.seed,
        )
    return RunResult(
        run_id=config.run_id,
        experiment=config.experiment,
        method=config.method,
        seed=config.seed,
        culture_weights=prepared.culture_weights,
        config=config.model_dump(mode="json"),
        fingerprints=inputs.fingerprints,
        data=data.counts,
        warnings=list(data.warnings),
        truncated_texts=truncated_texts(data, inputs.tokens),
        selection=_selection_summaries(prepared),
        examples=examples,
        num_steps=summary.num_steps,
        num_pairs_seen=summary.num_pairs_seen,
        train_seconds=summary.seconds,
        curve=summary.curve,
        evaluation=found.pairs,
        model_dir=str(run_dir.model_dir if makes_model else inputs.model_dir),
        device=worker.device,
        versions={
            "scpo_ray": scpo_ray.__version__,
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
        num_workers=worker.world_size,
        engine=config.train.engine_name,
        opinions=found.opinions,
        group_weights=summary.group_weights,
    )


def truncated_texts(data: PreferenceData, tokens: Tokens) -> dict[str, int]:
    """Culture -> how many of its pairs' distinct texts were cut at the maximum length."""
    counts = {}
    for code, culture in enumerate(data.cultures):
        texts = [
            texts_of_side[pairs.culture_codes == code]
            for pairs in (data.train, data.test)
            for texts_of_side in (pairs.chosen, pairs.rejected)
        ]
        counts[culture] = int(tokens.truncated[np.unique(np.concatenate(texts))].sum())
    return counts


def _selection_summaries(prepared: PreparedRun) -> dict[str, SelectionSummary]:
    pairs, kept = prepared.train_pairs, prepared.selection.keep.numpy()
    weights = prepared.selection.weights.numpy()
    summaries = {}
    for code, culture in enumerate(pairs.cultures):
        mine = pairs.culture_codes == code
        if not mine.any():
            continue
        selected = weights[mine & kept]
        counts, edges = np.histogram(selected, bins=10, range=(0, max(1.0, selected.max())))
        summaries[culture] = SelectionSummary(
            num_pairs=int(mine.sum()),
            num_selected=len(selected),
            kept_share=len(selected) / int(mine.sum()),
            mean_weight=float(selected.mean()),
            histogram_edges=edges.tolist(),
            histogram_counts=counts.tolist(),
        )
    return summaries


def _test_pair_columns(
    prepared: PreparedRun, rewards: NDArray[np.float32]
) -> dict[str, list[str] | NDArray[Any]]:
    """What a comparison needs of every test pair; see `run_dir.load_test_pairs`."""
    test, ref = prepared.inputs.data.test, prepared.ref_rewards
    columns: dict[str, list[str] | NDArray[Any]] = {
        "culture": [test.cultures[code] for code in test.culture_codes],
        "pair_id": pair_ids(test, prepared.inputs.data.interaction_ids),
        "cluster": test.cluster_codes,
        "margin": rewards[test.chosen] - rewards[test.rejected],
    }
    if ref is not None:
        columns["ref_margin"] = ref[test.chosen] - ref[test.rejected]
    return columns
