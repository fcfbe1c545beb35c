"""What every section of settings is."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _budget(value: Any) -> Any:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if value == "auto" or (is_number and 64 <= value <= 10**9):
        return value
    raise ValueError(f"must be auto or a whole number from 64 to 1000000000, got {value!r}")


TokenBudget = Annotated[Literal["auto"] | int, BeforeValidator(_budget)]
"""Tokens of one forward pass, padded ones counted; auto: what suits the device."""


class Section(BaseModel):
    """Frozen, unknown keys refused, field docstrings are the help texts."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        # A refused value may be a password.
        hide_input_in_errors=True,
    )


def inner_sections(annotation: Any) -> list[Any]:
    """The sections that a field's type names: `X`, `X | None`, `Annotated[X, ...]`."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Section) else []
    return [s for argument in get_args(annotation) for s in inner_sections(argument)]
