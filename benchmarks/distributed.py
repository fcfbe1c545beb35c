"""What starting and dividing a run costs: `python benchmarks/distributed.py MODEL_FOLDER`.

MODEL_FOLDER holds a pretrained encoder without a score head, such as `models/all-minilm-l6-v2`
(`make backbone`). Two tables:

start: seconds from the command to the first step and to its end, the same tiny number of steps in
this process, on Ray with one worker and with two.

steps: seconds per step (median over steps, generated texts), every engine on one and on two
workers, as a ratio to PyTorch on the same number of workers; and what telling Ray of a point
costs, as a share of a step at the default of a point every ten steps.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

STEPS = 30
ENGINES = [("torch", 0), ("deepspeed", 0), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)]


def config(model: Path, folder: Path, name: str, **train: Any) -> Path:
    document = {
        "experiment": name,
        "method": "finetune",
        "output_dir": str(folder / "runs"),
        "device": "cpu",
        "data": {"source": "synthetic", "cultures": ["North"], "users": {"M": 40, "North": 40}},
        "model": {"path": str(model), "max_length": 64, "new_head": True},
        "train": {"batch_size": 16, "max_steps": STEPS, "log_every": 1, "dropout": False} | train,
        "tracking": {"tracker": "jsonl"},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def run(path: Path, *overrides: str) -> tuple[float, float, list[float]]:
    """Seconds from the command to the first step and to the end, and the times of the steps."""
    sets = [part for override in overrides for part in ("--set", override)]
    started = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "scpo_ray.cli", "train", str(path), *sets],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    ended = time.time()
    if done.returncode:
        raise SystemExit(done.stderr)
    experiment = path.parent / "runs" / path.stem
    (points,) = experiment.glob("*/metrics.jsonl")
    lines = [json.loads(line) for line in points.read_text().splitlines()]
    times = [line["time"] for line in lines if "train/loss" in line]
    return times[0] - started, ended - started, times


def start_table(model: Path, folder: Path) -> None:
    print("\n| workers | first step, s | end, s |\n|---|---|---|")
    rows = [
        ("this process", ["launch.on=process"]),
        ("Ray, 1", ["launch.on=ray"]),
        ("Ray, 2", ["launch.on=ray", "train.num_workers=2"]),
    ]
    for number, (name, overrides) in enumerate(rows):
        path = config(model, folder, f"start-{number}", max_steps=5, warmup_steps=0)
        first, end, _ = run(path, *overrides)
        print(f"| {name} | {first:.1f} | {end:.1f} |", flush=True)


def steps_table(model: Path, folder: Path) -> None:
    print("\n| engine | workers | s per step | ratio to torch | a report, s | share of a step |")
    print("|---|---|---|---|---|---|")
    for workers in (1, 2):
        base = None
        for engine, stage in ENGINES:
            path = config(
                model, folder, f"{engine}-{stage}-{workers}", engine=engine, zero_stage=stage
            )
            _, _, times = run(path, "launch.on=ray", f"train.num_workers={workers}")
            reported = np.median(np.diff(times))
            silent = config(
                model,
                folder,
                f"{engine}-{stage}-{workers}-silent",
                engine=engine,
                zero_stage=stage,
                log_every=STEPS // 2,
            )
            _, _, ends = run(silent, "launch.on=ray", f"train.num_workers={workers}")
            per_step = (ends[1] - ends[0]) / (STEPS // 2)
            base = base or per_step
            report = max(0.0, reported - per_step)
            name = engine if engine == "torch" else f"DeepSpeed ZeRO {stage}"
            print(
                f"| {name} | {workers} | {per_step:.3f} | {per_step / base:.2f} | {report:.3f} "
                f"| {report / 10 / per_step:.1%} |",
                flush=True,
            )


def main() -> None:
    model = Path(sys.argv[1]).resolve()
    print(f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, {STEPS} steps of 16")
    with tempfile.TemporaryDirectory() as folder:
        start_table(model, Path(folder))
        steps_table(model, Path(folder))


if __name__ == "__main__":
    main()
