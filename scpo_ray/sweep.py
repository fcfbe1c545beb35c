"""Which runs answer a question: a comparison's space into run configs."""

from collections.abc import Sequence
from dataclasses import dataclass

from scpo_ray.config import ComparisonConfig, RunConfig
from scpo_ray.config_file import check_culture_names


@dataclass(frozen=True)
class Trial:
    """One run of a comparison and the culture it trains for."""

    culture: str
    config: RunConfig


def comparison_trials(comparison: ComparisonConfig, known_cultures: Sequence[str]) -> list[Trial]:
    """Every culture x method x seed of the space, in that order.

    Args:
        known_cultures: the data's cultures, taken where the space names none.

    Raises: InputError if the space names a culture the data has not.
    """
    if comparison.space.culture is not None:
        check_culture_names(comparison.space.culture, known_cultures, "space.culture")
    cultures = comparison.space.culture or list(known_cultures)
    return [
        Trial(
            culture,
            comparison.run.model_copy(
                update={"culture_weights": {culture: 1.0}, "method": method, "seed": seed}
            ),
        )
        for culture in cultures
        for method in comparison.space.method
        for seed in comparison.space.seed
    ]
