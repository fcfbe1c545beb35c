"""A sweep as one HTML page and as pictures, from its table alone. Computes no metric."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from scpo_ray.records import LAYERS, HeldOut
from scpo_ray.report.answer import answer_row, setting_advice, without_empty
from scpo_ray.report.cells import (
    NONE,
    Cell,
    Row,
    Table,
    cell_of,
    change_over,
    counted,
    interval,
    isolated,
    percent,
    points,
    shortened,
    size_of,
)
from scpo_ray.report.page import save_pictures, write_page
from scpo_ray.report.pictures import label
from scpo_ray.report.sweep_looks import short_names, shown
from scpo_ray.report.sweep_pictures import MAX_CULTURE_MAPS, draw_sweep, with_objective
from scpo_ray.results import Difference
from scpo_ray.statistics.intervals import standing
from scpo_ray.sweep.records import (
    EfficiencyCurve,
    SettingSummary,
    SweepResult,
    TrialRecord,
    TrialState,
)

log = logging.getLogger(__name__)

REFRESH_S = 30
"""Seconds after which the page of a running sweep is written, and loaded, anew."""
MAX_SETTINGS = 100
MAX_TRIALS = 200
MAX_FAILURES = 20
MAX_BY_CULTURE = 10
MAX_CULTURES = 40
MAX_NAMED = 5
MAX_NEEDS = 12
UNIT = "users or questions"
"""What intervals resample: a sweep's table does not say which."""

MEASURES = {
    "all": "of all {side} pairs ranked right",
    "distinctive": "of the distinctive {side} pairs ranked right",
    "agreed": "of the agreed {side} pairs ranked right",
}


def write_sweep_report(
    result: SweepResult,
    path: Path,
    *,
    pictures_dir: Path | None = None,
    running: Sequence[str] | None = None,
) -> Path:
    """One HTML file that refers to nothing outside it; its pictures beside it where there are many.

    Args:
        pictures_dir: where the page's figures are written as PNG files, too.
        running: what runs while the page is written, which then loads itself anew; None: the
            sweep has ended.

    Returns: `path`; the file is there whole or not at all.
    Raises: InputError if a place cannot be written.
    """
    drawn = draw_sweep(result)
    number = len(result.cultures)
    values = _values(result) | {"running": running, "refresh_s": REFRESH_S}
    size = write_page(path, "sweep.html.jinja", drawn, num_cultures=number, values=values)
    if pictures_dir is not None:
        save_pictures(drawn, pictures_dir)
    settings, trials = len(result.settings), len(result.trials)
    log.debug("%s: %d settings, %d trials, %.1f MB", path, settings, trials, size / 1e6)
    return path


def _values(result: SweepResult) -> dict[str, Any]:
    labels = {s.setting.number: s.setting.label for s in result.settings}
    failed = [trial for trial in result.trials if trial.state == "failed"]
    answer, advice = sweep_answer(result)
    return {
        "title": result.name,
        "question": result.question.strip(),
        "lead": _lead(result),
        "answer": answer,
        "advice": advice,
        "failures": [(_trial_name(t, labels), t.error or "no reason known") for t in failed],
        "max_failures": MAX_FAILURES,
        "ranking": _ranking_table(result),
        "num_settings": len(result.settings),
        "without_objective": len(result.settings) - len(with_objective(result)),
        "by_culture": _culture_table(result),
        "num_cultures": len(result.cultures),
        "max_culture_maps": MAX_CULTURE_MAPS,
        "best_trials": result.best_trials,
        "folders": {t.trial_id: t.path for t in result.trials},
        "needs": pairs_needed(result.efficiency),
        "max_needs": MAX_NEEDS,
        "trials": result.trials[:MAX_TRIALS],
        "num_trials": len(result.trials),
        "labels": labels,
        "has_folds": result.num_folds is not None,
        "measure": _objective(result),
        "side": result.measured_on,
        "lowest_is_best": result.objective["mode"] == "min",
        "unit": UNIT,
        "names": {"cultures": result.cultures},
    }


def sweep_answer(result: SweepResult) -> tuple[Table, list[str]]:
    """The setting for the objective and for each culture alone, and what to do."""
    rows, named = [], {}
    for found in result.answers:
        kind = "" if found.culture else "macro"
        name = found.culture or "All cultures, one setting"
        row = answer_row(name, kind, found, UNIT)
        rows.append(replace(row, cells=[row.cells[place] for place in (0, 1, 2, 4, 5)]))
        named[found.culture or "All cultures"] = found
    columns = [
        ("best setting", f"{result.objective['metric']}, %"),
        ("sure?", "is every other one behind it"),
        ("over global", "all, points"),
        ("as good, for all we know", "not distinguishable from it"),
        ("costs agreed", "points, minus global"),
    ]
    corner = f"culture ({result.measured_on} pairs, {UNIT})"
    table = without_empty(Table("Which setting for whom", corner, columns, rows))
    return table, setting_advice(named)


def _lead(result: SweepResult) -> list[str]:
    """What was run and what came out, in plain sentences."""
    ranked = with_objective(result)
    said = [f"{_what_was_run(result)} {_what_is_best(result)}"]
    best = ranked[0] if ranked else None
    if best is None or best.objective is None:
        return said + [
            "No setting has an objective: that takes a finished run of every culture, with "
            f"{result.measured_on} pairs that count."
        ]
    estimate = best.objective
    over_global = change_over(best.minus_global, "over the global model on all pairs, macro mean")
    said.append(
        f"Best: {isolated(best.setting.label, 120)}, with {percent(estimate.value)} % "
        f"{interval(estimate)} {_objective(result)} ({size_of(estimate, UNIT)}){over_global}."
    )
    return [*said, _beside_best(ranked), _honestly(result, len(ranked))]


def _what_was_run(result: SweepResult) -> str:
    states = Counter(trial.state for trial in result.trials)
    reused = sum(t.reused for t in result.trials)
    words: dict[TrialState, str] = {
        "finished": "finished",
        "stopped": "stopped early",
        "failed": "failed",
        "waiting": "not run",
    }
    ended = ", ".join(f"{states[s]:,} {word}" for s, word in words.items() if states[s])
    seeds = ", ".join(map(str, result.seeds))
    parts = [counted(len(result.settings), "setting"), counted(len(result.cultures), "culture")]
    parts.append(f"{counted(len(result.seeds), 'seed')} ({seeds})")
    if result.num_folds is not None:
        parts.append(counted(result.num_folds, "fold"))
    before = f"; {reused:,} had ended before this sweep" if reused else ""
    axes = [name for axis in result.axes if (name := isolated(axis, 60))]
    return (
        f"{counted(len(result.trials), 'trial')} ({ended or 'none run'}{before}): "
        f"{', '.join(parts)}; experiment {isolated(result.experiment)}. "
        f"What varies: {', '.join(axes) or NONE}."
    )


def _what_is_best(result: SweepResult) -> str:
    end = "lowest" if result.objective["mode"] == "min" else "highest"
    return f"Best is the {end} objective: % {_objective(result)}."


def _objective(result: SweepResult, side: HeldOut | None = None) -> str:
    culture = result.objective["culture"]
    over = {"macro": "macro mean over cultures", "worst": "in the worst culture"}
    measure = MEASURES[result.objective["metric"]].format(side=side or result.measured_on)
    return f"{measure}, {over.get(culture) or f'in {isolated(culture)}'}"


def _beside_best(ranked: Sequence[SettingSummary]) -> str:
    if len(ranked) == 1:
        return "No other setting has an objective to compare with it."
    others = counted(len(ranked) - 1, "other setting")
    by_standing: dict[str, list[SettingSummary]] = {}
    for s in ranked[1:]:
        by_standing.setdefault(standing(s.objective, s.minus_best), []).append(s)
    said = [
        _named_standing(found, by_standing[found])
        for found in ("not distinguishable", "behind", "unknown")
        if found in by_standing
    ]
    return f"Of the {others}, {'; '.join(said)} (intervals that hold for all at once)."


def _named_standing(found: str, settings: Sequence[SettingSummary]) -> str:
    words = {
        "not distinguishable": "not distinguishable from it",
        "behind": "behind it",
        "unknown": "without an interval to tell by",
    }
    said = f"{len(settings):,} {'is' if len(settings) == 1 else 'are'} {words[found]}"
    if found != "not distinguishable":
        return said
    named = [_with_difference(s) for s in settings[:MAX_NAMED]]
    more = f", and {len(settings) - MAX_NAMED:,} more" if len(settings) > MAX_NAMED else ""
    return f"{said}: {', '.join(named)}{more}"


def _with_difference(summary: SettingSummary) -> str:
    behind = summary.minus_best
    shown = "" if behind is None else f" ({points(behind.value)} {interval(behind)})"
    return f"{isolated(summary.setting.label, 80)}{shown}"


def _honestly(result: SweepResult, num_ranked: int) -> str:
    if result.measured_on == "dev":
        return _on_test(result)
    if num_ranked == 1:
        return "It was not chosen among several, so its number is no better than it looks."
    flattered = (
        f"The best of {num_ranked:,} settings, chosen on the same pairs that measure it, looks "
        "better than it is"
    )
    honest = result.chosen_honestly
    if honest is None or honest.value is None:
        return f"{flattered}; there is no number from pairs that had no part in the choice."
    return (
        f"{flattered}: chosen on half of the {UNIT} and measured on the other half, it has "
        f"{percent(honest.value)} % {interval(honest)} ({size_of(honest, UNIT)}; 95 % interval "
        "over other ones)."
    )


def _on_test(result: SweepResult) -> str:
    """What dev users chose, on test users."""
    held = f"{UNIT} held out for choices (dev) chose it"
    if result.num_folds is not None:
        held = f"in each fold the {UNIT} of another one (dev) chose the best setting"
    worth = result.chosen_honestly
    if worth is None or worth.value is None:
        return f"On test: {held}, and there is no number from {UNIT} that had no part in it."
    over_global = change_over(
        result.chosen_minus_global, "over the global model on all pairs, macro mean"
    )
    return (
        f"On test: {held}; on those that had no part in any choice it has {percent(worth.value)} % "
        f"{interval(worth)} {_objective(result, 'test')} ({size_of(worth, UNIT)}){over_global}. "
        "This is the number to report; all others on this page are from dev."
    )


def _ranking_table(result: SweepResult) -> Table:
    names = short_names(result.axes)
    # Cultures are no part of a setting: every setting is run for each.
    axes = [a for a in result.axes if any(a in s.setting.values for s in result.settings)]
    columns = [(names[a], "") for a in axes]
    metric, culture = result.objective["metric"], result.objective["culture"]
    # The objective's own layer has no column of its own where it would say the same.
    layers = [layer for layer in LAYERS if (layer, "macro") != (metric, culture)]
    columns += [("objective", f"{metric}, {label(culture, 20)}, %")]
    columns += [("minus best", "points"), ("minus global", "all, macro, points")]
    columns += [(layer, "macro, %") for layer in layers]
    columns += [("other cultures", "all, %"), ("pairs kept", "mean per run")]
    columns += [("sd", "over seeds, points"), ("trials", "finished")]
    rows = []
    for rank, s in enumerate(result.settings[:MAX_SETTINGS], 1):
        cells = [_value_cell(s, axis) for axis in axes]
        cells += [cell_of(s.objective, UNIT)]
        cells += [_paired_cell(found) for found in (s.minus_best, s.minus_global)]
        macro = s.accuracy.get("", {})
        cells += [cell_of(macro.get(layer), UNIT) for layer in layers]
        cells += [cell_of(s.other_cultures, UNIT), _kept_cell(s)]
        cells += [Cell(NONE if s.seed_sd is None else f"{100 * s.seed_sd:.1f}"), _trials_cell(s)]
        has_number = s.objective is not None and s.objective.value is not None
        found = standing(s.objective, s.minus_best)
        size = f"setting {s.setting.number}{f', {found}' if has_number else ''}"
        kind = "macro" if found in ("best", "not distinguishable") else ""
        rows.append(Row(f"{rank}" if has_number else NONE, size, kind, cells))
    return Table("Settings, best first", "rank", columns, rows)


def _value_cell(summary: SettingSummary, axis: str) -> Cell:
    if axis not in summary.setting.values:
        return Cell(NONE)
    text = shown(summary.setting.values[axis])
    return Cell(label(text, 28), (), "value", shortened(text) if len(text) > 28 else "")


def _paired_cell(found: Difference | None) -> Cell:
    """As in a run's report, its p-value in the hint: a ranking has many rows."""
    cell = cell_of(found, UNIT)
    if not cell.lines:
        return cell
    between, p_value, *noise = cell.lines
    return Cell(cell.main, (between, *noise), cell.tone, f"{p_value}; {cell.hint}")


def _kept_cell(summary: SettingSummary) -> Cell:
    if summary.num_pairs is None:
        return Cell(NONE)
    share = summary.kept_share
    return Cell(f"{summary.num_pairs:,.0f}", () if share is None else (f"{percent(share)} %",))


def _trials_cell(summary: SettingSummary) -> Cell:
    lost = {"failed": summary.num_failed, "stopped": summary.num_stopped}
    return Cell(f"{summary.num_finished:,}", tuple(f"{n:,} {s}" for s, n in lost.items() if n))


def _culture_table(result: SweepResult) -> Table:
    """The objective of the first settings on each culture, their lowest and highest one first."""
    cultures = result.cultures[:MAX_CULTURES]
    metric = result.objective["metric"]
    rows = []
    for rank, s in enumerate(result.settings[:MAX_BY_CULTURE], 1):
        values = s.objective_per_culture
        cells = []
        for end in (min, max):
            culture = end(values, key=lambda c: values[c]) if values else None
            below = () if culture is None else (label(culture, 20),)
            cells.append(Cell(percent(values[culture]) if culture is not None else NONE, below))
        for culture in cultures:
            found = s.accuracy.get(culture, {}).get(metric)
            value = values.get(culture)
            # The interval belongs to the number only where the two agree.
            if found is not None and found.value == value:
                cells.append(cell_of(found, UNIT))
            else:
                cells.append(Cell(percent(value)))
        rows.append(Row(s.setting.label, f"rank {rank}", "", cells))
    columns = [("lowest", ""), ("highest", ""), *((c, "") for c in cultures)]
    return Table("The first settings by culture, in %", "setting", columns, rows)


def pairs_needed(curves: Sequence[EfficiencyCurve]) -> list[str]:
    """Of each curve, the share of its rival's pairs with which it does as well, in a sentence."""
    said = []
    for curve in curves:
        if curve.pairs_to_match is None:
            continue
        value, low, high = curve.pairs_to_match
        name, rival = isolated(curve.name, 60), isolated(curve.rival, 60)
        if curve.rival_learned != "better":
            nothing = (
                f"{rival} is not shown to be better with all its users than with the fewest: "
                "nothing was learned that needs pairs, and none can be said to match it."
            )
            said += [] if nothing in said else [nothing]
            continue
        if not isfinite(value):
            said.append(f"{name} never reaches what {rival} has at its largest fraction.")
            continue
        at_most = "at most " if curve.is_at_most else ""
        ends = [f"{end:.2f}" if isfinite(end) else "never" for end in (low, high)]
        said.append(
            f"{name} needs {at_most}{value:.2f} [{ends[0]}, {ends[1]}] of the pairs that {rival} "
            f"selects at its largest fraction to have the objective that {rival} has there."
        )
    return said


def _trial_name(trial: TrialRecord, labels: dict[int, str]) -> str:
    fold = () if trial.fold is None else (f"fold {trial.fold}",)
    culture = (isolated(trial.culture),) if trial.culture else ()
    setting = isolated(labels.get(trial.setting, f"setting {trial.setting}"), 80)
    return ", ".join((trial.trial_id, setting, *culture, f"seed {trial.seed}", *fold))
