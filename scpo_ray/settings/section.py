"""What every section of settings is."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict


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
