"""What became of each trial of a sweep, kept as it is learned and said."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scpo_ray.launch.status import status_text
from scpo_ray.launch.sweep_trial import TrialJob
from scpo_ray.settings.shown import duration
from scpo_ray.settings.sweep import SweepConfig
from scpo_ray.sweep.records import Setting, TrialRecord
from scpo_ray.sweep.store import SweepDir

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedSweep:
    """All that is known before a trial starts; making it finds the sweep file's faults.

    `settings` and `jobs` are those planned, or, where a search chooses, those chosen so far.
    `ended`: trial id -> its record, of trials that need not be run.
    """

    name: str
    question: str
    file: Path
    sweep: SweepConfig
    folder: SweepDir
    cultures: tuple[str, ...]
    fingerprints: dict[str, str]
    settings: list[Setting]
    jobs: list[TrialJob]
    ended: dict[str, TrialRecord]

    @property
    def missing(self) -> list[TrialJob]:
        return [job for job in self.jobs if job.known.trial_id not in self.ended]


class Book:
    """What became of each trial so far, kept in the sweep's folder as it is learned, and said."""

    def __init__(self, prepared: PreparedSweep) -> None:
        self._folder = prepared.folder
        self._objective = prepared.sweep.objective
        self.settings = {setting.number: setting for setting in prepared.settings}
        self.jobs = {job.known.trial_id: job for job in prepared.jobs}
        self.records = dict(prepared.ended)
        known = self._folder.trials()
        self._folder.add_trials([r for id_, r in self.records.items() if known.get(id_) != r])
        self._total = len(self.jobs)
        self._done = len(self.records)
        self._started = time.monotonic()
        self._done_here = 0

    def expect(self, total: int) -> None:
        self._total = total

    def add(self, record: TrialRecord) -> None:
        self.records[record.trial_id] = record
        self._folder.add_trials([record])
        self._done += 1
        self._done_here += 1
        log.log(
            logging.ERROR if record.state == "failed" else logging.INFO,
            "trial %d of %d: %s: %s; %s left",
            self._done,
            self._total,
            self._name(record),
            self._outcome(record),
            self._left(),
        )

    def add_setting(
        self, setting: Setting, suggestion: Mapping[str, Any], jobs: Sequence[TrialJob]
    ) -> None:
        self.settings[setting.number] = setting
        self.jobs |= {job.known.trial_id: job for job in jobs}
        self._folder.add_setting(setting, suggestion)

    def names(self, running: Sequence[str]) -> list[str]:
        """Of trials by their ids; what is no id, a setting's number, stays as it is."""
        jobs = {trial_id: self.jobs.get(trial_id) for trial_id in running}
        return [self._name(job.known) if job else name for name, job in jobs.items()]

    def status(self, running: Sequence[str]) -> str:
        """In a line. Args: running: the names of the trials that run now."""
        left = self._left() if self._done_here else None
        return status_text("trials", self._done, self._total, running, left)

    def _name(self, record: TrialRecord) -> str:
        parts = [self.settings[record.setting].label]
        parts += [record.culture] if record.culture else []
        parts.append(f"seed {record.seed}")
        parts += [] if record.fold is None else [f"fold {record.fold}"]
        return ", ".join(parts)

    def _outcome(self, record: TrialRecord) -> str:
        if record.state == "failed":
            return f"failed: {record.error}"
        value = "no number" if record.objective is None else f"{100 * record.objective:.1f} %"
        stopped = f", stopped after {record.num_steps} steps" if record.state == "stopped" else ""
        return f"{self._objective.metric} {value}{stopped}"

    def _left(self) -> str:
        seconds = (time.monotonic() - self._started) / self._done_here
        left = seconds * max(0, self._total - self._done)
        return f"about {duration(left)}"
