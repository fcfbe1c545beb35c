"""Where preferences come from, and how they are divided."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from scpo_ray.records import HeldOut, InputError
from scpo_ray.settings.plugins import Plugins
from scpo_ray.settings.section import Section
from scpo_ray.settings.spelling import plain_name, spelled_once

PAPER_CULTURES = (
    "Chile",
    "South Africa",
    "New Zealand",
    "Australia",
    "Mexico",
    "Israel",
    "Canada",
)


class SplitConfig(Section):
    by: Literal["user", "question", "source"] = "user"
    """What is kept on one side: a user, a question, or as the source says (its test files)."""

    test_size: float = Field(0.15, gt=0, lt=1)
    """Share of the users (or questions) held out, over the whole data in file order."""

    dev_size: float = Field(0.15, ge=0, lt=1)
    """Share of each culture's other users (or questions) that are not trained on either: all that
    is chosen is chosen on them, and test users are looked at once. With `num_folds`: the next fold
    instead, so that everyone is chosen on once and tested once. 0: nobody (the paper's split), and
    choices are made on test users."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the split alone; 0 with 0.15 by user gives the paper's test sets on PRISM."""

    num_folds: int | None = Field(None, ge=2, le=1_000)
    """Instead of `test_size`: this many user-disjoint folds per culture."""

    fold: int = Field(0, ge=0)
    """Which of the folds is held out for testing."""

    @model_validator(mode="after")
    def fold_exists(self) -> Self:
        if self.num_folds is None and self.fold:
            raise ValueError(f"fold {self.fold} needs num_folds")
        if self.num_folds is not None and self.fold >= self.num_folds:
            raise ValueError(f"fold {self.fold} must be below num_folds {self.num_folds}")
        if self.num_folds == 2 and self.dev_size:
            raise ValueError(
                "num_folds 2 leaves no fold to train on beside one for dev and one for test: set 3 "
                "or more, or dev_size 0"
            )
        return self

    @property
    def chosen_on(self) -> HeldOut:
        """The side that choices are made on."""
        return "dev" if self.dev_size else "test"


class DataSection(Section):
    """What every source's settings have; a source's own add to it."""

    holds_opinions: ClassVar[bool] = False
    """Whether responses are a survey question's options and scores a country's shares of them."""

    licence: ClassVar[str | None] = None
    """What its publishers allow, in their words; None: not known here."""

    source: str
    """The source's name."""

    cultures: list[str] | None = None
    """Cultures to read, train on and evaluate, spelled as in the data; null: all."""

    data_fraction: float = Field(1.0, gt=0, le=1)
    """Share of each culture's training users (or questions) used; smaller ones are nested."""

    split: SplitConfig = SplitConfig()
    """How train, dev and test are told apart."""

    @field_validator("cultures")
    @classmethod
    def cultures_are_named_once(cls, value: list[str] | None) -> list[str] | None:
        if value == []:
            raise ValueError("cultures must name one at least; null: all")
        return None if value is None else spelled_once(value, "cultures", cls.culture_name)

    @staticmethod
    def culture_name(spelling: str) -> str:
        """The one name of a culture that the data, or a setting, spells so."""
        return plain_name(spelling)

    @property
    def scores_are_votes(self) -> bool:
        """Whether scores count the people (or are shares of them) who prefer a response."""
        return self.holds_opinions

    @property
    def min_score_gap(self) -> float:
        """Two responses whose scores are no further apart make no pair."""
        return 0.0


@dataclass(frozen=True)
class Source:
    """Where preferences come from: the settings of it, and how they are opened.

    Attributes:
        name: what `data.source` is set to; the settings' own `source` takes it alone.
        version: raised when the same settings and files come to give other interactions.
        settings: the class of the section `data`.
        open: of an instance of it, a `data.rows.InteractionSource`.
    """

    name: str
    version: int
    settings: type[DataSection]
    open: Callable[[Any], Any]


SOURCES = Plugins("scpo_ray.data", "scpo_ray.sources", "SOURCE", Source)


def section_of_source(section: Any) -> Any:
    """A section `data` as its source's settings; what is no mapping stays, to be refused.

    Raises: ValidationError naming what is wrong in it, also that there is no such source.
    """
    if not isinstance(section, dict):
        return section
    name = section.get("source")
    if not isinstance(name, str):
        raise _bad_source(name, f"must be set, to one of {', '.join(SOURCES.names())}")
    try:
        source = SOURCES[name]
    except InputError as error:
        raise _bad_source(name, "; ".join(error.problems)) from None
    return source.settings.model_validate(section)


def _bad_source(name: Any, reason: str) -> ValidationError:
    error = PydanticCustomError("plugin", "{reason}", {"reason": reason})
    return ValidationError.from_exception_data(
        "data", [{"type": error, "loc": ("source",), "input": name}]
    )
