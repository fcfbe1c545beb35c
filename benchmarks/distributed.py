"""What starting and dividing a run costs: `python benchmarks/distributed.py MODEL_FOLDER`.

MODEL_FOLDER holds a pretrained encoder without a score head, such as `models/all-minilm-l6-v2`
(`make backbone`). Two tables:

start: seconds from the command to the first step and to its end, the same tiny number of steps in
this process, on Ray with one worker and with two.

steps: seconds per step (mean of the second half, generated texts) of every engine in one process
and on two of Ray's workers, as a ratio to PyTorch on as many; and what telling Ray of a point
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

import yaml

STEPS = 20
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


def seconds_per_step(model: Path, folder: Path, name: str, *launch: str, **train: Any) -> float:
    """The mean over the second half of the steps, between two points of the curve."""
    path = config(model, folder, name, **{"log_every": STEPS // 2, **train})
    _, _, times = run(path, *launch)
    return (times[-1] - times[len(times) // 2 - 1]) / (STEPS // 2)


def steps_table(model: Path, folder: Path) -> None:
    print("\n| engine | workers | s per step | ratio to torch |\n|---|---|---|---|")
    base = 0.0
    for workers, launch in ((1, ["launch.on=process"]), (2, ["train.num_workers=2"])):
        base = 0.0
        for engine, stage in ENGINES:
            name = f"{engine}-{stage}-{workers}"
            seconds = seconds_per_step(
                model, folder, name, *launch, engine=engine, zero_stage=stage
            )
            base = base or seconds
            shown = engine if engine == "torch" else f"DeepSpeed ZeRO {stage}"
            print(f"| {shown} | {workers} | {seconds:.3f} | {seconds / base:.2f} |", flush=True)
    every_step = seconds_per_step(
        model, folder, "reported", "train.num_workers=2", engine="torch", log_every=1
    )
    report = every_step - base
    print(f"\nA report to Ray: {report:.3f} s, {report / 10 / base:.1%} of a step at one in ten.")


def main() -> None:
    model = Path(sys.argv[1]).resolve()
    print(f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, {STEPS} steps of 16")
    with tempfile.TemporaryDirectory() as folder:
        start_table(model, Path(folder))
        steps_table(model, Path(folder))


if __name__ == "__main__":
    main()
