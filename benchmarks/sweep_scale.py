"""What a sweep costs beside its training: `python benchmarks/sweep_scale.py [TRIALS]`.

TRIALS (2,000) trials of which each does nothing for 10 ms and then has the result of one real
tiny run under its own settings, tracked in MLflow (SQLite) as any trial is. Every part is a
process of its own: the first half of the trials; the rest, which finds that half done; and once
more, when all is done.

Printed: wall seconds per trial (two trials at a time on 2 cores), the stand-in's own 10 ms not
taken off; the driver's peak memory; seconds until the second command's first trial; seconds for
the table, the report and its pictures; the size of the MLflow store and of the sweep's folder.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from scpo_ray.data.synthetic import vocabulary
from scpo_ray.experiment import Midway
from scpo_ray.inputs import open_run_dir
from scpo_ray.launch import sweeps
from scpo_ray.launch.runs import start_run
from scpo_ray.launch.sweep_trial import TrialJob, finished
from scpo_ray.models.export import save_reward_model
from scpo_ray.models.loading import load_reward_model
from scpo_ray.models.rendering import load_renderer
from scpo_ray.models.tiny import make_tiny_backbone
from scpo_ray.settings.model import ModelConfig
from scpo_ray.settings.run import RunConfig
from scpo_ray.settings.sweep import ObjectiveConfig
from scpo_ray.storage.disk import write_json
from scpo_ray.storage.run_dir import load_dev_pairs, load_result, load_test_pairs
from scpo_ray.sweep.records import TrialRecord
from scpo_ray.tracking.trackers import Sweep, start_tracker

STAND_IN_S = 0.01


class StandIn:
    """A trial that takes another run's result for its own; its margins are shifted by a hair, so
    that settings differ."""

    def __init__(self, template: Path) -> None:
        self._template = template

    def __call__(
        self, job: TrialJob, objective: ObjectiveConfig, sweep: Sweep, midway: Midway | None
    ) -> TrialRecord:
        time.sleep(STAND_IN_S)
        run_dir = open_run_dir(job.config)
        run_dir.path.mkdir(parents=True, exist_ok=True)
        template = load_result(self._template)
        result = replace(
            template,
            run_id=job.config.run_id,
            seed=job.known.seed,
            method=job.config.method,
            config=job.config.model_dump(mode="json"),
            culture_weights={job.known.culture: 1.0},
        )
        tracker = start_tracker(job.config, run_dir.path, sweep, patient=True)
        tracker.log_result(result, run_dir.path)
        tracker.finish("FINISHED")
        shift = (job.known.setting % 97) / 970
        for load, save in (
            (load_dev_pairs, run_dir.save_dev_pairs),
            (load_test_pairs, run_dir.save_test_pairs),
        ):
            columns = load(self._template)
            save({**columns, "margin": columns["margin"] + shift})
        write_json(run_dir.path / "run.json", {"config": {}, "fingerprints": result.fingerprints})
        run_dir.save_result(result)
        return finished(job.known, result, run_dir, objective)


def sweep_file(folder: Path, num_trials: int) -> Path:
    """A space of 2 cultures x 10 thresholds x as many temperatures as make `num_trials`."""
    temperatures = [round(0.1 + 0.01 * i, 2) for i in range(num_trials // 20)]
    document = {
        "run": run_document(folder),
        "space": {
            "culture": {"grid": ["North", "South"]},
            "selection.filter_threshold": {"grid": [round(0.5 + 0.04 * i, 2) for i in range(10)]},
            "selection.weight_temperature": {"grid": temperatures},
        },
    }
    path = folder / "scale.yaml"
    path.write_text(f"# What does a sweep cost beside its training?\n{yaml.safe_dump(document)}")
    return path


def run_document(folder: Path) -> dict[str, Any]:
    return {
        "experiment": "scale",
        "output_dir": str(folder / "runs"),
        "device": "cpu",
        "data": {
            "source": "synthetic",
            "cultures": ["North", "South"],
            "users": {"Majority": 8, "North": 60, "South": 60},
        },
        "model": {"path": str(folder / "global"), "max_length": 48},
        "train": {"batch_size": 8, "max_steps": 12, "log_every": 3},
        "tracking": {"log_model": False},
    }


def make_template(folder: Path) -> Path:
    """One real run, whose result stands for all."""
    make_tiny_backbone(folder / "backbone", vocabulary(), seed=0)
    config = ModelConfig(path=str(folder / "backbone"), max_length=48, new_head=True)
    renderer = load_renderer(folder / "backbone", config)
    model = load_reward_model(folder / "backbone", config, renderer, device="cpu", seed=0)
    (folder / "global").mkdir()
    save_reward_model(model, folder / "global")
    document = run_document(folder) | {"experiment": "template", "culture_weights": {"North": 1.0}}
    document["tracking"] = {"tracker": "none"}
    return start_run(RunConfig.model_validate(document))[1]


def part(folder: Path, template: Path, *overrides: str) -> dict[str, float]:
    """One command of the sweep, in a process of its own."""
    code = "import sys, sweep_scale\nsweep_scale.timed_part(*sys.argv[1:])"
    # Trials' processes find the stand-in there too.
    places = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(template), *overrides],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ
        | {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, places)),
        },
        check=True,
    )
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def timed_part(folder: str, template: str, *overrides: str) -> None:
    """What `part` runs; its numbers as JSON."""
    started = time.monotonic()
    marks: dict[str, float] = {}

    def marked(name: str, function: Any) -> Any:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            before = time.monotonic()
            marks.setdefault(f"{name} begins", before - started)
            try:
                return function(*arguments, **keywords)
            finally:
                marks[name] = marks.get(name, 0.0) + time.monotonic() - before

        return timed

    for name in ("run_jobs", "summarize_sweep", "write_sweep_report"):
        setattr(sweeps, name, marked(name, getattr(sweeps, name)))
    first: list[float] = []
    add = sweeps._Book.add

    def timed_add(book: Any, record: TrialRecord) -> None:
        first.append(time.monotonic() - started)
        add(book, record)

    sweeps._Book.add = timed_add  # type: ignore[method-assign]
    file = Path(folder) / "scale.yaml"
    sweeps.run_sweep(file, list(overrides), trial=StandIn(Path(template)))
    marks["first trial"] = first[0] if first else 0.0
    marks["trials"] = len(first)
    marks["whole"] = time.monotonic() - started
    marks["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024
    print(json.dumps(marks))


def main() -> None:
    num_trials = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        template = make_template(folder)
        sweep_file(folder, num_trials)
        half = part(folder, template, f"budget.trials={num_trials // 2}")
        rest = part(folder, template)
        again = part(folder, template)
        store = (folder / "runs" / "mlflow.db").stat().st_size / 1e6
        own = sum(f.stat().st_size for f in (folder / "runs/scale/sweep-scale").rglob("*")) / 1e6
    print(f"{num_trials} trials, 2 at a time, {platform.processor() or platform.machine()}\n")
    print("| what | first half | second half | all done |\n|---|---|---|---|")
    rows = {
        "wall seconds per trial": [m["run_jobs"] / m["trials"] for m in (half, rest)],
        "seconds to the first trial's end": [m["first trial"] for m in (half, rest)],
        "table, s": [m["summarize_sweep"] for m in (half, rest, again)],
        "report and pictures, s": [m["write_sweep_report"] for m in (half, rest, again)],
        "whole command, s": [m["whole"] for m in (half, rest, again)],
        "driver's peak memory, MB": [m["peak MB"] for m in (half, rest, again)],
    }
    for what, values in rows.items():
        shown = [f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in values]
        print(f"| {what} | {' | '.join(shown + ['-'] * (3 - len(shown)))} |")
    print(f"\nMLflow store {store:.0f} MB, the sweep's folder {own:.0f} MB")


if __name__ == "__main__":
    main()
