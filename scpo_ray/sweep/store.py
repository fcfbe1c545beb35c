"""What a sweep leaves on disk beside its runs: what it is, its trials' fates, its result."""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from scpo_ray.records import InputError
from scpo_ray.storage.disk import clear_leftovers, disk_errors, read_json, write_json
from scpo_ray.storage.json_lines import append_json_lines, read_json_lines
from scpo_ray.storage.run_dir import load_document
from scpo_ray.sweep.records import Setting, SweepResult, TrialRecord
from scpo_ray.sweep.space import changes

log = logging.getLogger(__name__)

RESULT_FILE = "sweep_result.json"
_TRIAL: TypeAdapter[TrialRecord] = TypeAdapter(TrialRecord)
_RESULT: TypeAdapter[SweepResult] = TypeAdapter(SweepResult)


class SweepDir:
    """One sweep's folder, beside the runs of its experiment.

    sweep.json          the sweep's document and the fingerprints of its data and model
    settings.jsonl      settings that a search chose, in order (other searches need no list)
    trials.jsonl        what became of each trial; of two lines about one, the later holds
    sweep_result.json   the table; report.html and pictures/ are made from it
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._trials = path / "trials.jsonl"
        self._settings = path / "settings.jsonl"
        self._is_held = False

    @property
    def report_path(self) -> Path:
        return self.path / "report.html"

    @property
    def pictures_dir(self) -> Path:
        return self.path / "pictures"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the sweep for one driver. Raises: InputError if another one has it."""
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                raise InputError(
                    f"{self.path}: another process is running this sweep",
                    ["wait for it, or stop it: what it has finished is kept"],
                ) from None
        # Whoever wrote these is gone, or the sweep would not be free.
        clear_leftovers(self.path, ".*.part")
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            lock.release()

    def begin(
        self, document: Mapping[str, Any], fingerprints: Mapping[str, str], *, extend: bool
    ) -> None:
        """Records what is swept; a sweep found again must be the one that it was.

        Raises: InputError naming what has changed in the file, unless `extend`; or that the data
            or the global model has.
        """
        path = self.path / "sweep.json"
        if path.exists():
            known = json.loads(read_json(path, "delete it to go on with the file as it is now"))
            before, prints = known["document"], known["fingerprints"]
            moved = [
                f"{name} fingerprint then {str(prints.get(name))[:12]}, now {value[:12]}"
                for name, value in fingerprints.items()
                if prints.get(name) != value
            ]
            if moved:
                raise InputError(
                    f"{self.path}: the sweep began with other data or another global model",
                    [*moved, "give the sweep another run.experiment or run.output_dir"],
                )
            changed = changes(before, document)
            if changed and not extend:
                raise InputError(
                    f"{self.path}: the sweep file has changed since the sweep began",
                    [
                        *changed,
                        "--extend goes on with the file as it is now; a copy of the file under "
                        "another name is a new sweep",
                    ],
                )
            for line in changed:
                log.info("extended: %s", line)
        write_json(path, {"document": document, "fingerprints": dict(fingerprints)})

    def add_trials(self, trials: Sequence[TrialRecord]) -> None:
        append_json_lines(self._trials, [asdict(trial) for trial in trials])

    def trials(self) -> dict[str, TrialRecord]:
        """Trial id -> what became of it last."""
        found = {}
        for number, line in enumerate(read_json_lines(self._trials, mend=self._is_held), start=1):
            try:
                trial = _TRIAL.validate_python(line)
            except ValidationError:
                raise InputError(f"{self._trials}: line {number}: not of this version") from None
            found[trial.trial_id] = trial
        return found

    def add_setting(self, setting: Setting, suggestion: Mapping[str, Any]) -> None:
        """Keeps a setting that a search chose, with what it said of it in its own terms."""
        line = {**asdict(setting), "suggestion": dict(suggestion)}
        append_json_lines(self._settings, [line])

    def settings(self) -> list[Setting]:
        """Those a search has chosen so far."""
        return [Setting(n, line["values"], line["label"]) for n, line in self._chosen().items()]

    def suggestions(self) -> dict[int, dict[str, Any]]:
        """Number of a setting that a search chose -> what it said of it."""
        return {n: line["suggestion"] for n, line in self._chosen().items()}

    def _chosen(self) -> dict[int, dict[str, Any]]:
        found = {}
        remedy = f"delete {self.path} to search anew; the runs that have ended are found again"
        lines = read_json_lines(self._settings, mend=self._is_held, remedy=remedy)
        for number, line in enumerate(lines, start=1):
            if not {"number", "values", "label", "suggestion"} <= line.keys():
                raise InputError(f"{self._settings}: line {number}: not of this version")
            found[int(line["number"])] = line
        return found

    def save_result(self, result: SweepResult) -> None:
        write_json(self.path / RESULT_FILE, _with_text_for_infinity(asdict(result)))


def _with_text_for_infinity(value: Any) -> Any:
    """The document with "inf" and "nan" for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _with_text_for_infinity(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_with_text_for_infinity(below) for below in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def load_sweep_result(folder: Path) -> SweepResult:
    """The result in a sweep's folder. Raises: InputError if there is none or it is damaged."""
    result: SweepResult = load_document(
        folder / RESULT_FILE, _RESULT, "the sweep's command makes it again from its runs"
    )
    return result
