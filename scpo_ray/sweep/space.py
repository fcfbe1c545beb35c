"""Which runs answer a question: a space into settings, settings into trials, each a run config."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.special import gammaln
from scipy.stats import gamma

from scpo_ray.records import InputError, PreferenceData
from scpo_ray.settings.comparison import ComparisonConfig
from scpo_ray.settings.files import check_culture_names, count_problems, set_dotted, validate
from scpo_ray.settings.methods import METHODS
from scpo_ray.settings.run import RunConfig
from scpo_ray.settings.section import Section
from scpo_ray.settings.sweep import (
    CULTURE,
    POOLING,
    Bundles,
    Choice,
    Dirichlet,
    Grid,
    LogUniform,
    ObjectiveConfig,
    RandInt,
    SweepConfig,
    Uniform,
)
from scpo_ray.statistics.intervals import stream
from scpo_ray.sweep.records import Setting

MAX_PROBLEMS = 20
_WEIGHTS = "culture_weights."


@dataclass(frozen=True)
class Trial:
    """One run of a comparison and the culture it trains for."""

    culture: str
    config: RunConfig


@dataclass(frozen=True)
class PlannedTrial:
    """One run of a sweep. `culture` is "" where the space names none."""

    setting: Setting
    culture: str
    seed: int
    fold: int | None
    config: RunConfig


def comparison_trials(comparison: ComparisonConfig, known_cultures: Sequence[str]) -> list[Trial]:
    """Every culture x method x seed of the space, in that order.

    A method that pools has one run for all cultures: their trials have one config, with the steps
    of all of theirs where `space.equal_compute` says so.

    Args:
        known_cultures: the data's cultures, taken where the space names none.

    Raises: InputError if the space names a culture the data has not.
    """
    if comparison.space.culture is not None:
        left = comparison.run.data.cultures
        check_culture_names(comparison.space.culture, known_cultures, "space.culture", left=left)
    cultures = comparison.space.culture or list(known_cultures)
    run = comparison.run
    times = len(cultures) if comparison.space.equal_compute else 1
    more_steps = run.train.model_copy(update={"max_steps": times * run.train.max_steps})
    return [
        Trial(
            culture,
            run.model_copy(
                update={
                    "culture_weights": None if METHODS[method].pools else {culture: 1.0},
                    "train": more_steps if METHODS[method].pools else run.train,
                    "method": method,
                    "seed": seed,
                }
            ),
        )
        for culture in cultures
        for method in comparison.space.method
        for seed in comparison.space.seed
    ]


def trial_id(config: RunConfig, fingerprints: Mapping[str, str], culture: str) -> str:
    """Hash of the resolved run, how it is evaluated, and of its data and model; and of
    the culture, where one run is the trial of several."""
    parts = [config.evaluation_id, fingerprints["data"], fingerprints["model"]]
    document = json.dumps(parts + [culture] * config.how.pools)
    return hashlib.sha256(document.encode()).hexdigest()[:12]


def run_objective(
    accuracies: Mapping[str, Mapping[str, float | None]], objective: ObjectiveConfig, culture: str
) -> float | None:
    """The objective of one run: on the culture it is trained for; for a mixture, on the
    objective's culture, or the mean or the lowest over those it was measured on.

    Args:
        accuracies: culture -> layer -> share ranked right of the pairs that choices are made on.
        culture: what the run is trained for, "" for a mixture.

    Returns: None where a number is missing.
    """
    wanted = culture or objective.culture
    if wanted not in ("macro", "worst"):
        return accuracies.get(wanted, {}).get(objective.metric)
    found = [layers.get(objective.metric) for layers in accuracies.values()]
    numbers = [number for number in found if number is not None]
    if not numbers or len(numbers) < len(found):
        return None
    return min(numbers) if wanted == "worst" else sum(numbers) / len(numbers)


def job_objective(reached: Sequence[tuple[str, float | None]], sweep: SweepConfig) -> float | None:
    """The objective of all runs of a setting: seeds and folds averaged, then over cultures.

    Args:
        reached: of each run its culture and its own objective.

    Returns: None where a run that counts has no number.
    """
    wanted = sweep.objective.culture
    by_culture: dict[str, list[float | None]] = {}
    for culture, value in reached:
        if wanted in ("macro", "worst", culture) or not culture:
            by_culture.setdefault(culture, []).append(value)
    means = []
    for values in by_culture.values():
        numbers = [value for value in values if value is not None]
        if len(numbers) < len(values):
            return None
        means.append(sum(numbers) / len(numbers))
    if not means:
        return None
    return min(means) if wanted == "worst" else sum(means) / len(means)


def sweep_cultures(sweep: SweepConfig, known_cultures: Sequence[str]) -> list[str]:
    """The cultures that the space names; one empty name where it names none.

    Raises: InputError if it, or the objective, names a culture that the data or the space has not.
    """
    cultures, objective, left = [""], [sweep.objective.culture], sweep.run.data.cultures
    if CULTURE in sweep.space:
        cultures = list(_values(sweep.space[CULTURE]))
        check_culture_names(cultures, known_cultures, "space.culture", left=left)
    if sweep.objective.culture in ("macro", "worst"):
        return cultures
    if CULTURE in sweep.space:
        check_culture_names(
            objective, cultures, "objective.culture", left=cultures, by="space.culture"
        )
    else:
        check_culture_names(objective, known_cultures, "objective.culture", left=left)
    return cultures


def planned_settings(sweep: SweepConfig) -> list[Setting]:
    """Every setting of a grid or random search, in order; those that are alike once.

    A draw is made once for all combinations of the grids, so they are compared on equal terms.
    """
    axes = {name: domain for name, domain in sweep.space.items() if name != CULTURE}
    gridded = {n: list(_values(d)) for n, d in axes.items() if isinstance(d, Grid | Bundles)}
    drawn = {n: d for n, d in axes.items() if n not in gridded}
    found: dict[str, dict[str, Any]] = {}
    for number in range(sweep.search.num_draws or 1):
        draw = {
            name: _drawn(domain, stream(sweep.search.seed, "sweep", name, str(number)))
            for name, domain in drawn.items()
        }
        for combination in product(*gridded.values()):
            of_grids = dict(zip(gridded, combination, strict=True))
            values = {name: {**draw, **of_grids}[name] for name in axes}
            found.setdefault(json.dumps(values, sort_keys=True), values)
    return [make_setting(number, values) for number, values in enumerate(found.values())]


def make_setting(number: int, values: Mapping[str, Any]) -> Setting:
    """The setting with its label: each value under the last part of its axis's name."""
    last = [_keys(name)[-1] for name in values]
    shown = [
        f"{short if last.count(short) == 1 else name}={_shown(value)}"
        for short, (name, value) in zip(last, values.items(), strict=True)
    ]
    return Setting(number, dict(values), " ".join(shown) or "as in run")


def suggested_values(sweep: SweepConfig, suggestion: Mapping[str, Any]) -> dict[str, Any]:
    """A setting's values from what `search_space` let a search choose."""
    values: dict[str, Any] = {}
    for name, domain in sweep.space.items():
        if name == CULTURE:
            continue
        if isinstance(domain, Dirichlet):
            # Gamma draws, divided by their sum, are a Dirichlet draw.
            logs = {
                culture: _log_gamma_draw(suggestion[f"{name}/{culture}"], concentration)
                for culture, concentration in domain.dirichlet.items()
            }
            highest = max(logs.values())
            values[name] = _normalized({c: float(np.exp(x - highest)) for c, x in logs.items()})
        elif isinstance(domain, Grid | Choice | Bundles):
            values[name] = list(_values(domain))[int(suggestion[name])]
        else:
            values[name] = _rounded(suggestion[name], list(_values(domain)))
    return values


def search_space(sweep: SweepConfig) -> dict[str, Section | int]:
    """What a search chooses, by name: a Uniform, LogUniform or RandInt, or of how many one."""
    space: dict[str, Section | int] = {}
    for name, domain in sweep.space.items():
        if name == CULTURE:
            continue
        if isinstance(domain, Dirichlet):
            open_ends = Uniform(uniform=(1e-6, 1 - 1e-6))
            space |= {f"{name}/{culture}": open_ends for culture in domain.dirichlet}
        elif isinstance(domain, Grid | Choice | Bundles):
            space[name] = len(list(_values(domain)))
        else:
            space[name] = domain
    return space


def trials_of(
    sweep: SweepConfig, settings: Sequence[Setting], known_cultures: Sequence[str]
) -> list[PlannedTrial]:
    """Every setting x culture for the first seed and fold, then for the next: a sweep that is
    stopped has seen all of its settings.

    Raises: InputError naming every setting that no run can have (the first 20).
    """
    cultures = sweep_cultures(sweep, known_cultures)
    trials, problems = [], []
    for seed, fold in product(sweep.repeat.seeds, sweep.repeat.folds):
        for setting, culture in product(settings, cultures):
            try:
                config = _resolved(sweep, setting.values, culture, seed, fold, known_cultures)
                if _has_the_data_of(config, sweep.run):
                    weighted = list(config.culture_weights or {})
                    left = config.data.cultures
                    check_culture_names(weighted, known_cultures, "culture_weights", left=left)
            except InputError as error:
                problems += [f"{setting.label}: {problem}" for problem in error.problems]
                continue
            trials.append(PlannedTrial(setting, culture, seed, fold, config))
    distinct = list(dict.fromkeys(problems))
    if distinct:
        more = [f"and {len(distinct) - MAX_PROBLEMS} more"] if len(distinct) > MAX_PROBLEMS else []
        raise InputError(
            f"the space has settings that no run can have: {count_problems(distinct)}",
            [*distinct[:MAX_PROBLEMS], *more],
        )
    return trials


def check_space(sweep: SweepConfig, path: object) -> None:
    """Raises: InputError naming every value in the space that a run cannot have, neither by itself
    nor with one of another axis."""
    axes = {
        name: list(_values(domain))
        for name, domain in sweep.space.items()
        if name not in (CULTURE, POOLING)
    }
    problems = []
    for name, values in axes.items():
        others = [{o: v} for o, of_other in axes.items() if o != name for v in of_other]
        for value in values:
            alone = _problems(sweep, {name: value})
            if alone and all(_problems(sweep, {name: value, **other}) for other in others):
                is_bundle = isinstance(sweep.space[name], Bundles)
                where = f"space.{name}.{value}: " if is_bundle else "space."
                problems += [f"{where}{problem}" for problem in alone]
    if problems:
        distinct = list(dict.fromkeys(problems))
        raise InputError(f"{path}: {count_problems(distinct)}", distinct)


def check_choices(data: PreferenceData, config: RunConfig, cultures: Sequence[str]) -> None:
    """Raises: InputError naming each of `cultures` (those of the data, where a name is empty) that
    has no dev pairs, if the run's split holds users out for choices."""
    if config.data.split.chosen_on == "test":
        return
    named = data.cultures if "" in cultures else cultures
    counts = {culture: data.counts[culture] for culture in named}
    problems = [
        f"{culture}: no dev pair: {count.train_users} training users (or questions)"
        for culture, count in counts.items()
        if not count.dev_pairs
    ]
    if problems:
        remedy = "a larger one, repeat.num_folds, or 0: choices are then made on test users"
        size = f"run.data.split.dev_size = {config.data.split.dev_size:g}"
        raise InputError(
            f"{size}: too few people for a side that choices are made on",
            [*problems, f"set {remedy}, and the page says so"],
        )


def changes(before: Mapping[str, Any], after: Mapping[str, Any], below: str = "") -> list[str]:
    """What differs between two documents, a line for each place."""
    lines = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += changes(old, new, f"{below}{key}.")
        elif old != new:
            shown = ["nothing" if v is None else _shown(v) for v in (old, new)]
            lines.append(f"{below}{key}: was {shown[0]}, now {shown[1]}")
    return lines


def _problems(sweep: SweepConfig, values: Mapping[str, Any]) -> tuple[str, ...]:
    culture = next(_values(sweep.space[CULTURE])) if CULTURE in sweep.space else ""
    try:
        _resolved(sweep, values, culture, sweep.run.seed, None, [])
    except InputError as error:
        return error.problems
    return ()


def _has_the_data_of(config: RunConfig, run: RunConfig) -> bool:
    return config.data.model_copy(update={"split": run.data.split}) == run.data


def _resolved(
    sweep: SweepConfig,
    values: Mapping[str, Any],
    culture: str,
    seed: int,
    fold: int | None,
    known_cultures: Sequence[str],
) -> RunConfig:
    """The run of one trial. Raises: InputError if it is none."""
    document = sweep.run.model_dump(mode="json")
    if culture:
        others = dict.fromkeys(known_cultures, float(values.get(POOLING, 0.0)))
        weights = {**others, culture: 1.0}
        document["culture_weights"] = {name: w for name, w in weights.items() if w}
    for name, value in values.items():
        domain = sweep.space[name]
        settings = domain.bundles[value] if isinstance(domain, Bundles) else {name: value}
        for setting, chosen in settings.items():
            if setting not in (CULTURE, POOLING):
                _set(document, setting, chosen)
    # Last: a value of the space may be a whole section.
    of_sweep = {
        "seed": seed,
        "train.num_workers": sweep.resources.workers,
        "launch.cpus_per_worker": sweep.resources.cpus,
        "launch.gpus_per_worker": sweep.resources.gpus,
    }
    if fold is not None:
        of_sweep |= {"data.split.num_folds": sweep.repeat.num_folds, "data.split.fold": fold}
    for setting, chosen in of_sweep.items():
        _set(document, setting, chosen)
    config = validate(RunConfig, document, "run")
    if culture and config.how.pools:
        return config.model_copy(update={"culture_weights": None})
    return config


def _set(document: dict[str, Any], setting: str, value: Any) -> None:
    try:
        set_dotted(document, _keys(setting), value)
    except TypeError:
        raise InputError("run", [f"{setting}: a part of it is not a section"]) from None


def _keys(setting: str) -> list[str]:
    # A culture's name may have dots of its own.
    if setting.startswith(_WEIGHTS):
        return ["culture_weights", setting.removeprefix(_WEIGHTS)]
    return setting.split(".")


def _values(domain: Section) -> Iterator[Any]:
    """All values of a finite domain, the ends of the others."""
    match domain:
        case Grid():
            yield from domain.grid
        case Choice():
            yield from domain.choice
        case Bundles():
            yield from domain.bundles
        case Uniform():
            yield from domain.uniform
        case LogUniform():
            yield from domain.loguniform
        case RandInt():
            yield from domain.randint
        case Dirichlet():
            yield dict(domain.dirichlet)


def _drawn(domain: Section, rng: np.random.Generator) -> Any:
    match domain:
        case Choice():
            return domain.choice[int(rng.integers(len(domain.choice)))]
        case Uniform():
            return _rounded(float(rng.uniform(*domain.uniform)), domain.uniform)
        case LogUniform():
            drawn = float(np.exp(rng.uniform(*np.log(domain.loguniform))))
            return _rounded(drawn, domain.loguniform)
        case RandInt():
            return int(rng.integers(domain.randint[0], domain.randint[1], endpoint=True))
        case Dirichlet():
            shares = rng.dirichlet(list(domain.dirichlet.values()))
            return _normalized(dict(zip(domain.dirichlet, shares.tolist(), strict=True)))
    raise TypeError(f"{type(domain).__name__} is not drawn from")


def _rounded(value: float | int, ends: Sequence[float | int]) -> float | int:
    """Four significant digits, between the ends: what stands in a table is what was run."""
    if isinstance(value, int):
        return value
    return min(max(float(f"{value:.4g}"), ends[0]), ends[1])


def _log_gamma_draw(quantile: float, concentration: float) -> float:
    drawn = float(gamma.ppf(quantile, concentration))
    if drawn > 0:
        return float(np.log(drawn))
    # Too small for a number: there the distribution is x^concentration / gamma(concentration + 1).
    return float((np.log(quantile) + gammaln(concentration + 1)) / concentration)


def _normalized(shares: Mapping[str, float]) -> dict[str, float]:
    whole = sum(shares.values())
    return {name: _rounded(share / whole, (0.0, 1.0)) for name, share in shares.items()}


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_shown(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)
