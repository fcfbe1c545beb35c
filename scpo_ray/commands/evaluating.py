"""A trained model on the test pairs of a config."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from scpo_ray.experiment import (
    Evaluated,
    evaluate_rewards,
    evaluated_texts,
    load_inputs,
    open_run_dir,
    task_of,
)
from scpo_ray.launch.worker import local_worker
from scpo_ray.models.export import model_section
from scpo_ray.models.files import resolve_model_dir
from scpo_ray.models.global_model import tokenize
from scpo_ray.models.loading import load_reward_model
from scpo_ray.models.rendering import load_renderer
from scpo_ray.models.same_tokens import check_pairs_left, told_apart
from scpo_ray.models.scoring import score_tokens
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.run_dir import trained_model_dir


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
    model = replace(model, precision=config.train.precision)
    tokens = tokenize(renderer, task.data.texts, run_dir.stores.tokens)
    # Another tokenizer than the global model's may not tell other pairs apart.
    task = replace(task, data=told_apart(task.data, tokens, renderer.unknown_id))
    check_pairs_left(task.data)
    rewards = np.full(len(task.data.texts), np.nan, dtype=np.float32)
    texts = evaluated_texts(task.data)
    rewards[texts] = score_tokens(model, tokens, text_ids=texts)
    return evaluate_rewards(task, rewards)
