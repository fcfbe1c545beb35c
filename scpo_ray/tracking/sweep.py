"""A sweep in MLflow: one run for the sweep, with its runs below it."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scpo_ray.records import InputError
from scpo_ray.settings.naming import printable, safe_name
from scpo_ray.settings.run import RunConfig
from scpo_ray.sweep.records import SweepResult
from scpo_ray.tracking.mlflow_store import (
    end_open_run,
    log_batches,
    open_run_of_runs,
)
from scpo_ray.tracking.notes import NOTE_TAG, sweep_note
from scpo_ray.tracking.opening import first_line, store_errors
from scpo_ray.tracking.trackers import Sweep

log = logging.getLogger(__name__)

_MAX_TAG = 5_000


class SweepTracker:
    """The sweep's own MLflow run; without one where runs are not tracked in MLflow.

    Raises, when made: InputError within seconds if the store cannot be used.
    """

    def __init__(self, config: RunConfig, name: str, sweep_id: str, file: Path) -> None:
        self._config = config
        self._client: Any = None
        self._run_id: str | None = None
        if config.tracking.tracker == "mlflow":
            # MLflow cannot search for a quote.
            tags = {"scpo.sweep_id": safe_name(sweep_id), "scpo.sweep": name}
            self._client, self._run_id = open_run_of_runs(config, name, tags)
            with store_errors(config.mlflow_uri):
                self._client.log_artifact(self._run_id, str(file))

    @property
    def sweep(self) -> Sweep:
        """What the sweep's runs are told."""
        return Sweep(self._run_id)

    def log_result(self, result: SweepResult, files: list[Path]) -> bool:
        """Sends the table and the pages; whether the store took them."""

        def send() -> None:
            log_batches(
                self._client,
                self._run_id or "",
                tags=_tags(result),
                params={"objective": json.dumps(result.objective), "axes": ", ".join(result.axes)},
            )
            log_batches(self._client, self._run_id or "", points=_points(result))
            for file in files:
                if file.is_dir():
                    self._client.log_artifacts(self._run_id, str(file), file.name)
                else:
                    self._client.log_artifact(self._run_id, str(file))

        return self._sent("the sweep's result", send)

    def finish(self, status: str) -> bool:
        """Ends the sweep's run; whether the store took it."""
        return self._sent(
            f"the status {status}", lambda: self._client.set_terminated(self._run_id, status)
        )

    def end_child(self, run_dir: Path, status: str) -> bool:
        """Ends a run whose process was killed; whether the store took it."""
        return self._sent(
            f"{run_dir.name}'s status", lambda: end_open_run(self._config, run_dir, status)
        )

    def _sent(self, what: str, send: Callable[[], None]) -> bool:
        if self._client is None:
            return True
        try:
            send()
        except InputError as error:
            log.warning("MLflow: %s could not be written (%s)", what, error.title)
            return False
        except Exception as error:  # Whatever fails in a store must not cost the sweep's result.
            log.warning("MLflow: %s could not be written (%s)", what, first_line(error))
            return False
        return True


def _tags(result: SweepResult) -> dict[str, str]:
    tags = {
        NOTE_TAG: sweep_note(result),
        "scpo.question": result.question,
        "scpo.seeds": json.dumps(result.seeds),
        "scpo.measured_on": result.measured_on,
        "scpo.cultures": json.dumps(result.cultures, ensure_ascii=False),
    }
    if result.settings and result.settings[0].objective is not None:
        tags["scpo.best_setting"] = result.settings[0].setting.label
    for culture, trial in result.best_trials.items():
        tags[f"scpo.best_trial.{safe_name(culture)}"] = trial
    return {name: printable(value)[:_MAX_TAG] for name, value in tags.items()}


def _points(result: SweepResult) -> list[dict[str, Any]]:
    best = next((s for s in result.settings if s.objective is not None), None)
    numbers: dict[str, float | None] = {
        f"trials/{state}": sum(trial.state == state for trial in result.trials)
        for state in ("finished", "stopped", "failed", "waiting")
    }
    if best is not None and best.objective is not None:
        numbers["best/objective"] = best.objective.value
        numbers["best/objective/low"] = best.objective.low
        numbers["best/objective/high"] = best.objective.high
    honest = result.chosen_honestly
    if honest is not None:
        numbers["best/chosen_honestly"] = honest.value
        numbers["best/chosen_honestly/low"] = honest.low
        numbers["best/chosen_honestly/high"] = honest.high
    over_global = result.chosen_minus_global
    if over_global is not None:
        numbers["best/minus_global_on_test"] = over_global.value
        numbers["best/minus_global_on_test/low"] = over_global.low
        numbers["best/minus_global_on_test/high"] = over_global.high
    # A sweep has no steps; what it says again later is the last of each.
    return [
        {"key": name, "value": float(value), "timestamp": 0, "step": 0}
        for name, value in numbers.items()
        if value is not None
    ]
