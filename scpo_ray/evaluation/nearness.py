"""How near a model is to what people answered, beside what needs no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scpo_ray.evaluation.distributions import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    option_shares,
    similarities,
)
from scpo_ray.records import OpinionExample, Opinions, TextSource
from scpo_ray.results import (
    ComparisonResult,
    Difference,
    Estimate,
    OpinionScores,
    RunResult,
)

NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Nearness:
    """One model's answer shares against one country's ("" for the macro mean).

    At the fitted temperature, over all options, as 1 - Jensen-Shannon distance to base e.
    `minus_constant`, `minus_others`: against the country's mean training answer by place, and the
    other countries' mean answer to the very question. `temperature`: reward units, None for the
    macro mean and where none could be fitted.
    """

    culture: str
    method: str
    similarity: Estimate
    minus_constant: Difference | None
    minus_others: Difference | None
    minus_global: Difference | None
    temperature: float | None

    @property
    def bound(self) -> Literal["", "lowest", "highest"]:
        """Whether a temperature beyond those that may be fitted would have been nearer yet."""
        if self.temperature is None or MIN_TEMPERATURE < self.temperature < MAX_TEMPERATURE:
            return ""
        return "lowest" if self.temperature <= MIN_TEMPERATURE else "highest"


def nearest_methods(comparison: ComparisonResult, results: Sequence[RunResult]) -> list[Nearness]:
    """Of each country, and of the macro mean, the method that comes nearest; of ties the first.

    The temperature is that of the method's run with the lowest seed.
    """
    found = []
    for culture in ("", *comparison.cultures):
        rows = [
            s
            for s in comparison.opinions
            if (s.culture, s.options, s.base, s.predictor) == (culture, "all", "e", "model_fitted")
            and s.similarity.value is not None
        ]
        if not rows:
            continue
        best = max(rows, key=lambda s: s.similarity.value or 0.0)
        own = [r for r in results if r.method == best.method and r.culture_weights.get(culture)]
        scores = _chosen(min(own, key=lambda r: r.seed)) if own else None
        found.append(
            Nearness(
                culture,
                best.method,
                best.similarity,
                best.minus_constant,
                best.minus_others,
                best.minus_global,
                _temperature(scores, culture),
            )
        )
    return found


def nearness_of_run(result: RunResult) -> list[Nearness]:
    """Of each country that the run was trained for."""
    scores = _chosen(result)
    if scores is None:
        return []
    found = []
    for culture, weight in result.culture_weights.items():
        similarity = scores.cultures.get(culture, {}).get("model_fitted")
        if not weight or similarity is None or similarity.value is None:
            continue
        beside = scores.beside.get(culture, {})
        found.append(
            Nearness(
                culture,
                result.method,
                similarity,
                beside.get("best_constant"),
                beside.get("other_countries"),
                scores.difference.get(culture, {}).get("model_fitted"),
                _temperature(scores, culture),
            )
        )
    return found


def opinion_examples(
    opinions: Opinions,
    texts: TextSource,
    rewards: NDArray[np.float32],
    temperatures: dict[str, dict[str, float]],
    cultures: Sequence[str],
) -> list[OpinionExample]:
    """Three test questions of each country: where the model is nearest, in the middle, farthest.

    Args:
        rewards: (T,) of the trained model, of the options' texts.
        temperatures: culture -> "model_fitted"; a culture without one has no example.
    """
    found = []
    _, first = np.unique(opinions.groups, return_index=True)
    for culture in cultures:
        temperature = temperatures.get(culture, {}).get("model_fitted")
        if temperature is None or culture not in opinions.cultures:
            continue
        mine = (opinions.culture_codes == opinions.cultures.index(culture)) & opinions.is_test
        shown = []
        for row in first[mine[first]].tolist():
            options = slice(int(opinions.offsets[row]), int(opinions.offsets[row + 1]))
            answers, numbers = opinions.shares[options], opinions.texts[options]
            valid = np.ones((1, len(numbers)), dtype=np.bool_)
            scores = rewards[numbers][None].astype(np.float64)
            model = option_shares(scores, valid, temperature=temperature)
            near = float(similarities(model, answers[None], base=np.e)[0])
            if np.isfinite(near):
                shown.append((near, row, numbers, answers, model[0]))
        shown.sort(key=lambda row: (-row[0], row[1]))
        places = [0, len(shown) // 2, len(shown) - 1] if len(shown) > NUM_EXAMPLES else [*range(3)]
        for near, _, numbers, answers, shares in (shown[p] for p in places if p < len(shown)):
            found.append(
                OpinionExample(
                    culture=culture,
                    question=texts[int(numbers[0])].prompt,
                    options=[texts[int(number)].response for number in numbers],
                    country=answers.tolist(),
                    model=shares.tolist(),
                    similarity=near,
                )
            )
    return found


def _chosen(result: RunResult) -> OpinionScores | None:
    """The scores that are shown first: over all options, to base e."""
    return next((o for o in result.opinions if (o.options, o.base) == ("all", "e")), None)


def _temperature(scores: OpinionScores | None, culture: str) -> float | None:
    return scores.temperatures.get(culture, {}).get("model_fitted") if scores else None
