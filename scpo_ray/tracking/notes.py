"""What stands first on a run's page in MLflow: its numbers as a Markdown table."""

from collections.abc import Iterator, Sequence

from scpo_ray.records import LAYERS
from scpo_ray.results import ComparisonResult, Estimate, RunResult
from scpo_ray.settings.shown import percent
from scpo_ray.sweep.records import SweepResult

NOTE_TAG = "mlflow.note.content"
_MAX_ROWS = 20
_MAX_NOTE = 5_000


def run_note(result: RunResult) -> str:
    """Cultures x layers of one run."""
    rows = (
        [
            culture,
            *(percent(tested.after.get(layer)) for layer in LAYERS),
            percent(tested.difference.get("all"), signed=True),
            *_counts(tested.after.get("all")),
        ]
        for culture, tested in result.evaluation.items()
    )
    columns = ["culture", *LAYERS, "all, minus global", "pairs", "users or questions"]
    return _note("Share of test pairs ranked right, %", columns, list(rows))


def comparison_note(summary: ComparisonResult) -> str:
    """Methods x layers as macro means, and what each costs the other cultures."""
    rows = [
        [
            macro.method,
            *(percent(macro.accuracy.get(layer)) for layer in LAYERS),
            percent(macro.minus_global.get("all"), signed=True),
            percent(macro.minus_finetune.get("all"), signed=True),
            percent(macro.other_cultures),
        ]
        for macro in summary.summaries
        if not macro.culture
    ]
    columns = ["method", *LAYERS, "all, minus global", "all, minus finetune", "other cultures"]
    title = (
        f"Macro mean over {', '.join(summary.cultures)}, % of test pairs ranked right "
        f"(seeds: {len(summary.seeds)}). report.html below has the rest."
    )
    return _note(title, columns, rows)


def sweep_note(result: SweepResult) -> str:
    """The sweep's question and its best settings."""
    rows = [
        [
            summary.setting.label,
            percent(summary.objective),
            percent(summary.minus_best, signed=True),
            *(percent(summary.accuracy.get("", {}).get(layer)) for layer in LAYERS),
        ]
        for summary in result.settings
    ]
    honest = result.chosen_honestly
    told = f" Measured where it was not chosen, the best is worth {percent(honest)} %."
    title = f"{' '.join(result.question.split())}{told if honest is not None else ''}"
    columns = ["setting", "objective, %", "minus best", *LAYERS]
    return _note(title, columns, rows)


def _note(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [title, "", *_table(columns, rows[:_MAX_ROWS])]
    if len(rows) > _MAX_ROWS:
        lines += ["", f"and {len(rows) - _MAX_ROWS} more"]
    note = "\n".join(lines)
    return note if len(note) <= _MAX_NOTE else f"{note[: _MAX_NOTE - 4]} ..."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield _row(columns)
    yield f"|{'---|' * len(columns)}"
    yield from map(_row, rows)


def _row(cells: Sequence[str]) -> str:
    plain = (" ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(plain)} |"


def _counts(estimate: Estimate | None) -> tuple[str, str]:
    if estimate is None:
        return "–", "–"
    return str(estimate.num_pairs), str(estimate.num_clusters)
