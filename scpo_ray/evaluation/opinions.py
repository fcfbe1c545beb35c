"""A reward model's answer shares against each country's, beside predictors that need no model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scpo_ray.evaluation.distributions import (
    fit_temperature,
    option_shares,
    renormalised,
    similarities,
)
from scpo_ray.records import Opinions
from scpo_ray.results import Difference, Estimate, OpinionScores
from scpo_ray.statistics.intervals import (
    macro_difference,
    macro_mean,
    paired_difference,
    with_holm,
)

Options = Literal["all", "drop_refusal"]
Base = Literal["e", "2"]

OPTION_POLICIES: tuple[Options, ...] = ("all", "drop_refusal")
BASES: dict[Base, float] = {"e": math.e, "2": 2.0}

MODEL_PREDICTORS = ("model", "model_fitted", "global", "global_fitted")
PREDICTORS = (
    *MODEL_PREDICTORS,
    "training_countries",
    "other_countries",
    "best_constant",
    "uniform",
)
RIVALS = {"model": "global", "model_fitted": "global_fitted"}
"""What a model's shares are compared with: the global model's, by the same rule."""


@dataclass(frozen=True)
class OpinionOutcomes:
    """Every predictor's similarity to each of D test distributions, for one choice of options.

    Attributes:
        culture_codes: (D,) index into `cultures`; clusters: (D,) the question.
        similarity: base -> predictor -> (D,), NaN where there is no distribution or prediction. A
            predictor that does not exist for any culture is absent.
        temperatures: culture -> "model_fitted", "global_fitted" -> reward units.
    """

    cultures: tuple[str, ...]
    culture_codes: NDArray[np.int32]
    clusters: NDArray[np.int64]
    similarity: dict[Base, dict[str, NDArray[np.float64]]]
    temperatures: dict[str, dict[str, float]]


def opinion_outcomes(
    opinions: Opinions,
    rewards: NDArray[np.float32],
    ref_rewards: NDArray[np.float32] | None,
    *,
    trained_cultures: Sequence[str],
) -> dict[Options, OpinionOutcomes]:
    """How near each predictor comes to each country's answers, on the test questions.

    - "model", "global": softmax of the options' rewards, at temperature 1.
    - "model_fitted", "global_fitted": the rewards over the temperature that fits the country's
      training questions best.
    - "training_countries", "other_countries": mean answers to the very question in the countries
      trained on, in all countries of the data, each without the country itself; uniform where no
      such country answered it. They know other countries' answers to test questions, which no
      model here does.
    - "best_constant": the country's mean answer to its training questions with that many options,
      by the option's place in the list: the best in likelihood of what does not read the question.
    - "uniform": every option alike.

    Where a question comes in several orders of its options, a model's shares are the mean over
    them.

    Args:
        rewards: (T,) of the trained model, for all texts of `opinions`.
        ref_rewards: (T,) of the global model, or None where there is none.
        trained_cultures: those with a weight above 0.

    Returns: by choice of options.
    Raises: ValueError if a reward of an option is NaN or infinite.
    """
    table = _answer_table(opinions)
    return {
        policy: _outcomes(table, policy, rewards, ref_rewards, trained_cultures)
        for policy in OPTION_POLICIES
    }


def evaluate_opinions(outcomes: Mapping[Options, OpinionOutcomes]) -> list[OpinionScores]:
    """Means over each culture's test distributions, over cultures and over all of them.

    Intervals are over questions, each of which moves all cultures that it serves at once.

    Returns: one for each choice of options and base. A culture or predictor without a
        distribution has the value None; so have both means of a predictor that some culture lacks.
    """
    return [
        _scores(policy, base, outcome) for policy, outcome in outcomes.items() for base in BASES
    ]


def opinion_columns(
    outcomes: Mapping[Options, OpinionOutcomes],
) -> dict[str, list[str] | NDArray[Any]]:
    """The models' similarity to every test distribution; see `run_dir.load_test_opinions`."""
    first = outcomes[OPTION_POLICIES[0]]
    columns: dict[str, list[str] | NDArray[Any]] = {
        "culture": [first.cultures[code] for code in first.culture_codes],
        "cluster": first.clusters,
    }
    for policy, outcome in outcomes.items():
        for base, similarity in outcome.similarity.items():
            for predictor in MODEL_PREDICTORS:
                if predictor in similarity:
                    columns[column_name(policy, base, predictor)] = similarity[predictor]
    return columns


def column_name(policy: str, base: str, predictor: str) -> str:
    return f"{predictor}/{policy}/{base}"


@dataclass(frozen=True)
class _AnswerTable:
    """G distributions over at most K options in the source's order, and N rows of texts for them.

    Attributes:
        texts: (N, K) text of each option, -1 where there is none; a row for each order.
        groups: (N,) the row's distribution.
        shares, is_option, is_refusal: (G, K).
        culture_codes, clusters, items, is_train, is_test: (G,); the same item is the same list of
            options under the same question.
    """

    texts: NDArray[np.int64]
    groups: NDArray[np.int64]
    shares: NDArray[np.float64]
    is_option: NDArray[np.bool_]
    is_refusal: NDArray[np.bool_]
    culture_codes: NDArray[np.int32]
    clusters: NDArray[np.int64]
    items: NDArray[np.int64]
    is_train: NDArray[np.bool_]
    is_test: NDArray[np.bool_]
    cultures: tuple[str, ...]


def _answer_table(opinions: Opinions) -> _AnswerTable:
    sizes = np.diff(opinions.offsets)
    width = int(sizes.max(initial=2))
    rows = np.repeat(np.arange(len(sizes)), sizes)
    cells = (rows, opinions.option_numbers)
    texts = np.full((len(sizes), width), -1, dtype=np.int64)
    texts[cells] = opinions.texts
    shares = np.zeros(texts.shape)
    shares[cells] = opinions.shares
    is_refusal = np.zeros(texts.shape, dtype=np.bool_)
    is_refusal[cells] = opinions.refusals
    # The orders of one distribution differ in their texts alone.
    _, first = np.unique(opinions.groups, return_index=True)
    _, items = np.unique(texts[first], axis=0, return_inverse=True)
    return _AnswerTable(
        texts=texts,
        groups=opinions.groups,
        shares=shares[first],
        is_option=texts[first] >= 0,
        is_refusal=is_refusal[first],
        culture_codes=opinions.culture_codes[first],
        clusters=opinions.question_codes[first],
        items=items.ravel(),
        is_train=opinions.is_train[first],
        is_test=opinions.is_test[first],
        cultures=opinions.cultures,
    )


def _outcomes(
    table: _AnswerTable,
    policy: Options,
    rewards: NDArray[np.float32],
    ref_rewards: NDArray[np.float32] | None,
    trained_cultures: Sequence[str],
) -> OpinionOutcomes:
    valid = table.is_option & ~table.is_refusal if policy == "drop_refusal" else table.is_option
    shares = renormalised(table.shares, valid)
    trained = [code for code, name in enumerate(table.cultures) if name in trained_cultures]
    everyone = list(range(len(table.cultures)))
    predicted: dict[str, NDArray[np.float64]] = {}
    temperatures: dict[str, dict[str, float]] = {culture: {} for culture in table.cultures}
    for name, of_texts in (("model", rewards), ("global", ref_rewards)):
        if of_texts is None:
            continue
        # -1 reads the last text, in cells that are not valid and not read.
        scores = of_texts[table.texts]
        predicted[name] = _model_shares(table, scores, valid, dict.fromkeys(everyone, 1.0))
        fitted = _fitted(table, scores, shares, valid)
        predicted[f"{name}_fitted"] = _model_shares(table, scores, valid, fitted)
        for code, temperature in fitted.items():
            temperatures[table.cultures[code]][f"{name}_fitted"] = temperature
    predicted["training_countries"] = _mean_of_others(table, shares, valid, trained)
    predicted["other_countries"] = _mean_of_others(table, shares, valid, everyone)
    predicted["best_constant"] = _constant(table, shares, valid)
    predicted["uniform"] = _uniform(valid)
    test = table.is_test
    return OpinionOutcomes(
        cultures=table.cultures,
        culture_codes=table.culture_codes[test],
        clusters=table.clusters[test],
        similarity={
            name: {
                predictor: similarities(predicted[predictor][test], shares[test], base=base)
                for predictor in PREDICTORS
                if predictor in predicted
            }
            for name, base in BASES.items()
        },
        temperatures=temperatures,
    )


def _fitted(
    table: _AnswerTable,
    scores: NDArray[np.float32],
    shares: NDArray[np.float64],
    valid: NDArray[np.bool_],
) -> dict[int, float]:
    """Culture code -> temperature, of the cultures that have a training distribution."""
    fitted = {}
    for code in range(len(table.cultures)):
        mine = (table.culture_codes == code) & table.is_train
        rows = mine[table.groups]
        groups = table.groups[rows]
        temperature = fit_temperature(scores[rows], shares[groups], valid[groups])
        if temperature is not None:
            fitted[code] = temperature
    return fitted


def _model_shares(
    table: _AnswerTable,
    scores: NDArray[np.float32],
    valid: NDArray[np.bool_],
    temperatures: Mapping[int, float],
) -> NDArray[np.float64]:
    """(G, K) softmax at the culture's temperature, the mean over orders; NaN without one."""
    shares = np.full(valid.shape, np.nan)
    for code, temperature in temperatures.items():
        rows = (table.culture_codes == code)[table.groups]
        groups, places = np.unique(table.groups[rows], return_inverse=True)
        by_order = option_shares(scores[rows], valid[table.groups[rows]], temperature=temperature)
        totals = np.zeros((len(groups), valid.shape[1]))
        np.add.at(totals, places, by_order)
        shares[groups] = totals / np.bincount(places, minlength=len(groups))[:, None]
    return shares


def _uniform(valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    return renormalised(valid.astype(np.float64), valid)


def _mean_of_others(
    table: _AnswerTable,
    shares: NDArray[np.float64],
    valid: NDArray[np.bool_],
    cultures: Sequence[int],
) -> NDArray[np.float64]:
    """(G, K) mean answer to the same question in `cultures` but the row's own; uniform where none
    answered; NaN for a culture beside which `cultures` has no other."""
    counted = np.isin(table.culture_codes, list(cultures)) & np.isfinite(shares).all(axis=1)
    known = np.where(counted[:, None], shares, 0.0)
    num_items = int(table.items.max(initial=-1)) + 1
    totals = np.zeros((num_items, shares.shape[1]))
    np.add.at(totals, table.items, known)
    others = totals[table.items] - known
    num_others = np.bincount(table.items, counted, num_items)[table.items] - counted
    mean = np.where(
        num_others[:, None] > 0, others / np.maximum(num_others, 1)[:, None], _uniform(valid)
    )
    # Taking the country's own shares out of the sum can leave a rounding below 0.
    mean = np.maximum(mean, 0.0)
    alone = [code for code in range(len(table.cultures)) if not set(cultures) - {code}]
    mean[np.isin(table.culture_codes, alone)] = np.nan
    return mean


def _constant(
    table: _AnswerTable, shares: NDArray[np.float64], valid: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(G, K) mean of the culture's training answers with as many options, place by place; uniform
    where its training questions have no such number."""
    # The valid options to the front, in their order.
    order = np.argsort(~valid, axis=1, kind="stable")
    packed = np.take_along_axis(np.where(valid, shares, 0.0), order, axis=1)
    sizes = valid.sum(axis=1)
    known = np.isfinite(packed).all(axis=1)
    constant = np.take_along_axis(_uniform(valid), order, axis=1)
    for code in range(len(table.cultures)):
        for size in np.unique(sizes):
            mine = (table.culture_codes == code) & (sizes == size)
            train = mine & table.is_train & known
            if train.any():
                constant[mine] = packed[train].mean(axis=0)
    unpacked = np.zeros_like(constant)
    np.put_along_axis(unpacked, order, constant, axis=1)
    return unpacked


def _scores(policy: Options, base: Base, outcome: OpinionOutcomes) -> OpinionScores:
    similarity = outcome.similarity[base]
    by_culture: dict[str, dict[str, Estimate]] = {c: {} for c in outcome.cultures}
    macro, micro = {}, {}
    for predictor, values in similarity.items():
        per_culture = list(_of_cultures(outcome, values))
        for culture, column in zip(outcome.cultures, per_culture, strict=True):
            by_culture[culture][predictor] = _mean([column])
        macro[predictor] = _mean(per_culture)
        known = np.isfinite(values)
        # Over fewer distributions than the others' it would be another number.
        whole = np.array_equal(known, np.isfinite(similarity["uniform"]))
        micro[predictor] = _mean([(values[known], outcome.clusters[known])] if whole else [])
    by_predictor, macro_difference_of = {}, {}
    for predictor, rival in RIVALS.items():
        if rival not in similarity:
            continue
        ours = list(_of_cultures(outcome, similarity[predictor]))
        theirs = list(_of_cultures(outcome, similarity[rival]))
        by_predictor[predictor] = with_holm(
            [
                paired_difference(mine[0], other[0], mine[1])
                for mine, other in zip(ours, theirs, strict=True)
            ]
        )
        macro_difference_of[predictor] = macro_difference(
            [values for values, _ in ours],
            [values for values, _ in theirs],
            [clusters for _, clusters in ours],
        )
    difference: dict[str, dict[str, Difference]] = {
        culture: {predictor: found[code] for predictor, found in by_predictor.items()}
        for code, culture in enumerate(outcome.cultures)
    }
    return OpinionScores(
        options=policy,
        base=base,
        cultures=by_culture,
        macro=macro,
        micro=micro,
        difference=difference,
        macro_difference=macro_difference_of,
        temperatures=outcome.temperatures,
    )


def _of_cultures(
    outcome: OpinionOutcomes, values: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Each culture's values that are there, and their questions."""
    for code in range(len(outcome.cultures)):
        mine = (outcome.culture_codes == code) & np.isfinite(values)
        yield values[mine], outcome.clusters[mine]


def _mean(columns: Sequence[tuple[NDArray[np.float64], NDArray[np.int64]]]) -> Estimate:
    return macro_mean([values for values, _ in columns], [clusters for _, clusters in columns])
