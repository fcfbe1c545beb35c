"""Tables of how far win probabilities can be trusted, and what a model's picks are worth.

On a terminal (rich's) and on a page, of the same numbers.
"""

from collections.abc import Mapping, Sequence
from math import floor, log10
from typing import Any

from rich.table import Table as TerminalTable

from scpo_ray.report.cells import NONE, Cell, Row, Table, cell_of, run_name
from scpo_ray.report.pictures import label
from scpo_ray.report.terminal import add_row, p_value, points, titled
from scpo_ray.results import (
    BestOfN,
    Calibration,
    Difference,
    Estimate,
    RunResult,
    ScoreComparison,
)
from scpo_ray.settings.naming import trained_cultures
from scpo_ray.settings.shown import number, percent
from scpo_ray.statistics.intervals import verdict

_PREDICTORS = ("model", "model_fitted", "global", "global_fitted")


def calibration_table(calibration: Mapping[str, Calibration]) -> TerminalTable:
    """Cultures x predictors, each at temperature 1 and at the culture's own."""
    table = titled(
        "win probabilities, x 100 (lower is better; Brier score of a coin: 25)",
        "culture",
        "predictor",
        "T",
        "Brier score",
        "minus global",
        "calibration\nerror",
        "the same,\nwithout chance",
        "confidence\nminus accuracy",
        "distance from\nvote shares",
    )
    for culture, c in calibration.items():
        for name in _PREDICTORS:
            if name not in c.brier:
                continue
            add_row(
                table,
                culture,
                name.replace("_", ", "),
                f"{c.temperatures.get(name, 1.0):.3g}",
                percent(c.brier[name]),
                percent(c.brier_minus_global.get(name), signed=True),
                points(c.error[name]),
                percent(c.error_debiased[name]),
                percent(c.overconfidence[name], signed=True),
                percent(c.vote_distance.get(name)),
            )
    return table


def score_comparison_table(found: ScoreComparison) -> TerminalTable:
    """Cultures, and the macro mean: two models' share of pairs ranked right, and the difference."""
    table = titled(
        f"share of pairs ranked right, %: {found.first} (first), {found.second} (second)",
        "culture",
        "pairs",
        " or\n".join(found.clusters),
        "first",
        "second",
        "first\nminus second",
        "p (Holm)",
        "shown",
        "on pairs that\nsecond ranks wrong",
        "on pairs that\nsecond ranks right",
        "can show",
        words=("shown",),
    )
    for culture, e in found.evaluation.items():
        both = (percent(e.after["all"]), percent(e.before["all"]))
        _add_difference(table, culture, both, e.difference, e.difference["all"].p_holm)
    if len(found.evaluation) > 1:
        p = found.macro["all"].p_value
        _add_difference(table, "macro mean", (NONE, NONE), found.macro, p)
    return table


def _add_difference(
    table: TerminalTable,
    name: str,
    both: tuple[str, str],
    change: Mapping[str, Difference],
    p: float | None,
) -> None:
    whole = change["all"]
    add_row(
        table,
        name,
        str(whole.num_pairs),
        str(whole.num_clusters),
        *both,
        percent(whole, signed=True),
        p_value(p),
        verdict(whole),
        *(percent(change.get(layer), signed=True) for layer in ("distinctive", "agreed")),
        points(whole.detectable),
    )


def best_of_n_table(
    best_of_n: Mapping[str, BestOfN], names: tuple[str, str] = ("model", "global")
) -> TerminalTable:
    """Cultures, and what picking the highest reward among a prompt's responses is worth.

    Args: names: of the model, and of the one that it stands beside.
    """
    ours, theirs = names
    table = titled(
        "best of n: regret of the pick, in points of human score and in sd of the user's scores",
        "culture",
        "prompts",
        "responses",
        ours,
        theirs,
        "random",
        f"{ours},\nminus {theirs}",
        f"{ours},\nin sd",
        f"{theirs},\nin sd",
        f"{ours} beats\nrandom, %",
        f"{ours} beats\n{theirs}'s pick, %",
    )
    for culture, b in best_of_n.items():
        digits = _score_digits(b)
        add_row(
            table,
            culture,
            str(b.num_prompts),
            f"{b.mean_responses:.1f}",
            *(number(b.regret.get(name), digits=digits) for name in ("model", "global", "random")),
            number(b.regret_minus_global, signed=True, digits=digits),
            *(number(b.regret_sd.get(name), digits=2) for name in ("model", "global")),
            *(percent(b.win_rate.get(name)) for name in ("random", "global")),
        )
    return table


def confidence_tables(results: Sequence[RunResult], unit: str) -> list[Table]:
    """For a page: each run's own cultures, before and after the temperature."""
    columns = [
        ("Brier score", "x 100"),
        ("minus global", "x 100"),
        ("calibration error", "x 100"),
        ("without chance", "x 100"),
        ("confidence − accuracy", "points"),
        ("distance from vote shares", "x 100"),
    ]
    rows = []
    for result, culture, c in _own(results, "calibration"):
        for name in _PREDICTORS:
            if name not in c.brier:
                continue
            predictor = name.replace("_", ", ")
            temperature = f"{predictor} T = {c.temperatures.get(name, 1.0):.3g}"
            cells = [
                cell_of(c.brier[name], unit),
                _plain(c.brier_minus_global.get(name)),
                Cell(points(c.error[name])),
                cell_of(c.error_debiased[name], unit),
                _plain(c.overconfidence[name]),
                cell_of(c.vote_distance.get(name), unit),
            ]
            kind = "control" if name.startswith("global") else ""
            rows.append(Row(_row_name(result, culture), temperature, kind, cells))
    if not rows:
        return []
    return [Table("Win probabilities of test pairs; lower is better", "run", columns, rows)]


def best_of_n_tables(results: Sequence[RunResult], unit: str) -> list[Table]:
    """For a page: each run's own cultures."""
    columns = [
        ("regret", "points of score"),
        ("global’s", "points of score"),
        ("random’s", "points of score"),
        ("minus global", "points of score"),
        ("regret", "sd of the user"),
        ("beats random", "%"),
        ("beats global’s pick", "%"),
    ]
    rows = []
    for result, culture, b in _own(results, "best_of_n"):
        digits = _score_digits(b)
        cells = [
            *(_plain(b.regret.get(name), 1, digits) for name in ("model", "global", "random")),
            _plain(b.regret_minus_global, 1, digits),
            _plain(b.regret_sd.get("model"), 1, digits=2),
            *(cell_of(b.win_rate.get(name), unit) for name in ("random", "global")),
        ]
        size = f"{b.num_prompts:,} prompts, {b.mean_responses:.1f} responses each"
        rows.append(Row(_row_name(result, culture), size, "", cells))
    return [Table("Regret and wins of the model’s picks", "run", columns, rows)] if rows else []


def _score_digits(found: BestOfN) -> int:
    """Decimals that suit the scores' scale: 1 where a random pick loses 10 to 99 points (of 100,
    say), 3 where it loses 0.1 to 0.99 (scores of 0 and 1)."""
    loss = found.regret["random"].value or 10.0
    return min(6, max(1, 2 - floor(log10(loss))))


def _own(results: Sequence[RunResult], what: str) -> list[tuple[RunResult, str, Any]]:
    """(run, culture, what was found) for the cultures that each run was trained for."""
    return [
        (result, culture, getattr(result, what)[culture])
        for result in results
        for culture in trained_cultures(result.culture_weights)
        if culture in getattr(result, what)
    ]


def _row_name(result: RunResult, culture: str) -> str:
    if len(trained_cultures(result.culture_weights)) == 1:
        return run_name(result)
    return f"{run_name(result)}, tested on {label(culture, 40)}"


def _plain(found: Estimate | Difference | None, factor: float = 100, digits: int = 1) -> Cell:
    """Without a tone: of these numbers the lower is the better."""
    if found is None or found.value is None:
        return Cell(NONE)
    sign = "+z" if isinstance(found, Difference) else ""

    def shown(value: float) -> str:
        return f"{factor * value:{sign}.{digits}f}".replace("-", "\N{MINUS SIGN}")

    if found.low is None or found.high is None:
        return Cell(shown(found.value), ("[no interval]",))
    return Cell(shown(found.value), (f"[{shown(found.low)}, {shown(found.high)}]",))
