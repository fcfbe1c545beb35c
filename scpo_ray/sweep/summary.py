"""The trials of a sweep into its table: what each setting reached, ranked, and what mattered."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scpo_ray.evaluation.comparable import ComparedRun
from scpo_ray.evaluation.comparison import MACRO
from scpo_ray.records import HeldOut
from scpo_ray.results import RESULT_FORMAT, Estimate
from scpo_ray.settings.sweep import CULTURE, ObjectiveConfig
from scpo_ray.statistics.intervals import stream
from scpo_ray.statistics.joint_scores import ranking
from scpo_ray.sweep.choice import chosen_by_halves, chosen_on_test
from scpo_ray.sweep.efficiency import FRACTION, efficiency_curves
from scpo_ray.sweep.outcomes import SweepOutcomes, read_outcomes
from scpo_ray.sweep.records import (
    EfficiencyCurve,
    Setting,
    SettingSummary,
    SweepResult,
    TrialRecord,
)
from scpo_ray.sweep.scores import (
    Scores,
    objective_values,
    score_settings,
    scored_cultures,
)

# An axis with more values than this is read in quartiles, else nearly every setting is a level.
MAX_LEVELS = 6


def _check_settings_are_there(trials: Sequence[TrialRecord], numbers: Sequence[int]) -> None:
    for trial in trials:
        if trial.setting not in numbers:
            raise ValueError(f"{trial.trial_id}: there is no setting {trial.setting}")


def summarize_sweep(
    *,
    name: str,
    experiment: str,
    question: str,
    objective: ObjectiveConfig,
    axes: Sequence[str],
    settings: Sequence[Setting],
    trials: Sequence[TrialRecord],
    measured_on: HeldOut,
    load: Callable[[TrialRecord, HeldOut], ComparedRun],
    seed: int,
) -> SweepResult:
    """Every setting's finished runs in one table, best objective first.

    Where users are held out for choices it is measured on them, and the choice once on test users.
    A pair's outcome is the share of a setting's seeds that rank it right, by the model trained for
    the pair's culture, or the one for all; folds are put together, those begun. A setting that
    lacks a culture or a fold has no macro mean and, unless another's accuracy, no objective.

    Args:
        axes: what varies, in the file's order. settings: in any order; numbers break ties.
        trials: in any state, each of one of `settings`.
        load: reads a finished run with its dev or test pairs; called once for each run and side,
            and little of it is kept.
        seed: of the resamples and halvings.

    Raises: ValueError naming two trials that cannot be compared, or a setting or culture of the
        objective that the sweep has not.
    """
    settings = sorted(settings, key=lambda setting: setting.number)
    numbers = [setting.number for setting in settings]
    _check_settings_are_there(trials, numbers)
    result = SweepResult(
        format=RESULT_FORMAT,
        name=name,
        experiment=experiment,
        question=question,
        objective=objective.model_dump(),
        axes=list(axes),
        cultures=list(dict.fromkeys(trial.culture for trial in trials if trial.culture)),
        seeds=list(dict.fromkeys(trial.seed for trial in trials)),
        num_folds=len({trial.fold for trial in trials} - {None}) or None,
        measured_on=measured_on,
        settings=[_without_runs(setting, trials) for setting in settings],
        trials=list(trials),
        importance=importance(axes, settings, [None] * len(settings)),
        pareto=[],
        best_trials={},
        chosen_honestly=None,
        chosen_minus_global=None,
        efficiency=[],
    )
    outcomes = read_outcomes(trials, lambda trial: load(trial, measured_on))
    if outcomes is None:
        return result
    scored = _scored(result, outcomes, settings, objective, seed)
    return _with_choice(scored, outcomes, objective, lambda trial: load(trial, "test"), seed)


def _with_choice(
    scored: SweepResult,
    outcomes: SweepOutcomes,
    objective: ObjectiveConfig,
    load: Callable[[TrialRecord], ComparedRun],
    seed: int,
) -> SweepResult:
    """With what the choice is worth on those who had no part in it: test users, or without dev
    users the other half of them."""
    best = next((s.setting.number for s in scored.settings if s.objective is not None), None)
    if best is None:
        return scored
    numbers = sorted(summary.setting.number for summary in scored.settings)
    if scored.measured_on == "test":
        honest = chosen_by_halves(outcomes, numbers, objective, seed)
        return replace(scored, chosen_honestly=honest)
    worth, over_global = chosen_on_test(outcomes, numbers, best, objective, load)
    return replace(scored, chosen_honestly=worth, chosen_minus_global=over_global)


def _scored(
    result: SweepResult,
    outcomes: SweepOutcomes,
    settings: Sequence[Setting],
    objective: ObjectiveConfig,
    seed: int,
) -> SweepResult:
    """With what the finished runs found; `settings` by number."""
    axes, numbers = result.axes, [setting.number for setting in settings]
    scores = score_settings(outcomes, numbers, objective)
    summaries = _summaries(result.settings, outcomes, scores, objective, seed)
    reached = [_value(summary.objective) for summary in summaries]
    return replace(
        result,
        cultures=outcomes.cultures,
        settings=[summaries[column] for column in ranking(reached, mode=objective.mode)],
        importance=importance(axes, settings, reached),
        pareto=pareto(summaries),
        best_trials=_best_trials(summaries, outcomes, objective),
        efficiency=_efficiency(axes, summaries, outcomes, scores, objective, seed),
    )


def importance(
    axes: Sequence[str], settings: Sequence[Setting], objectives: Sequence[float | None]
) -> dict[str, float]:
    """The share of the objective's variance between settings that each axis explains alone.

    Eta squared: the variance of the levels' means, weighted by their settings, over that of all
    settings. Axes that vary together both take what they share, and levels of few settings take
    some of the noise: the shares need not add up to 1. Of an axis with more than six values,
    numbers are binned in quartiles and shares of cultures are told apart by the largest one.

    Args:
        axes: names; "culture" is left out, for a setting has all of them.
        objectives: of each setting; those with None are left out.

    Returns: axis -> [0, 1]; 0 with one level or without variance.
    """
    there = [(s, value) for s, value in zip(settings, objectives, strict=True) if value is not None]
    reached = np.array([value for _, value in there])
    return {
        axis: _explained(_levels([setting.values[axis] for setting, _ in there]), reached)
        for axis in axes
        if axis != CULTURE
    }


def pareto(summaries: Sequence[SettingSummary]) -> list[int]:
    """Numbers of the settings that no other beats on macro `distinctive` and `agreed`.

    Higher is better on both; one that is as good on one and better on the other beats, too.

    Returns: in the order given; those without both numbers are left out.
    """
    # What rounding alone sets apart is as good.
    points = {
        summary.setting.number: (round(distinctive, 12), round(agreed, 12))
        for summary in summaries
        if (distinctive := _value(summary.accuracy[MACRO].get("distinctive"))) is not None
        and (agreed := _value(summary.accuracy[MACRO].get("agreed"))) is not None
    }
    return [
        number
        for number, ours in points.items()
        if not any(
            theirs != ours and theirs[0] >= ours[0] and theirs[1] >= ours[1]
            for theirs in points.values()
        )
    ]


def _without_runs(setting: Setting, trials: Sequence[TrialRecord]) -> SettingSummary:
    """How the setting's trials ended; no number."""
    states = Counter(trial.state for trial in trials if trial.setting == setting.number)
    return SettingSummary(
        setting=setting,
        num_finished=states["finished"],
        num_failed=states["failed"],
        num_stopped=states["stopped"],
        accuracy={MACRO: {}},
        other_cultures=None,
        objective=None,
        objective_per_culture={},
        minus_best=None,
        minus_global=None,
        seed_sd=None,
        kept_share=None,
        num_pairs=None,
    )


def _summaries(
    bare: Sequence[SettingSummary],
    outcomes: SweepOutcomes,
    scores: Scores,
    objective: ObjectiveConfig,
    seed: int,
) -> list[SettingSummary]:
    """The settings with their numbers, in the order given."""
    reached = scores.objective.estimates()
    values = [estimate.value for estimate in reached]
    behind = scores.objective.behind_best(
        objective.mode, samples=outcomes.samples, rng=stream(seed, "sweep", "best")
    )
    summaries = []
    for column, summary in enumerate(bare):
        number = summary.setting.number
        owned = [outcomes.runs.get((number, c), []) for c in ("", *outcomes.cultures)]
        runs = [run for several in owned for run in several]
        per_culture = zip(outcomes.cultures, scores.per_culture[:, column], strict=True)
        there = values[column] is not None
        summaries.append(
            replace(
                summary,
                accuracy={
                    culture: {layer: estimates[column] for layer, estimates in layers.items()}
                    for culture, layers in scores.accuracy.items()
                    if culture == MACRO or layers["all"][column].value is not None
                },
                other_cultures=_known(scores.other_cultures[column]),
                objective=_known(reached[column]),
                objective_per_culture={c: float(v) for c, v in per_culture if not np.isnan(v)},
                minus_best=behind[column],
                minus_global=scores.minus_global[column],
                seed_sd=_seed_sd(outcomes, number, objective) if there else None,
                kept_share=float(np.mean([r.kept_share for r in runs])) if runs else None,
                num_pairs=float(np.mean([r.num_pairs for r in runs])) if runs else None,
            )
        )
    return summaries


def _efficiency(
    axes: Sequence[str],
    summaries: Sequence[SettingSummary],
    outcomes: SweepOutcomes,
    scores: Scores,
    objective: ObjectiveConfig,
    seed: int,
) -> list[EfficiencyCurve]:
    if FRACTION not in axes:
        return []
    rng = stream(seed, "sweep", "efficiency")
    drawn = scores.objective.replicates(samples=outcomes.samples, rng=rng)
    replicates = {s.setting.number: drawn[:, place] for place, s in enumerate(summaries)}
    place = {s.setting.number: column for column, s in enumerate(summaries)}
    return efficiency_curves(
        axes,
        summaries,
        replicates,
        objective.mode,
        tail=scores.objective.tail,
        minus=lambda ours, theirs: scores.objective.difference(place[ours], place[theirs]),
    )


def _seed_sd(outcomes: SweepOutcomes, number: int, objective: ObjectiveConfig) -> float | None:
    """Over the seeds that finished in every fold of every culture of the objective."""
    cultures = scored_cultures(objective, outcomes.cultures)
    seeds = {run.trial.seed for c in cultures for run in outcomes.runs_for(number, c)}
    reached = []
    for seed in sorted(seeds):
        means = []
        for culture in cultures:
            pairs = outcomes.tested[culture]
            shares = outcomes.shares(number, culture, seed)
            if shares is not None:
                means.append(shares[pairs.rows[pairs.masks[objective.metric]]].mean(keepdims=True))
        if len(means) == len(cultures):
            reached.append(objective_values(means, objective))
    return float(np.std(reached, ddof=1)) if len(reached) > 1 else None


def _best_trials(
    summaries: Sequence[SettingSummary], outcomes: SweepOutcomes, objective: ObjectiveConfig
) -> dict[str, str]:
    best = {}
    for culture in outcomes.cultures:
        values = [summary.objective_per_culture.get(culture) for summary in summaries]
        first = ranking(values, mode=objective.mode)[0]
        if values[first] is None:
            continue
        runs = outcomes.runs_for(summaries[first].setting.number, culture)
        trials = [run.trial for run in runs]
        best[culture] = min(
            trials, key=lambda t: (t.seed, -1 if t.fold is None else t.fold)
        ).trial_id
    return best


def _levels(values: Sequence[Any]) -> list[str]:
    """The level of each setting on an axis."""
    shown = [json.dumps(value, sort_keys=True) for value in values]
    if len(set(shown)) <= MAX_LEVELS:
        return shown
    numbers = [value for value in values if value is not None]
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers):
        edges = np.quantile(numbers, [0.25, 0.5, 0.75])
        return ["" if v is None else str(np.searchsorted(edges, v)) for v in values]
    if all(isinstance(value, dict) and value for value in values):
        return [max(value, key=value.__getitem__) for value in values]
    return shown


def _explained(levels: Sequence[str], reached: NDArray[np.float64]) -> float:
    if len(reached) == 0:
        return 0.0
    whole = float(((reached - reached.mean()) ** 2).sum())
    # Rounding alone is no variance.
    if whole < 1e-20 * len(reached):
        return 0.0
    _, codes = np.unique(levels, return_inverse=True)
    sizes = np.bincount(codes)
    means = np.bincount(codes, weights=reached) / sizes
    return float((sizes * (means - reached.mean()) ** 2).sum() / whole)


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def _known(estimate: Estimate) -> Estimate | None:
    return None if estimate.value is None else estimate
