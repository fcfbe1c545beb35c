"""One model on every culture's held-out pairs, by layer, beside controls that cost nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scpo_ray.evaluation.metrics import (
    layer_masks,
    margin_scale,
    noise_outcomes,
    ranked_right,
    win_probabilities,
)
from scpo_ray.records import Layer, Pairs, TextSource
from scpo_ray.results import CultureEvaluation, Difference, Estimate, ExamplePair
from scpo_ray.settings.evaluation import EvaluationConfig
from scpo_ray.statistics.intervals import accuracy, paired_difference, stream, with_holm

EXAMPLE_CHARACTERS = 600


def evaluate_pairs(
    test: Pairs,
    rewards: NDArray[np.floating[Any]],
    ref_rewards: NDArray[np.floating[Any]] | None,
    text_lengths: NDArray[Any],
    config: EvaluationConfig,
    *,
    seed: int,
) -> dict[str, CultureEvaluation]:
    """Accuracy before and after training on each culture's test pairs, and that of the controls.

    Controls: "random" (a reward drawn per text), "longer" (the longer response wins; equal
    lengths count as wrong, as equal rewards do) and "global_noise": the global model plus
    Gaussian noise as large as what training changed but for the scale of the margins
    (`metrics.noise_outcomes`), which is what a change without direction would have done. It is
    absent where nothing changed.

    On "distinctive" the global model has 0 and on "agreed" 1 by construction (at the threshold
    0.5), so there the difference from it has one sign for any model, noise included, and a small
    p-value says only that something changed: `minus_noise` compares with "global_noise". Claims
    rest on "all".

    Args:
        test: the pairs; `chosen` and `rejected` index the arrays below.
        rewards: (T,) of the trained model.
        ref_rewards: (T,) of the global model, or None where there is none: then only the layer
            "all" is there, after training.
        text_lengths: (T,) characters of the response.
        seed: of the controls; each culture's numbers are its own stream's, so they
            do not depend on which other cultures are there.

    Returns: an entry for every culture of `test.cultures`, also for one without pairs (its values
        are None). `p_holm` is corrected over the cultures, layer by layer.
    Raises: ValueError if the arrays differ in shape or a pair's reward is NaN or infinite.
    """
    shapes = [a.shape for a in (rewards, text_lengths, ref_rewards) if a is not None]
    if len(set(shapes)) > 1:
        raise ValueError(f"rewards and text lengths must be (T,) alike, got {shapes}")
    evaluations = {
        culture: _evaluate_culture(
            test.take(test.culture_codes == code),
            culture,
            rewards,
            ref_rewards,
            text_lengths,
            config,
            seed,
        )
        for code, culture in enumerate(test.cultures)
    }
    return _corrected_over_cultures(evaluations)


def plain_accuracies(
    pairs: Pairs,
    rewards: NDArray[np.floating[Any]],
    ref_rewards: NDArray[np.floating[Any]] | None,
    *,
    distinctive_threshold: float,
) -> dict[str, dict[str, float]]:
    """Culture -> layer -> share of pairs ranked right, without intervals: for a look midway.

    Args as for `evaluate_pairs`. A layer without pairs is left out.
    """
    right = ranked_right(rewards[pairs.chosen], rewards[pairs.rejected])
    masks: dict[Layer, NDArray[np.bool_]] = {"all": np.ones(len(pairs), dtype=np.bool_)}
    if ref_rewards is not None:
        masks = layer_masks(
            ref_rewards[pairs.chosen],
            ref_rewards[pairs.rejected],
            distinctive_threshold=distinctive_threshold,
        )
    return {
        culture: {
            layer: float(right[mask & (pairs.culture_codes == code)].mean())
            for layer, mask in masks.items()
            if (mask & (pairs.culture_codes == code)).any()
        }
        for code, culture in enumerate(pairs.cultures)
    }


def example_pairs(
    train: Pairs,
    ref_rewards: NDArray[np.float32],
    kept: NDArray[np.bool_],
    weights: NDArray[np.float32],
    texts: TextSource,
    interaction_ids: Sequence[str],
    *,
    num_examples: int,
    seed: int,
) -> list[ExamplePair]:
    """Training pairs as text, up to `num_examples` per culture and kind, to see what selection did.

    "kept" (weight 1 or more) and "dropped" are drawn at random, so that they are typical;
    "down-weighted" are the kept pairs with the smallest weights below 1.

    Args:
        train: P training pairs before selection.
        ref_rewards: (T,) of the global model.
        kept, weights: (P,) what selection decided, before the cultures' weights.
        interaction_ids: indexed by `train.interactions`.

    Returns: by culture, then kept, dropped, down-weighted; prompts and responses are cut to 600
        characters.
    Raises: ValueError if `kept` or `weights` is not (P,).
    """
    if kept.shape != (len(train),) or weights.shape != (len(train),):
        raise ValueError(f"kept and weights must be ({len(train)},): {kept.shape}, {weights.shape}")
    examples = []
    kinds: dict[Literal["kept", "dropped", "down-weighted"], NDArray[np.bool_]] = {
        "kept": kept & (weights >= 1),
        "dropped": ~kept,
        "down-weighted": kept & (weights < 1),
    }
    for code, culture in enumerate(train.cultures):
        for kind, mask in kinds.items():
            rows = np.flatnonzero(mask & (train.culture_codes == code))
            order = stream(seed, "examples", culture, kind).permutation(len(rows))
            if kind == "down-weighted":
                order = np.argsort(weights[rows], kind="stable")
            pairs = train.take(shown := rows[order[:num_examples]])
            ref_chosen, ref_rejected = ref_rewards[pairs.chosen], ref_rewards[pairs.rejected]
            probabilities = win_probabilities(ref_chosen, ref_rejected)
            examples += [
                ExamplePair(
                    culture=culture,
                    kind=kind,
                    pair_id=identity,
                    prompt=_cut(texts[int(pairs.chosen[i])].prompt),
                    chosen=_cut(texts[int(pairs.chosen[i])].response),
                    rejected=_cut(texts[int(pairs.rejected[i])].response),
                    ref_margin=float(ref_chosen[i] - ref_rejected[i]),
                    win_probability=float(probabilities[i]),
                    weight=float(weights[shown[i]]),
                    ref_rewards=(float(ref_chosen[i]), float(ref_rejected[i])),
                    human_scores=(float(pairs.chosen_scores[i]), float(pairs.rejected_scores[i])),
                )
                for i, identity in enumerate(pair_ids(pairs, interaction_ids))
            ]
    return examples


def control_on_others(
    evaluations: Mapping[str, CultureEvaluation], name: str, culture: str
) -> Estimate | None:
    """A control's accuracy on `all` of the other cultures' test pairs: the mean over them.

    Args:
        evaluations: culture -> the one whose controls are shown there.
        culture: the one left out; "" for the mean over all.

    Returns: without an interval, for the pairs are not here; None where another culture lacks it.
    """
    found = [e.controls.get(name, {}).get("all") for c, e in evaluations.items() if c != culture]
    there = [estimate for estimate in found if estimate is not None and estimate.value is not None]
    if not there or len(there) < len(found):
        return None
    value = float(np.mean([estimate.value for estimate in there]))
    sizes = (sum(e.num_pairs for e in there), sum(e.num_clusters for e in there))
    return Estimate(value, None, None, *sizes)


def pair_ids(pairs: Pairs, interaction_ids: Sequence[str]) -> list[str]:
    """(P,) names: the interaction's id and which of its responses was chosen over which."""
    return [
        f"{interaction_ids[int(interaction)]}:{chosen}>{rejected}"
        for interaction, chosen, rejected in zip(
            pairs.interactions, pairs.chosen_responses, pairs.rejected_responses, strict=True
        )
    ]


@dataclass(frozen=True)
class _CultureTexts:
    """One culture's t texts, in the order in which its pairs first name them.

    That order does not change when other cultures' texts shift the numbering, so a reward drawn
    per text stays the same.
    """

    texts: NDArray[np.int64]
    chosen: NDArray[np.int64]
    rejected: NDArray[np.int64]

    def margins(self, rewards: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """(P,) chosen minus rejected, of (t,) rewards."""
        margins: NDArray[np.floating[Any]] = rewards[self.chosen] - rewards[self.rejected]
        return margins

    def ranked_right(self, rewards: NDArray[Any]) -> NDArray[np.bool_]:
        """(P,) outcomes of (t,) rewards."""
        return ranked_right(rewards[self.chosen], rewards[self.rejected])


def _culture_texts(pairs: Pairs) -> _CultureTexts:
    named = np.stack([pairs.chosen, pairs.rejected], axis=1).ravel()
    distinct, first, codes = np.unique(named, return_index=True, return_inverse=True)
    order = np.argsort(first)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    chosen, rejected = places[codes].reshape(-1, 2).T
    return _CultureTexts(distinct[order], chosen, rejected)


def _evaluate_culture(
    pairs: Pairs,
    culture: str,
    rewards: NDArray[np.floating[Any]],
    ref_rewards: NDArray[np.floating[Any]] | None,
    text_lengths: NDArray[Any],
    config: EvaluationConfig,
    seed: int,
) -> CultureEvaluation:
    index = _culture_texts(pairs)
    before = None if ref_rewards is None else ref_rewards[index.texts]
    drawn = stream(seed, "random", culture).standard_normal(len(index.texts))
    controls: dict[str, NDArray[Any]] = {
        "random": index.ranked_right(drawn),
        "longer": index.ranked_right(text_lengths[index.texts]),
    }
    outcomes: dict[str, NDArray[Any]] = {"after": index.ranked_right(rewards[index.texts])}
    masks: dict[Layer, NDArray[np.bool_]] = {"all": np.ones(len(pairs), dtype=np.bool_)}
    differences: dict[str, dict[str, Difference]] = {"difference": {}, "minus_noise": {}}
    scale = None
    if before is not None:
        outcomes["before"] = index.ranked_right(before)
        masks = layer_masks(
            before[index.chosen],
            before[index.rejected],
            distinctive_threshold=config.distinctive_threshold,
        )
        rivals = {"difference": outcomes["before"]}
        margins, ref_margins = index.margins(rewards[index.texts]), index.margins(before)
        scale = margin_scale(ref_margins, margins)
        if (margins != ref_margins).any():
            controls["global_noise"] = noise_outcomes(ref_margins, margins)
            rivals["minus_noise"] = controls["global_noise"]
        for name, rival in rivals.items():
            differences[name] = {
                layer: paired_difference(
                    outcomes["after"][mask], rival[mask], pairs.cluster_codes[mask]
                )
                for layer, mask in masks.items()
            }
    outcomes |= controls
    estimates: dict[str, dict[str, Estimate]] = {
        name: {
            layer: accuracy(outcome[mask], pairs.cluster_codes[mask])
            for layer, mask in masks.items()
        }
        for name, outcome in outcomes.items()
    }
    return CultureEvaluation(
        before=estimates.get("before", {}),
        after=estimates["after"],
        controls={name: estimates[name] for name in controls},
        difference=differences["difference"],
        minus_noise=differences["minus_noise"],
        scale=scale,
    )


def _corrected_over_cultures(
    evaluations: dict[str, CultureEvaluation],
) -> dict[str, CultureEvaluation]:
    difference = _with_holm({c: e.difference for c, e in evaluations.items()})
    minus_noise = _with_holm({c: e.minus_noise for c, e in evaluations.items()})
    return {
        c: replace(e, difference=difference[c], minus_noise=minus_noise[c])
        for c, e in evaluations.items()
    }


def _with_holm(by_culture: dict[str, dict[str, Difference]]) -> dict[str, dict[str, Difference]]:
    """Culture -> layer -> difference, corrected over the cultures layer by layer."""
    found = {culture: dict(differences) for culture, differences in by_culture.items()}
    layers = {layer for differences in found.values() for layer in differences}
    for layer in layers:
        there = [differences for differences in found.values() if layer in differences]
        corrected = with_holm([differences[layer] for differences in there])
        for differences, difference in zip(there, corrected, strict=True):
            differences[layer] = difference
    return found


def _cut(text: str) -> str:
    return text if len(text) <= EXAMPLE_CHARACTERS else text[: EXAMPLE_CHARACTERS - 1] + "…"
