"""Folders of ended runs into a page, and a run's model into a folder of its own."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from scpo_ray.models.adapters import merged_adapters
from scpo_ray.models.export import load_exported, save_reward_model
from scpo_ray.records import InputError
from scpo_ray.report.page import write_report
from scpo_ray.results import ComparisonResult, RunResult
from scpo_ray.storage.disk import whole_folder
from scpo_ray.storage.run_dir import (
    COMPARISON_FILE,
    load_comparison_result,
    load_result,
    trained_model_dir,
)
from scpo_ray.storage.scale_file import SCALE_FILE

log = logging.getLogger(__name__)


def report_folders(folders: Sequence[Path], output: Path) -> Path:
    """One page about runs and comparisons.

    Args:
        folders: each a run's folder, or an experiment's with runs (and a comparison) in it.

    Raises: InputError naming each folder without a result.
    """
    results: list[RunResult] = []
    comparisons: list[ComparisonResult] = []
    problems = []
    for folder in folders:
        runs = [folder] if (folder / "result.json").is_file() else _runs_below(folder)
        if not runs:
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
    return write_report(results, comparison, output)


def export_model(run: Path, folder: Path, *, merge: bool) -> None:
    """Writes a run's model as a plain Hugging Face folder.

    Raises: InputError if the run has no model, `folder` exists, or there is nothing to merge.
    """
    model_dir = trained_model_dir(run)
    if folder.exists():
        raise InputError(f"{folder}: exists; name a new folder")
    model = load_exported(model_dir, device="cpu")
    with whole_folder(folder) as part:
        save_reward_model(merged_adapters(model) if merge else model, part)
        if (model_dir / SCALE_FILE).is_file():
            shutil.copy(model_dir / SCALE_FILE, part)


def _runs_below(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/result.json"))
