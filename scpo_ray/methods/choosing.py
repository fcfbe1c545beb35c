"""tau and beta chosen by cross-validation over training users.

A score head on frozen features stands in for full training: it is trained in a moment, so every
pair of values can be tried on people who were not trained on. docs/method.md says how well heads
rank what full training ranks.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scpo_ray.data.splits import fold_within_cultures
from scpo_ray.methods.heads import solved
from scpo_ray.methods.mixture import learned_shares
from scpo_ray.methods.selection import select_pairs
from scpo_ray.methods.task import Task
from scpo_ray.records import InputError
from scpo_ray.results import ChosenSelection, TriedSelection
from scpo_ray.settings.selection import SelectionConfig
from scpo_ray.settings.shown import threshold_texts
from scpo_ray.statistics.intervals import stream
from scpo_ray.storage.stores import MappedRows
from scpo_ray.training.loss import bradley_terry_losses, labelled_losses
from scpo_ray.workers import from_first

log = logging.getLogger(__name__)

Weighting = Literal["none", "agreement", "inverse"]

NUM_FOLDS = 5
MAX_PAIRS = 4_000
"""Of a culture; of more as many are drawn, so that a choice takes seconds."""
PAPER_THRESHOLD, PAPER_TEMPERATURE = 0.7, 1.10
KEPT_SHARES = (0.35, 0.5, 0.65, 0.8)
"""Thresholds that are tried keep these shares of the pairs, whatever the margins' unit."""
FACTORS = (0.3, 1.0, 3.0)
"""Temperatures that are tried, in mean sizes of the margins that the global model has wrong."""
_RIDGE = 1e-4
_MAX_ITERATIONS = 60


@dataclass(frozen=True)
class CulturePairs:
    """One culture's P training pairs: (P, D) features of chosen minus rejected, float64; (P,) the
    global model's rewards; (P,) the user (or question); with soft labels (P,) the shares that
    preferred chosen, float64."""

    differences: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    clusters: NDArray[np.int64]
    shares: Tensor | None = None


def choose_selection(
    cultures: Sequence[CulturePairs],
    config: SelectionConfig,
    *,
    filters: bool,
    weighting: Weighting,
    seed: int,
) -> ChosenSelection:
    """The values of tau and beta whose heads rank the pairs of left-out people best.

    For each value, culture and fold of its users a head is trained on the other folds' pairs,
    filtered and weighted so, from the global model's own; its accuracy is over all left-out pairs.

    Args:
        cultures: those that are trained for; of several the mean accuracy counts.
        config: what is "auto" in it is chosen, what is not stays.
        filters, weighting: what the method does; what it does not is not varied.
        seed: of the folds.

    Returns: of equally good values the first: no filter, then the smaller share kept; the smaller
        beta.
    Raises: InputError if a culture has fewer than two users, or no value leaves pairs to learn
        from.
    """
    num_folds = min(NUM_FOLDS, *(len(np.unique(pairs.clusters)) for pairs in cultures))
    if num_folds < 2:
        raise InputError("selection: auto needs two training users (or questions) of each culture")
    tried = []
    for threshold, temperature in _candidates(cultures, config, filters, weighting):
        accuracies = [
            held_out_accuracy(
                pairs,
                threshold,
                temperature,
                weighting,
                normalize_weights=config.normalize_weights,
                num_folds=num_folds,
                seed=seed,
            )
            for pairs in cultures
        ]
        if not any(math.isnan(accuracy) for accuracy in accuracies):
            tried.append(TriedSelection(threshold, temperature, float(np.mean(accuracies))))
    if not tried:
        raise InputError("selection: auto: no value leaves pairs to learn from in every fold")
    tried.sort(key=lambda each: -each.accuracy)
    best = tried[0]
    log.info("chosen: tau %s, beta %s", best.filter_threshold, best.weight_temperature)
    return ChosenSelection(best.filter_threshold, best.weight_temperature, num_folds, tried)


def chosen_selection(task: Task, *, filters: bool, weighting: Weighting) -> ChosenSelection | None:
    """What the task's training pairs choose; None where nothing is to be chosen. All workers call
    it alike.

    Raises: as `choose_selection`.
    """
    config = task.config.selection
    asks = filters and config.filter_threshold == "auto"
    if not asks and not (weighting == "agreement" and config.weight_temperature == "auto"):
        return None
    features = task.base.features(task.data.texts)

    def choose() -> ChosenSelection:
        if features is None:
            raise ValueError("this needs the global model's features")
        seed = task.config.data.split.seed
        cultures = [*culture_pairs(task, features, seed)]
        return choose_selection(cultures, config, filters=filters, weighting=weighting, seed=seed)

    return from_first(choose, task.worker)


def culture_pairs(task: Task, features: MappedRows, seed: int) -> Iterator[CulturePairs]:
    all_chosen, all_rejected = task.ref_pair_rewards
    for code, culture in enumerate(task.train_pairs.cultures):
        rows = np.flatnonzero(task.train_pairs.culture_codes == code)
        if not len(rows):
            continue
        if len(rows) > MAX_PAIRS:
            rng = stream(seed, "selection", culture)
            rows = np.sort(rng.choice(rows, MAX_PAIRS, replace=False))
        pairs = task.train_pairs.take(rows)
        differences = features[pairs.chosen].astype(np.float64) - features[pairs.rejected]
        shares = learned_shares(task.config, pairs)
        yield CulturePairs(
            torch.from_numpy(differences),
            all_chosen[rows],
            all_rejected[rows],
            pairs.cluster_codes,
            None if shares is None else torch.from_numpy(shares),
        )


def _candidates(
    cultures: Sequence[CulturePairs],
    config: SelectionConfig,
    filters: bool,
    weighting: Weighting,
) -> list[tuple[float | None, float | None]]:
    margins = np.concatenate([(c.ref_chosen - c.ref_rejected).double().numpy() for c in cultures])
    thresholds: list[float | None] = [None]
    if filters and config.filter_threshold != "auto":
        thresholds = [config.filter_threshold]
    elif filters:
        quantiles = torch.from_numpy(np.quantile(margins, KEPT_SHARES))
        shares = [share for share in torch.sigmoid(quantiles).tolist() if share > 0]
        found = {float(text) for text in threshold_texts(shares, digits=6)} | {PAPER_THRESHOLD}
        thresholds = [None, *sorted(found)]
    temperatures: list[float | None] = [None]
    if weighting == "agreement" and config.weight_temperature != "auto":
        temperatures = [config.weight_temperature]
    elif weighting == "agreement":
        wrong = np.abs(margins[margins < 0])
        typical = float(wrong.mean()) if len(wrong) else float(np.abs(margins).mean())
        steps = {float(f"{factor * typical:.3g}") for factor in FACTORS} | {PAPER_TEMPERATURE}
        temperatures = [*sorted(step for step in steps if step > 0)]
    return list(product(thresholds, temperatures))


def held_out_accuracy(
    pairs: CulturePairs,
    threshold: float | None,
    temperature: float | None,
    weighting: Weighting,
    *,
    normalize_weights: bool,
    num_folds: int,
    seed: int,
) -> float:
    """Share of the pairs that heads which did not see their users rank right; NaN where a fold
    leaves nothing to learn from."""
    codes = np.zeros(len(pairs.clusters), dtype=np.int32)
    selection = select_pairs(
        pairs.ref_chosen,
        pairs.ref_rejected,
        filter_threshold=threshold,
        weighting=weighting,
        weight_temperature=temperature,
    )
    ref_margins = (pairs.ref_chosen - pairs.ref_rejected).double()
    num_right = 0
    for fold in range(num_folds):
        left_out = fold_within_cultures(pairs.clusters, codes, num_folds, fold, seed)
        is_left_out = torch.from_numpy(left_out)
        rows = ~is_left_out & selection.keep
        weights = selection.weights[rows].double()
        if not weights.any():
            return math.nan
        total = float(weights.sum()) if normalize_weights else len(weights)
        shares = None if pairs.shares is None else pairs.shares[rows]
        head = _head(pairs.differences[rows], ref_margins[rows], shares, weights / total)
        margins = ref_margins[is_left_out] + pairs.differences[is_left_out] @ head
        num_right += int((margins > 0).sum())
    return num_right / len(pairs.clusters)


def _head(
    differences: Tensor, ref_margins: Tensor, shares: Tensor | None, weights: Tensor
) -> Tensor:
    """(D,) what the weighted pairs change in the global model's head, under a small penalty."""
    scale = math.sqrt(float(differences.square().sum(dim=1).mean())) or 1.0
    change = torch.zeros(1, differences.shape[1], dtype=torch.float64, requires_grad=True)

    def objective() -> Tensor:
        margins = ref_margins + differences @ change[0] / scale
        losses = labelled_losses(margins, shares, losses=bradley_terry_losses)
        return weights @ losses + _RIDGE * change.square().sum() / 2

    found = solved([change], objective, lambda: change, scale, _MAX_ITERATIONS)
    return torch.from_numpy(found.changes[0])
