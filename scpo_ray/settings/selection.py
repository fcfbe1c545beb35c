"""Which pairs are kept and how much each counts."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter

from scpo_ray.settings.section import Section

Auto = Literal["auto"]
"""Chosen by cross-validation over the training users, before the run."""


def _number_or_auto(number: Any) -> BeforeValidator:
    """Checks what is not "auto" (or null) as a number, and complains of it as of one."""
    adapter: TypeAdapter[float] = TypeAdapter(number)

    def checked(value: Any) -> Any:
        return value if value is None or value == "auto" else adapter.validate_python(value)

    return BeforeValidator(checked)


class SelectionConfig(Section):
    filter_threshold: Annotated[
        float | Auto | None,
        _number_or_auto(Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]),
    ] = 0.7
    """Keep a training pair where the global model's win probability is below it (tau, above 0, at
    most 1), in the methods that filter; null: no filter; auto: chosen on training users."""

    weight_temperature: Annotated[
        float | Auto, _number_or_auto(Annotated[float, Field(gt=0, allow_inf_nan=False)])
    ] = 1.10
    """Reward units, above 0; lower weighs disagreement down more sharply (beta); auto: chosen on
    training users. The inverse ablation has none (the paper's formula)."""

    normalize_weights: bool = False
    """Divide a step's loss by the sum of its pairs' weights instead of their number, so that
    weighting does not shrink the step."""
