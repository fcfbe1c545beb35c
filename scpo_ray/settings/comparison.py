"""A comparison: the same run for each method, culture and seed."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from scpo_ray.settings.methods import own_methods
from scpo_ray.settings.run import MethodName, RunConfig, check_method, spelling_of
from scpo_ray.settings.section import Section
from scpo_ray.settings.spelling import spelled_once


class SpaceConfig(Section):
    method: list[MethodName] = Field(default_factory=own_methods)
    """Methods to compare; the default are the paper's. One that pools cultures is trained once
    for all cultures of the data."""

    culture: list[str] | None = None
    """One model per culture; null: the cultures of `run.data.cultures`."""

    seed: list[Annotated[int, Field(ge=0, lt=2**63)]] = [0]
    """Each method and culture is run with each seed."""

    equal_compute: bool = True
    """A method that pools makes as many steps for its one model as the others make for all of
    theirs: `train.max_steps` times the number of cultures. false: `train.max_steps`."""

    @model_validator(mode="after")
    def values_are_named_once(self) -> Self:
        for name in ("method", "culture", "seed"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise ValueError(f"{name} must name each value once, got {values}")
        return self


class ComparisonConfig(Section):
    """A file with `run:` and `space:`: the same run for each method, culture and seed."""

    run: RunConfig
    """A whole run."""

    space: SpaceConfig = SpaceConfig()
    """What varies."""

    @model_validator(mode="before")
    @classmethod
    def cultures_have_one_name(cls, document: Any) -> Any:
        run, space = (document.get("run"), document.get("space"))
        if isinstance(run, dict) and isinstance(space, dict):
            cultures = space.get("culture")
            if isinstance(cultures, list):
                named = spelled_once(cultures, "space.culture", spelling_of(run))
                return document | {"space": space | {"culture": named}}
        return document

    @model_validator(mode="after")
    def methods_fit_the_model(self) -> Self:
        for method in self.space.method:
            check_method(method, self.run)
        return self
