"""What a sweep file says beside its run: what varies, how it is searched, what is best."""

import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    model_validator,
)

from scpo_ray.settings.run import EXECUTION, RunConfig, spelling_of
from scpo_ray.settings.section import Section
from scpo_ray.settings.spelling import Spell, keys_spelled_once, spelled_once

CULTURE = "culture"
POOLING = "pooling"
"""Axes that are no settings of a run: what it is trained for, and the others' weight beside it."""


MAX_SETTINGS = 100_000
"""Trials of one sweep: more would take their planner hours, and are a mistake."""


def _named_once(values: list[Any]) -> list[Any]:
    shown = [json.dumps(value, sort_keys=True, default=str) for value in values]
    if len(set(shown)) < len(shown):
        raise ValueError(f"must name each value once, got {values}")
    return values


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] < ends[1]:
        raise ValueError(f"must rise, got {list(ends)}")
    return ends


def _above_0(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] <= 0:
        raise ValueError(f"must begin above 0, got {list(ends)}")
    return ends


class Grid(Section):
    """Every value, with every value of the other grids. In a TPE search, one to choose."""

    grid: Annotated[list[Any], AfterValidator(_named_once)] = Field(min_length=1)
    """The values."""


class Choice(Section):
    """One value, drawn at random."""

    choice: Annotated[list[Any], AfterValidator(_named_once)] = Field(min_length=1)
    """The values."""


class Uniform(Section):
    """A number between two."""

    uniform: Annotated[tuple[float, float], AfterValidator(_rising)]
    """Lowest and highest."""


class LogUniform(Section):
    """A number between two above 0, its logarithm uniform."""

    loguniform: Annotated[tuple[float, float], AfterValidator(_above_0), AfterValidator(_rising)]
    """Lowest and highest."""


class RandInt(Section):
    """A whole number between two, both included."""

    randint: Annotated[tuple[int, int], AfterValidator(_rising)]
    """Lowest and highest."""


class Dirichlet(Section):
    """Shares of the named cultures that add up to 1; a concentration above 0 for each."""

    dirichlet: dict[str, Annotated[float, Field(gt=0)]] = Field(min_length=2)
    """Culture -> concentration."""


class Bundles(Section):
    """Named groups of settings, of which a run has one: the six methods, say."""

    bundles: dict[str, dict[str, Any]] = Field(min_length=1)
    """Name -> dotted setting -> value."""


_KINDS: dict[str, type[Section]] = {
    "grid": Grid,
    "choice": Choice,
    "uniform": Uniform,
    "loguniform": LogUniform,
    "randint": RandInt,
    "dirichlet": Dirichlet,
    "bundles": Bundles,
}


def _domain(value: Any) -> Any:
    if isinstance(value, Section):
        return value
    kinds = list(value) if isinstance(value, dict) else []
    if len(kinds) != 1 or kinds[0] not in _KINDS:
        raise ValueError(f"must be one of {', '.join(_KINDS)} with its values, got {value!r}")
    return _KINDS[kinds[0]].model_validate(value)


Domain = Annotated[SerializeAsAny[Section], BeforeValidator(_domain)]


class SearchConfig(Section):
    by: Literal["grid", "random", "tpe", "tpe-all-agreed"] = "grid"
    """grid: every combination. random: `num_draws` of what is random, each with every combination
    of the grids. tpe: `num_draws` settings, each chosen after those before it (Optuna);
    tpe-all-agreed: for accuracy on `all` and on `agreed` at once."""

    num_draws: int | None = Field(None, ge=1, le=MAX_SETTINGS)
    """How many settings are drawn; a grid has none."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the draws alone."""

    @property
    def is_adaptive(self) -> bool:
        return self.by in ("tpe", "tpe-all-agreed")

    @model_validator(mode="after")
    def draws_are_counted(self) -> Self:
        if (self.num_draws is None) != (self.by == "grid"):
            raise ValueError(f'num_draws goes with every search but "grid", got by {self.by!r}')
        return self


class SchedulerConfig(Section):
    by: Literal["none", "asha", "hyperband"] = "none"
    """Whether poor trials are stopped early, by their objective after some steps. hyperband: three
    brackets of asha that begin later and later."""

    first_steps: int = Field(50, ge=1, le=10**7)
    """Steps after which a trial is first compared."""

    reduction_factor: int = Field(3, ge=2, le=1_000_000)
    """One in so many goes on, and is compared again after so many times the steps."""


class RepeatConfig(Section):
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], AfterValidator(_named_once)] = (
        Field([0], min_length=1)
    )
    """Each setting is run with each seed."""

    num_folds: int | None = Field(None, ge=2, le=1_000)
    """Each setting is run on each of so many user-disjoint folds of every culture; null: the
    run's own split."""

    @property
    def folds(self) -> list[int | None]:
        return [None] if self.num_folds is None else list(range(self.num_folds))


class ObjectiveConfig(Section):
    metric: Literal["all", "distinctive", "agreed"] = "all"
    """Accuracy on this layer of the test pairs."""

    culture: str = "macro"
    """"macro": the mean over cultures, each by the model trained for it; "worst": the lowest of
    them; or a culture's name."""

    mode: Literal["max", "min"] = "max"
    """Which end is best."""


class ResourcesConfig(Section):
    workers: int = Field(1, ge=1, le=100_000)
    """Workers of a trial. One trains in the trial's own process; more are started by Ray Train."""

    cpus: float = Field(1.0, gt=0, le=100_000)
    """CPUs that each worker reserves; a fraction packs more trials on a core."""

    gpus: float | None = Field(None, ge=0, le=100_000)
    """GPUs that each worker reserves; a fraction packs small trials on one GPU. null: one where
    the cluster has GPUs and `run.device` is not cpu."""


class BudgetConfig(Section):
    trials: int | None = Field(None, ge=1, le=10**9)
    """At most so many trials are started by one command."""

    hours: float | None = Field(None, gt=0, le=1_000_000)
    """No trial goes on longer than so many hours after the command; what is missing is run by the
    next one."""


class SweepConfig(Section):
    """A file with `run:` and `space:`, searched by Ray Tune."""

    run: RunConfig
    """A whole run: what every trial has that does not vary."""

    space: dict[str, Domain] = Field(min_length=1)
    """Dotted setting -> what it may be; "culture" and "pooling" are axes of their own."""

    search: SearchConfig = SearchConfig()
    """Which settings of the space are run."""

    scheduler: SchedulerConfig = SchedulerConfig()
    """Whether poor trials are stopped early."""

    repeat: RepeatConfig = RepeatConfig()
    """How often each setting is run."""

    objective: ObjectiveConfig = ObjectiveConfig()
    """What is best."""

    resources: ResourcesConfig = ResourcesConfig()
    """What one trial reserves."""

    max_concurrent: int | None = Field(None, ge=1, le=1_000_000)
    """At most so many trials at once; null: as many as there is room for."""

    max_trial_failures: int = Field(2, ge=0, le=1_000_000)
    """How often a trial starts again, from its checkpoint, after its process or machine is lost."""

    budget: BudgetConfig = BudgetConfig()
    """When to stop before the end."""

    @model_validator(mode="before")
    @classmethod
    def cultures_have_one_name(cls, document: Any) -> Any:
        run, space, objective = (document.get(name) for name in ("run", "space", "objective"))
        if not isinstance(run, dict):
            return document
        named, spell = {}, spelling_of(run)
        if isinstance(space, dict):
            named["space"] = _with_cultures_spelled(space, spell)
        if isinstance(objective, dict) and isinstance(objective.get("culture"), str):
            named["objective"] = objective | {"culture": spell(objective["culture"])}
        return document | named

    @model_validator(mode="after")
    def space_fits_the_search(self) -> Self:
        drawn = [n for n, d in self.space.items() if not isinstance(d, Grid | Bundles)]
        if self.search.by == "grid" and drawn:
            raise ValueError(f"space.{drawn[0]}: a grid search takes grid and bundles alone")
        if self.search.by == "random" and not drawn:
            raise ValueError("search.by random: nothing in the space is drawn; use grid")
        combinations = len(self.repeat.seeds) * len(self.repeat.folds)
        for domain in self.space.values():
            if isinstance(domain, Grid | Bundles):
                combinations *= len(next(iter(domain.model_dump().values())))
        if self.search.by == "random":
            combinations *= self.search.num_draws or 1
        if combinations > MAX_SETTINGS:
            raise ValueError(
                f"space: {combinations:,} trials, at most {MAX_SETTINGS:,} are planned"
            )
        return self

    @model_validator(mode="after")
    def culture_and_pooling_have_values_of_their_kind(self) -> Self:
        culture, pooling = self.space.get(CULTURE), self.space.get(POOLING)
        if culture is not None and not isinstance(culture, Grid):
            raise ValueError("space.culture: must be a grid, each culture has runs of its own")
        for name in culture.grid if culture is not None else []:
            if not isinstance(name, str):
                raise ValueError(f"space.culture: must name cultures, got {name!r}")
        if pooling is None:
            return self
        if culture is None:
            raise ValueError("space.pooling: the weight of the others, needs space.culture")
        if not isinstance(pooling, Grid | Choice | Uniform):
            raise ValueError("space.pooling: must be a grid, a choice or uniform")
        for weight in next(iter(pooling.model_dump().values())):
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not (is_number and weight >= 0):
                raise ValueError(f"space.pooling: must be weights of at least 0, got {weight!r}")
        return self

    @model_validator(mode="after")
    def one_home_for_each_setting(self) -> Self:
        ours = {
            "seed": "repeat.seeds",
            "data.split.num_folds": "repeat.num_folds",
            "data.split.fold": "repeat.num_folds",
            "train.num_workers": "resources.workers",
        }
        if CULTURE in self.space:
            ours["culture_weights"] = "space.culture"
        for name in self._settings():
            section, _, below = name.partition(".")
            execution = EXECUTION.get(section, ())
            if name in ours:
                raise ValueError(f"space.{name}: is set by {ours[name]}")
            if name == "experiment" or execution is True or below in execution:
                raise ValueError(f"space.{name}: decides nothing of a run's result")
        if self.run.train.num_workers != 1:
            raise ValueError("run.train.num_workers: is set by resources.workers in a sweep")
        if self.repeat.num_folds and self.run.data.split.by == "source":
            raise ValueError("repeat.num_folds needs run.data.split.by user or question")
        return self

    @model_validator(mode="after")
    def scheduler_can_compare(self) -> Self:
        if self.scheduler.by == "none":
            return self
        if self.resources.workers > 1:
            raise ValueError("scheduler: needs resources.workers 1, it compares single processes")
        runs = len(self.repeat.seeds) * len(self.repeat.folds)
        if CULTURE in self.space:
            runs *= len(self.space[CULTURE].model_dump()["grid"])
        if self.search.is_adaptive and runs > 1:
            raise ValueError(
                f"scheduler: with search.by {self.search.by} a setting has {runs} runs in turn, "
                "and only single ones can be compared midway"
            )
        return self

    def _settings(self) -> Iterator[str]:
        """The dotted settings that the space varies, those in a bundle or a section too."""
        for axis, domain in self.space.items():
            if isinstance(domain, Bundles):
                for bundle, settings in domain.bundles.items():
                    for name in (CULTURE, POOLING):
                        if name in settings:
                            raise ValueError(f"space.{axis}.{bundle}: {name} is an axis of its own")
                    yield from _dotted("", settings)
            else:
                yield axis
                for value in next(iter(domain.model_dump().values())):
                    yield from _dotted(f"{axis}.", value)

    @property
    def document(self) -> dict[str, Any]:
        """What decides the sweep's results: where and how fast it is computed does not count."""
        return self.model_dump(
            mode="json",
            exclude={
                "run": EXECUTION,
                "resources": True,
                "max_concurrent": True,
                "max_trial_failures": True,
                "budget": True,
            },
        )

    @property
    def digest(self) -> str:
        document = json.dumps(self.document, sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()[:12]


def _with_cultures_spelled(settings: dict[Any, Any], spell: Spell) -> dict[Any, Any]:
    """A space's axes, or a bundle's settings, with the one name of every culture in them."""
    named: dict[Any, Any] = {}
    for setting, value in settings.items():
        match str(setting).partition("."), value:
            case (("culture", _, ""), {"grid": list(cultures)}):
                value = {**value, "grid": spelled_once(cultures, "space.culture", spell)}
            case (("culture_weights", _, ""), _):
                value = _with_weights_spelled(value, spell)
            case (("culture_weights", _, culture), _):
                setting = f"culture_weights.{spell(culture)}"
            case (_, {"bundles": dict(bundles)}):
                of_each = {
                    name: _with_cultures_spelled(bundle, spell)
                    if isinstance(bundle, dict)
                    else bundle
                    for name, bundle in bundles.items()
                }
                value = {**value, "bundles": of_each}
        if setting in named:
            raise ValueError(f"space.{setting}: must be set once, however its culture is spelled")
        named[setting] = value
    return named


def _with_weights_spelled(value: Any, spell: Spell) -> Any:
    """What `culture_weights` is set to, or the domain of it."""
    match value:
        case {"dirichlet": dict(concentrations)}:
            return {
                **value,
                "dirichlet": keys_spelled_once(concentrations, "culture_weights", spell),
            }
        case {"grid": list(several)}:
            return {**value, "grid": [_with_weights_spelled(weights, spell) for weights in several]}
        case {"choice": list(several)}:
            return {
                **value,
                "choice": [_with_weights_spelled(weights, spell) for weights in several],
            }
        case dict():
            return keys_spelled_once(value, "culture_weights", spell)
    return value


def _dotted(above: str, value: Any) -> Iterator[str]:
    for name, below in value.items() if isinstance(value, dict) else ():
        yield f"{above}{name}"
        yield from _dotted(f"{above}{name}.", below)
