"""What a run's result says of its pairs and of its fit."""

import platform
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import scpo_ray
from scpo_ray.data.hashes import pair_hashes
from scpo_ray.evaluation.layers import example_pairs, pair_ids
from scpo_ray.methods.task import Fitted, PreparedRun, Task
from scpo_ray.records import Pairs
from scpo_ray.results import ChosenSelection, ExamplePair, SelectionSummary, TrainingRecord
from scpo_ray.settings.shown import threshold_text


def examples(prepared: PreparedRun) -> list[ExamplePair]:
    task = prepared.task
    if task.ref_rewards is None:
        return []
    return example_pairs(
        task.train_pairs,
        task.ref_rewards,
        prepared.selection.keep.numpy(),
        prepared.selection.weights.numpy(),
        task.data.texts,
        task.data.interaction_ids,
        num_examples=task.config.evaluation.num_examples,
        seed=task.config.seed,
    )


def choice_told(chosen: ChosenSelection | None) -> list[str]:
    """What was chosen for "auto", in a sentence; nothing where nothing was."""
    if chosen is None:
        return []
    best, worst = chosen.tried[0], chosen.tried[-1]
    tau, beta = chosen.filter_threshold, chosen.weight_temperature
    parts = ["no filter" if tau is None else f"tau {threshold_text(tau)}"]
    parts += [] if beta is None else [f"beta {beta:g}"]
    return [
        f"Chosen by {chosen.num_folds}-fold cross-validation over training users, with score heads "
        f"on frozen features: {', '.join(parts)}. Their accuracy on left-out pairs: "
        f"{100 * best.accuracy:.1f} %; of the worst of the {len(chosen.tried)} that were tried: "
        f"{100 * worst.accuracy:.1f} %."
    ]


def selection_summaries(prepared: PreparedRun) -> dict[str, SelectionSummary]:
    pairs, kept = prepared.task.train_pairs, prepared.selection.keep.numpy()
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


def pair_columns(
    task: Task, pairs: Pairs, rewards: NDArray[np.float32]
) -> dict[str, list[str] | NDArray[Any]]:
    """What a comparison needs of every dev or test pair; see `run_dir.load_test_pairs`."""
    ref, hashes = task.ref_rewards, task.data.texts.hashes
    columns: dict[str, list[str] | NDArray[Any]] = {
        "culture": [pairs.cultures[code] for code in pairs.culture_codes],
        "pair_id": pair_ids(pairs, task.data.interaction_ids),
        "cluster": pairs.cluster_codes,
        "pair_hash": pair_hashes(hashes[pairs.chosen], hashes[pairs.rejected]),
        "margin": rewards[pairs.chosen] - rewards[pairs.rejected],
    }
    if ref is not None:
        columns["ref_margin"] = ref[pairs.chosen] - ref[pairs.rejected]
    return columns


def training_record(task: Task, fitted: Fitted) -> TrainingRecord:
    """What a fit leaves besides its model, by the worker that brought it to its end."""
    summary = fitted.summary
    return TrainingRecord(
        num_steps=summary.num_steps,
        num_pairs_seen=summary.num_pairs_seen,
        seconds=summary.seconds,
        curve=summary.curve,
        told=list(fitted.told),
        makes_model=fitted.makes_model,
        device=task.worker.device,
        num_workers=task.worker.world_size,
        engine=task.config.train.engine_name,
        passes=summary.passes,
        versions={
            "scpo_ray": scpo_ray.__version__,
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
    )
