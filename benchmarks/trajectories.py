"""One plan, one trajectory: `python benchmarks/trajectories.py CONFIG [SETTING=VALUE ...]`.

CONFIG is a run's YAML file. Its run is made for 50 steps in float32 without dropout, by every
engine on one, two and three workers (torchrun's), and each curve and all test margins are compared
with those of plain PyTorch in one process: the largest difference, relative to the loss of the
step, and to the margins' standard deviation.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

ENGINES = [("torch", 0), ("deepspeed", 0), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)]
STEPS = 50


def run(
    arguments: list[str], folder: Path, engine: str, stage: int, workers: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The loss of every step, and the margins of the test pairs."""
    settings = [
        *arguments[1:],
        f"output_dir={folder}",
        "experiment=trajectories",
        "tracking.tracker=none",
        "train.dropout=false",
        f"train.max_steps={STEPS}",
        "train.warmup_steps=0",
        "train.log_every=1",
        f"train.engine={engine}",
        f"train.zero_stage={stage}",
        "launch.on=process",
    ]
    command = [sys.executable, "-m"]
    if workers > 1:
        command += ["torch.distributed.run", "--nproc-per-node", str(workers), "-m"]
    command += ["scpo_ray.cli", "train", arguments[0]]
    for setting in settings:
        command += ["--set", setting]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    (path,) = (folder / "trajectories").glob("*/")
    losses = json.loads((path / "result.json").read_text())["curve"]["loss"]
    margins = pq.read_table(path / "test_pairs.parquet")["margin"].to_numpy().astype(np.float64)
    return np.array(losses), margins


def main() -> None:
    arguments = sys.argv[1:]
    print(f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, {STEPS} steps\n")
    print(
        "| engine | workers | loss, step 1 | step 25 | step 50 | curve differs | rewards differ |"
    )
    print("|---|---|---|---|---|---|---|")
    base: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    for workers in (1, 2, 3):
        for engine, stage in ENGINES:
            with tempfile.TemporaryDirectory() as folder:
                losses, margins = done = run(arguments, Path(folder), engine, stage, workers)
            base = base or done
            curve = np.abs(losses / base[0] - 1).max()
            # Relative to their spread: a margin near 0 has no relative error worth the name.
            rewards = np.abs(margins - base[1]).max() / base[1].std()
            name = engine if engine == "torch" else f"DeepSpeed ZeRO {stage}"
            print(
                f"| {name} | {workers} | {losses[0]:.6f} | {losses[24]:.6f} | {losses[-1]:.6f} "
                f"| {curve:.1e} | {rewards:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
