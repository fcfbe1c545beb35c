"""The answer on top of a page: which method for whom, how sure that is, and what to do."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from scpo_ray.evaluation.recommendation import (
    WORTH_SHOWING,
    Certainty,
    Recommendation,
    of_run,
    recommendations,
)
from scpo_ray.report.cells import (
    NONE,
    Cell,
    Row,
    Table,
    cell_of,
    interval,
    percent,
    run_name,
    shortened,
    size_of,
)
from scpo_ray.report.pictures import label
from scpo_ray.results import ComparisonResult, Difference, RunResult

MACRO_MEAN = "Macro mean"
COLUMNS = [
    ("recommended", "and % ranked right"),
    ("sure?", "is the best better than global"),
    ("best over global", "points"),
    ("best over finetune", "points"),
    ("as good, for all we know", "not distinguishable from the best"),
    ("costs agreed", "best minus global"),
    ("costs other cultures", "best minus global"),
]
MAX_NAMED = 4
"""Names in a sentence or a cell; the others are counted."""

MAX_LISTED = 42
"""Characters of names in a cell."""

WORDS: dict[Certainty, str] = {
    "clear": "sure",
    "not distinguishable": "noise",
    "too few users": "noise",
    "unknown": "noise",
}
"""How the word's cell reads."""


def comparison_answer(comparison: ComparisonResult, unit: str) -> tuple[Table, list[str]]:
    """A row per culture, the macro mean first, and what to do, a sentence each."""
    found = recommendations(comparison)
    rows = [
        answer_row(r.culture or MACRO_MEAN, "" if r.culture else "macro", r, unit) for r in found
    ]
    table = without_empty(Table("Which method for whom", f"culture (pairs, {unit})", COLUMNS, rows))
    return table, advice({r.culture or MACRO_MEAN: r for r in found if r.culture}, unit)


def run_answer(results: Sequence[RunResult], unit: str) -> tuple[Table, list[str]]:
    """A row per run and culture that it was trained for."""
    rows, named = [], {}
    for r in results:
        for found in of_run(r):
            name = f"{label(found.culture, 40)}: {r.method}, seed {r.seed}"
            rows.append(answer_row(name, "", found, unit))
            named[run_name(r)] = found
    title = "The trained model or the global one" if rows else ""
    table = without_empty(Table(title, f"run (pairs, {unit})", COLUMNS, rows))
    return table, advice(named, unit)


def answer_row(name: str, kind: str, found: Recommendation, unit: str) -> Row:
    """What is recommended and what is said beside it, a cell each."""
    reached = found.reached
    over = [drawn_cell(d, unit) for d in (found.over_global, found.over_finetune)]
    if found.best == "global":
        over[0] = Cell(NONE, ("it is the best",))
    elif found.best == "finetune":
        over[1] = Cell(NONE, ("it is the best",))
    below = () if found.name == found.best else (f"{found.best} leads",)
    if reached is not None:
        below = (*below, f"{percent(reached.value)} {interval(reached)}")
    cells = [
        Cell(found.name or NONE, below, "name"),
        word_cell(found.certainty, unit),
        *over,
        as_good_cell(found),
        cost_cell(found.agreed, unit),
        cost_cell(found.others, unit),
    ]
    return Row(name, size_of(reached, unit), kind, cells)


def as_good_cell(found: Recommendation) -> Cell:
    """What cannot be told apart from the best, and of what nothing is known."""
    if not found.name:
        return Cell(NONE)
    if not found.unknown:
        return names_cell(found.as_good)
    unknown = names_cell(found.unknown)
    if not found.as_good:
        return replace(unknown, main="unknown", lines=(unknown.main,))
    return replace(names_cell(found.as_good), lines=(f"unknown: {unknown.main}",))


def word_cell(word: Certainty, unit: str) -> Cell:
    said = word if word != "too few users" else f"too few {unit}"
    return Cell(said, (), WORDS[word])


def drawn_cell(found: Difference | None, unit: str) -> Cell:
    """The number, with its interval below it and drawn."""
    cell = cell_of(found, unit)
    if found is None or found.value is None:
        return cell
    return replace(cell, lines=(interval(found),), drawn=found)


def cost_cell(found: Difference | None, unit: str) -> Cell:
    cell = cell_of(found, unit)
    return replace(cell, lines=cell.lines[:1])


def names_cell(names: Sequence[str]) -> Cell:
    """The names; where they are long or many their number, the names on hovering."""
    listed = ", ".join(names)
    if len(listed) <= MAX_LISTED:
        return Cell(listed or "none", tone="text")
    return Cell(f"{len(names)} others", tone="text", hint=shortened(listed))


def named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def advice(found: Mapping[str, Recommendation], unit: str) -> list[str]:
    """What to do, one sentence for all for whom it is the same."""
    same: dict[str, list[str]] = {}
    for name, recommendation in found.items():
        same.setdefault(what_to_do(recommendation, unit), []).append(label(name, 40))
    return [f"{named(names)}: {sentence}" for sentence, names in same.items()]


def what_to_do(found: Recommendation, unit: str) -> str:
    """In a plain sentence."""
    if not found.name:
        return "run a method to the end: there is no number to go by."
    if found.certainty == "unknown":
        return "compare it with the global model and with other methods: nothing is beside it."
    use = "keep the global model" if found.name == "global" else f"use {found.name}"
    as_good = [name for name in found.as_good if name != "global"]
    if found.certainty == "clear":
        return f"{use}{_or_one_of(as_good, named(as_good))}."
    if found.certainty == "too few users":
        return f"{use}; test on more {unit}: an interval takes two of them at least."
    points, needed = f"{100 * WORTH_SHOWING:g} points", found.users_needed
    tested = found.reached.num_clusters if found.reached else 0
    if needed is None:
        return f"{use}; more {unit} needed to tell {named(found.as_good)} from {found.best}."
    if needed <= tested:
        return f"{use}: a gain of {points} would have shown with these {tested:,} {unit}."
    return f"{use}; more {unit} needed: {needed:,} would show {points}, {tested:,} were tested."


def _or_one_of(as_good: Sequence[str], said: str) -> str:
    """The end of an advice. Args: said: the names as they are written."""
    if not as_good:
        return ""
    one = f"{said}, which is" if len(as_good) == 1 else f"the cheapest of {said}, which are"
    return f", or {one} as good for all we know"


def setting_advice(found: Mapping[str, Recommendation]) -> list[str]:
    """Which of a sweep's settings to take."""
    same: dict[str, list[str]] = {}
    for name, of in found.items():
        as_good = _or_one_of(of.as_good, names_cell(of.as_good).main)
        sentence = f"take {of.name}{as_good}."
        same.setdefault(sentence, []).append(label(name, 40))
    return [f"{named(names)}: {sentence}" for sentence, names in same.items()]


def without_empty(table: Table) -> Table:
    """Without the columns that have no number in any row."""
    kept = [
        place
        for place in range(len(table.columns))
        if any(row.cells[place] != Cell(NONE) for row in table.rows)
    ]
    rows = [replace(row, cells=[row.cells[place] for place in kept]) for row in table.rows]
    return replace(table, columns=[table.columns[place] for place in kept], rows=rows)
