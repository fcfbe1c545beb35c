"""A trained model on the test pairs of a config; two files of scores of anybody's models."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from scpo_ray.data.scored import ScoredPairs, read_scored_pairs
from scpo_ray.evaluation.best_of_n import evaluate_best_of_n
from scpo_ray.evaluation.held_out import not_held_out, run_of_model
from scpo_ray.evaluation.layers import evaluate_pairs
from scpo_ray.evaluation.metrics import layer_masks, ranked_right
from scpo_ray.experiment import Evaluated, evaluate_rewards, evaluated_texts, load_inputs, task_of
from scpo_ray.inputs import open_run_dir
from scpo_ray.launch.worker import local_worker
from scpo_ray.models.export import model_section, saved_temperatures
from scpo_ray.models.files import resolve_model_dir
from scpo_ray.models.known_renderer import known_renderer
from scpo_ray.models.loading import load_reward_model
from scpo_ray.models.same_tokens import check_pairs_left, told_apart
from scpo_ray.models.scoring import score_tokens
from scpo_ray.models.tokenizing import tokenize
from scpo_ray.records import InputError, PreferenceData
from scpo_ray.results import Difference, ScoreComparison
from scpo_ray.settings.evaluation import EvaluationConfig
from scpo_ray.settings.run import RunConfig
from scpo_ray.statistics.intervals import macro_difference
from scpo_ray.storage.run_dir import trained_model_dir
from scpo_ray.tracking.registry import fetch_ended_run, fetch_model, registered_name


def compare_scores(first: Path, second: Path) -> ScoreComparison:
    """Two models' scores of the same responses, paired and over whole users.

    Raises: as `read_scored_pairs`.
    """
    scored = read_scored_pairs(first, second)
    evaluation = evaluate_pairs(
        scored.pairs,
        scored.scores,
        scored.other_scores,
        scored.lengths,
        EvaluationConfig(),
        seed=0,
    )
    return ScoreComparison(
        first=str(first),
        second=str(second),
        evaluation=evaluation,
        macro=_macro_differences(scored),
        best_of_n=evaluate_best_of_n(scored.pairs, scored.scores, scored.other_scores),
        left_out=scored.left_out,
        clusters=scored.clusters,
    )


def _macro_differences(scored: ScoredPairs) -> dict[str, Difference]:
    pairs = scored.pairs
    ours = ranked_right(scored.scores[pairs.chosen], scored.scores[pairs.rejected])
    other = scored.other_scores[pairs.chosen], scored.other_scores[pairs.rejected]
    theirs = ranked_right(*other)
    found = {}
    for layer, mask in layer_masks(
        *other, distinctive_threshold=EvaluationConfig().distinctive_threshold
    ).items():
        by_culture = [mask & (pairs.culture_codes == code) for code in range(len(pairs.cultures))]
        found[str(layer)] = macro_difference(
            [ours[rows] for rows in by_culture],
            [theirs[rows] for rows in by_culture],
            [pairs.cluster_codes[rows] for rows in by_culture],
        )
    return found


def evaluate_model(model: str, config: RunConfig) -> Evaluated:
    """A trained model on the config's test pairs and opinions, beside the config's global model.

    Args:
        model: a run's folder, that of any reward model, a reward model's name on the hub, or a
            registered version in the config's MLflow store, as in "scpo-Chile:champion".
        config: its `culture_weights` say which countries count as trained on.

    Returns: with a warning where the model's run did not hold out what it is evaluated on.
    """
    path = Path(model)
    registered = None if path.exists() else registered_name(model)
    with tempfile.TemporaryDirectory() as downloads:
        if registered is not None:
            _, path = fetch_model(config.mlflow_uri, registered, Path(downloads))
        elif (path / "model").exists():
            path = trained_model_dir(path)
        found, data = _evaluated(path, config)
    try:
        uri = config.mlflow_uri
        run = run_of_model(path) if registered is None else fetch_ended_run(uri, registered)
    except InputError as error:
        # To look at a model is allowed all the same.
        return replace(found, warnings=(f"{model}: whom it learned from is not known: {error}",))
    [said] = not_held_out([run], data, config.data) if run is not None else [None]
    if said is None:
        return found
    warning = (
        f"{model} may have learned from what it is evaluated on; then its numbers are too good"
    )
    return replace(found, warnings=(f"{warning}: {said}",))


def _evaluated(model_dir: Path, config: RunConfig) -> tuple[Evaluated, PreferenceData]:
    """What was found, and the data as the config's global model tells its pairs apart."""
    worker, run_dir = local_worker(config), open_run_dir(config)
    inputs, stores = load_inputs(config, run_dir), run_dir.stores
    task = task_of(config, inputs, worker)
    section = model_section(model_dir, config.model)
    with _faults_of(section.path):
        folder = resolve_model_dir(section, stores.converted)
        renderer = known_renderer(folder, section, stores.renderers)
        model = load_reward_model(
            folder, section, renderer.loaded, device=worker.device, seed=0, cache=stores.converted
        )
    model = replace(model, precision=config.train.precision)
    tokens = tokenize(renderer, task.data.texts, stores.tokens)
    # Another tokenizer than the global model's may not tell other pairs apart.
    task = replace(task, data=told_apart(task.data, tokens, renderer.unknown_id))
    check_pairs_left(task.data)
    rewards = np.full(len(task.data.texts), np.nan, dtype=np.float32)
    texts = evaluated_texts(task.data, seed=config.seed)
    rewards[texts] = score_tokens(model, tokens, text_ids=texts)
    return evaluate_rewards(task, rewards, saved_temperatures(folder)), inputs.data


@contextmanager
def _faults_of(model: str) -> Iterator[None]:
    """Faults of a model that no setting names are said of it, without advice on settings that
    only a training has."""
    try:
        yield
    except InputError as error:
        title = error.title.removeprefix(f"model.path = {model}: ")
        if title == error.title:
            raise
        advice = [line for line in error.problems if "model.new_head" not in line]
        raise InputError(f"{model}: {title}", advice) from None
