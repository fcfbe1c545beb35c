"""What every section of settings is."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator


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

    @field_validator("*", mode="before")
    @classmethod
    def booleans_are_no_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """`filter_threshold: true` would be a threshold of 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        given = list(value.values()) if isinstance(value, dict) else [value]
        if any(isinstance(v, bool) for v in given) and _is_of_numbers(annotation):
            raise ValueError("must be a number, not true or false")
        return value


def _is_of_numbers(annotation: Any) -> bool:
    kinds = set(_kinds(annotation))
    return bool(kinds & {int, float}) and bool not in kinds


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that a field's type is made of: `dict[str, int | None]` of str, int and None."""
    if not get_args(annotation):
        yield annotation
    for argument in get_args(annotation):
        yield from _kinds(argument)


def inner_sections(annotation: Any) -> list[Any]:
    """The sections that a field's type names: `X`, `X | None`, `Annotated[X, ...]`."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Section) else []
    return [s for argument in get_args(annotation) for s in inner_sections(argument)]
