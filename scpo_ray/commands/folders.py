"""Folders of ended runs into a page."""

import logging
from collections.abc import Sequence
from pathlib import Path

from scpo_ray.records import InputError
from scpo_ray.report.page import write_report
from scpo_ray.report.written import write_answer
from scpo_ray.results import ComparisonResult, RunResult
from scpo_ray.storage.run_dir import (
    COMPARISON_FILE,
    load_comparison_result,
    load_result,
)

log = logging.getLogger(__name__)


def report_folders(
    folders: Sequence[Path], output: Path, *, latex: bool = False
) -> tuple[Path, list[Path]]:
    """One page about runs and comparisons, and its answer as text.

    Args:
        folders: each a run's folder, or an experiment's with runs (and a comparison) in it.
        latex: whether the answer and the example pairs are written for LaTeX, too.

    Returns: the page, and the texts beside it: .md, .tex.
    Raises: InputError naming each folder without a result.
    """
    results: list[RunResult] = []
    comparisons: list[ComparisonResult] = []
    problems = []
    for folder in folders:
        runs = [folder] if (folder / "result.json").is_file() else _runs_below(folder)
        if not folder.is_dir():
            problems.append(f"{folder}: no such folder")
        elif not runs:
            problems.append(f"{folder}: no result.json in it or one folder below")
        results += [load_result(run) for run in runs]
        if (folder / COMPARISON_FILE).is_file():
            comparisons.append(load_comparison_result(folder))
    if len(comparisons) > 1:
        problems.append("one page holds one comparison; name one experiment's folder")
    if problems:
        raise InputError("nothing to report", problems)
    comparison = comparisons[0] if comparisons else None
    if comparison is not None:
        others = [r for r in results if r.run_id not in comparison.run_ids]
        results = [r for r in results if r.run_id in comparison.run_ids]
        if others:
            names = ", ".join(f"{r.method} {r.run_id}" for r in others)
            log.warning("left out, not in the comparison: %d runs (%s)", len(others), names)
    page = write_report(results, comparison, output)
    texts = write_answer(results, comparison, output.with_suffix(".md"), latex=latex)
    return page, texts


def _runs_below(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/result.json"))
