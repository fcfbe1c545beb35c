"""The answer of a page on opinions: how near the model is to what people in a country answered."""

from collections.abc import Sequence
from dataclasses import replace

from scpo_ray.evaluation.nearness import Nearness, nearest_methods, nearness_of_run
from scpo_ray.evaluation.recommendation import WORTH_SHOWING
from scpo_ray.records import OpinionExample
from scpo_ray.report.answer import drawn_cell, without_empty
from scpo_ray.report.cells import (
    NONE,
    Cell,
    Row,
    Table,
    counted,
    interval,
    percent,
    points,
)
from scpo_ray.report.pictures import label
from scpo_ray.results import ComparisonResult, RunResult, Verdict
from scpo_ray.statistics.intervals import clusters_needed, verdict

UNIT = "questions"
WORDS: dict[Verdict, tuple[str, str]] = {
    "better": ("nearer", "sure"),
    "worse": ("a constant is nearer", "down"),
    "not distinguishable": ("not distinguishable", "noise"),
    "unknown": ("too few questions", "noise"),
}
"""Of the difference from the best constant: the word, and how its cell reads."""


BOUNDS = {
    "": "",
    "lowest": " The fitted temperature is at its lower bound: the rewards hardly differ.",
    "highest": " The fitted temperature is at its upper bound: the rewards say nothing of the "
    "answers.",
}
"""Of `Nearness.bound`, as a sentence."""


def opinion_answer(
    results: Sequence[RunResult], comparison: ComparisonResult | None
) -> tuple[Table, list[str]]:
    """A row per country (and run), and what it says, a sentence each; empty without opinions."""
    if comparison is not None:
        found = nearest_methods(comparison, results)
    else:
        found = [n for r in results for n in nearness_of_run(r)]
    columns = [
        ("nearest model", "similarity, 100 is the same"),
        ("nearer than a constant?", "the country’s mean training answer"),
        ("over the best constant", "points"),
        ("over the other countries", "points"),
        ("over global", "points"),
        ("fitted temperature", "reward units"),
    ]
    rows = [_row(n) for n in found]
    title = "How near is the model to what people answered?"
    table = without_empty(Table(title, "country (distributions, questions)", columns, rows))
    return table, [_sentence(n) for n in found if n.culture or comparison is None]


def _row(of: Nearness) -> Row:
    word, tone = WORDS[verdict(of.minus_constant)]
    found = of.similarity
    cells = [
        Cell(of.method, (f"{percent(found.value)} {interval(found)}",), "name"),
        Cell(word if of.minus_constant else NONE, (), tone),
        *(drawn_cell(d, UNIT) for d in (of.minus_constant, of.minus_others, of.minus_global)),
        _temperature(of),
    ]
    size = f"{found.num_pairs:,} distributions, {counted(found.num_clusters, 'question')}"
    return Row(of.culture or "Macro mean", size, "" if of.culture else "macro", cells)


def _temperature(of: Nearness) -> Cell:
    if of.temperature is None:
        return Cell(NONE)
    below = (f"at its bound: the {of.bound}",) if of.bound else ()
    return Cell(f"{of.temperature:.3g}", below, "value")


def _sentence(of: Nearness) -> str:
    name, against = label(of.culture, 40), of.minus_constant
    bound = BOUNDS[of.bound]
    if against is None or against.value is None:
        return f"{name}: nothing is beside the model; evaluate it again.{bound}"
    by = f"{points(against.value)} points {interval(against)}"
    shown = verdict(against)
    if shown == "worse":
        said = (
            f"a constant, {name}’s mean training answer, is nearer to people’s answers than "
            f"{of.method} ({by}): do not read the model’s shares as theirs."
        )
    elif shown == "better":
        said = f"{of.method} is nearer to people’s answers than any constant ({by})"
        if verdict(of.minus_others) == "worse" and of.minus_others:
            value = points(of.minus_others.value)
            said += f"; what the other countries answered is nearer still ({value} points)"
        said += "."
    else:
        needed = clusters_needed(against, WORTH_SHOWING)
        said = f"{of.method} is no nearer than a constant, for all we know ({by})"
        if needed is not None and needed > against.num_clusters:
            said += f"; more questions needed: {needed:,} would show {100 * WORTH_SHOWING:g} points"
        said += "."
    return f"{name}: {said}{bound}"


def shown_questions(results: Sequence[RunResult]) -> dict[str, list[OpinionExample]]:
    """Country -> its questions, of the first run that has them, scpo's before others'."""
    found: dict[str, list[OpinionExample]] = {}
    for r in sorted(results, key=lambda r: r.method != "scpo"):
        of_run: dict[str, list[OpinionExample]] = {}
        for example in r.opinion_examples:
            of_run.setdefault(example.culture, []).append(
                replace(example, question=label(example.question, 400))
            )
        found = of_run | found
    return found
