"""GPO: a country's answer shares, predicted from its answers to a few questions.

Source: Zhao, Dang and Grover, Group Preference Optimization (ICLR 2024, arXiv 2310.11523), and its
authors' code; docs/method.md says where this differs.
"""

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from scpo_ray.methods.ways import check_several_cultures, select_every_pair
from scpo_ray.records import InputError
from scpo_ray.settings.countries import country_name
from scpo_ray.settings.methods import Method, Style
from scpo_ray.settings.section import Section
from scpo_ray.settings.spelling import spelled_once


class Settings(Section):
    num_learning_countries: int = Field(5, ge=1)
    """Countries to learn from, drawn by the run's seed; a run's own country is never among them."""

    learning_countries: list[str] | None = Field(None, min_length=1)
    """The countries to learn from, in place of drawn ones."""

    num_context_questions: int = Field(20, ge=1, le=1_000_000)
    """Training questions whose answers are known of the country that is predicted."""

    num_steps: int = Field(2_000, ge=1, le=10**7)
    """Steps of the predictor; every learning country is in each. The paper makes 200,000."""

    learning_rate: float = Field(3e-4, gt=0)
    """Adam's, falling to zero in a cosine."""

    min_questions: int = Field(10, ge=1, le=1_000_000)
    """Questions that a learning country shows in a step, and that are asked of it, at least."""

    max_questions: int = Field(100, ge=1, le=1_000_000)
    """The same at most."""

    @field_validator("learning_countries")
    @classmethod
    def countries_have_one_name(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else spelled_once(value, "learning_countries", country_name)

    @model_validator(mode="after")
    def settings_agree(self) -> Self:
        if self.max_questions < self.min_questions:
            raise ValueError(
                f"max_questions {self.max_questions} must not be below min_questions "
                f"{self.min_questions}"
            )
        return self


def check_settings(config: Any) -> None:
    """Raises: ValueError if the data is no survey."""
    if not config.data.holds_opinions:
        raise ValueError(
            "method 'gpo' predicts answers to survey questions: it needs data.source "
            f'"opinions", got "{config.data.source}"'
        )


def check(task: Any) -> None:
    """Raises: InputError naming what there is too little of."""
    from scpo_ray.methods.few_shot import few_shot

    check_several_cultures(task)
    cultures, opinions = task.trained_cultures, task.data.opinions
    if opinions is None or len(cultures) != 1:
        raise InputError(
            f"method = gpo: predicts one country, got {len(cultures)}",
            ["give one country in culture_weights, or compare over space.culture"],
        )
    try:
        few_shot(opinions, cultures[0], task.settings, seed=task.config.seed)
    except ValueError as error:
        raise InputError(f"methods.gpo: {error}") from None


def fit(prepared: Any, context: Any) -> Any:
    """Logits of every option, whose softmax are the predicted shares."""
    from scpo_ray.methods.few_shot import fit_few_shot

    return fit_few_shot(prepared, context)


METHODS = Method(
    name="gpo",
    about="a country's answer shares, predicted from its answers to a few questions",
    version=1,
    settings=Settings,
    check_settings=check_settings,
    check=check,
    select=select_every_pair,
    fit=fit,
    style=Style("#3f4fb5", "#98a5f5", "p", ":"),
    trains=False,
    needs_global_model=True,
    learns_from_all=True,
)
