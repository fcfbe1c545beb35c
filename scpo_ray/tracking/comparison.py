"""A comparison in MLflow: one run with its macro means, its page and what it is made of."""

import logging
from collections.abc import Sequence
from pathlib import Path

from scpo_ray.records import InputError
from scpo_ray.results import ComparisonResult, Difference, Estimate
from scpo_ray.settings.naming import printable
from scpo_ray.settings.run import RunConfig
from scpo_ray.tracking.mlflow_store import log_batches, open_run_of_runs
from scpo_ray.tracking.notes import NOTE_TAG, comparison_note
from scpo_ray.tracking.opening import first_line

log = logging.getLogger(__name__)


def track_comparison(config: RunConfig, summary: ComparisonResult, files: Sequence[Path]) -> None:
    """Writes a comparison's MLflow run, or writes it anew; a store that is away costs a warning.

    Args:
        config: any of its runs', which say where it is tracked.
        files: pages and pictures, kept as its artifacts.
    """
    if config.tracking.tracker != "mlflow":
        return
    name = f"comparison {summary.experiment}"
    try:
        client, run_id = open_run_of_runs(config, name, {"scpo.comparison": summary.experiment})
        # Tags, which change when the comparison is repeated with other methods; params cannot.
        tags = {
            NOTE_TAG: printable(comparison_note(summary)),
            "scpo.methods": printable(", ".join(summary.methods)),
        }
        log_batches(client, run_id, tags=tags)
        points = [
            {"key": key, "value": value, "timestamp": 0, "step": 0}
            for key, value in comparison_metrics(summary).items()
        ]
        log_batches(client, run_id, points=points)
        for file in files:
            client.log_artifact(run_id, str(file))
        client.set_terminated(run_id, "FAILED" if summary.failures else "FINISHED")
    except InputError as error:
        log.warning("MLflow: the comparison could not be written (%s)", error.title)
    except Exception as error:  # Whatever fails in a store must not cost the comparison.
        log.warning("MLflow: the comparison could not be written (%s)", first_line(error))


def comparison_metrics(summary: ComparisonResult) -> dict[str, float]:
    """Macro means by method: `accuracy_macro/<layer>/<method>` and its ends, the same below
    `accuracy_macro_minus_global` and `accuracy_macro_minus_finetune`; what is not there is left
    out."""
    metrics: dict[str, float | None] = {}
    for macro in summary.summaries:
        if macro.culture:
            continue
        kinds: dict[str, dict[str, Estimate] | dict[str, Difference]] = {
            "accuracy_macro": macro.accuracy,
            "accuracy_macro_minus_global": macro.minus_global,
            "accuracy_macro_minus_finetune": macro.minus_finetune,
        }
        for kind, layers in kinds.items():
            for layer, found in layers.items():
                key = f"{kind}/{layer}/{macro.method}"
                metrics |= {key: found.value, f"{key}/low": found.low, f"{key}/high": found.high}
    return {key: float(value) for key, value in metrics.items() if value is not None}
