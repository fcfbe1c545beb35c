"""What a sweep saves beside the same trials one by one.

    make quickstart; python benchmarks/sweep_speed.py smoke runs/quickstart/global-model
    python benchmarks/sweep_speed.py blend models/blend-global

(sweeps/blend.yaml says how the second model is made.)

smoke: wall seconds of `scpo sweep sweeps/smoke.yaml`, 24 trials, and of `scpo train` for some of
them one after the other; `--singles` are made and stand for all 24.
blend: CPU seconds of 24 trials (tau x beta x data fraction, Mexico of BLEnD, 100 steps of 16
pairs) as a sweep, and as the paper's script has them: each run a process that loads the model, has
it score the training pairs one by one, filters and weights, trains, and tests. Once with texts
padded to 512 tokens as there, of which a few pairs and steps tell, since all cost the same; and,
kinder, to the longest of a batch, of which `--singles` whole runs are made.

Of a command all processes count, Ray's too.
"""

import argparse
import ctypes
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

TRIALS, STEPS, BATCH, RATE, LONGEST = 24, 100, 16, 1e-4, 512
TAUS, BETAS, FRACTIONS = [0.51, 0.52, 0.55, None], [0.1, 0.3, 1.0], [0.5, 1.0]
SUBREAPER, EVERY_S = 36, 0.3
"""prctl's number: what outlives its parent becomes this process's child. Ray's own processes wait
for none of theirs, so that CPU time is looked up so often."""


def measured(command: list[str]) -> tuple[float, float]:
    """Wall seconds of the command, and CPU seconds of it and all that it starts, as last seen."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    started, seconds = time.monotonic(), dict[tuple[int, float], float]()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        while process.poll() is None:
            time.sleep(EVERY_S)
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    times = child.cpu_times()
                    seconds[child.pid, child.create_time()] = times.user + times.system
        wall = time.monotonic() - started
        if process.returncode:
            said.seek(0)
            raise SystemExit(said.read())
    return wall, sum(seconds.values())


def scpo(command: str, file: Path, document: dict[str, Any]) -> tuple[float, float]:
    file.write_text(yaml.safe_dump(document))
    return measured([sys.executable, "-m", "scpo_ray.cli", command, str(file)])


def row(name: str, made: int | str, seconds: float, beside: float) -> None:
    print(f"| {name} | {made} | {seconds:.0f} | {beside / seconds:.1f} |", flush=True)


def smoke(model: Path, folder: Path, singles: int) -> None:
    document = yaml.safe_load(Path("sweeps/smoke.yaml").read_text())
    document["run"] |= {"output_dir": str(folder / "sweep")}
    document["run"]["model"]["path"] = str(model)
    sweep, _ = scpo("sweep", folder / "sweep.yaml", document)
    run = document["run"] | {"output_dir": str(folder / "singles"), "seed": 0}
    cultures = document["run"]["data"]["cultures"]
    taken = []
    for number in range(singles):
        culture = cultures[number % len(cultures)]
        method = ["scpo", "finetune", "weight"][number // len(cultures) % 3]
        one = run | {"method": method, "culture_weights": {culture: 1.0}}
        taken.append(scpo("train", folder / f"{number}.yaml", one)[0])
    every = TRIALS * sum(taken) / singles
    print("| smoke.yaml | made | seconds for 24 | times as fast |\n|---|---|---|---|")
    row("`scpo train`, one after the other", singles, every, every)
    row("`scpo sweep`", TRIALS, sweep, every)
    print(f"\nOf a single run: {', '.join(f'{seconds:.1f}' for seconds in taken)} s.")


def blend(model: Path, folder: Path, singles: int) -> None:
    document = yaml.safe_load(Path("sweeps/blend.yaml").read_text())
    run = document["run"] | {"output_dir": str(folder)}
    run["model"]["path"] = str(model)
    run["train"] |= {"learning_rate": RATE, "checkpoint_every": STEPS}
    space = {
        "culture": ["Mexico"],
        "selection.filter_threshold": TAUS,
        "selection.weight_temperature": BETAS,
        "data.data_fraction": FRACTIONS,
    }
    grids = {name: {"grid": values} for name, values in space.items()}
    _, sweep = scpo("sweep", folder / "sweep.yaml", {"run": run, "space": grids})
    script = [sys.executable, __file__, "one", str(model)]
    runs = [measured([*script, *given])[1] for given in _spread(singles)]
    every = TRIALS * sum(runs) / singles
    padded = 0.0
    for fraction in FRACTIONS:
        done = subprocess.run(
            [*script, "0.52", "0.3", str(fraction), "--padded"],
            capture_output=True,
            text=True,
            check=True,
        )
        padded += TRIALS / len(FRACTIONS) * float(done.stdout.split()[-1])
    print("| 24 trials on BLEnD | made | CPU seconds for 24 | times as fast |\n|---|---|---|---|")
    row("the paper's structure, padded to 512", "a few pairs and steps", padded, padded)
    row("the same, padded to a batch's longest", singles, every, padded)
    row("`scpo sweep`", TRIALS, sweep, padded)


def _spread(number: int) -> list[list[str]]:
    """So many of the 24 settings, evenly."""
    every = [
        [str(tau or 1.0), str(beta), str(fraction)]
        for tau in TAUS
        for beta in BETAS
        for fraction in FRACTIONS
    ]
    return [every[int((n + 0.5) * len(every) / number)] for n in range(number)]


def one(model: Path, tau: float, beta: float, fraction: float, *, padded: bool) -> None:
    """A run as the paper's script makes it.

    `padded`: to 512 tokens, a few pairs and steps alone; prints the CPU seconds of a whole run.
    """
    # Here, since the rest of the script needs none of it.
    import numpy as np
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = Path("../shared/data/blend")
    files = {part: str(data / f"pairs_{part}.jsonl.gz") for part in ("train", "test")}
    rows = load_dataset("json", data_files=files).filter(lambda row: row["group"] == "Mexico")
    questions = sorted(set(rows["train"]["question_id"]))
    kept = set(questions[: round(fraction * len(questions))])
    train = rows["train"].filter(lambda row: row["question_id"] in kept)
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    before = time.process_time()

    def rewards(pairs: Any, side: str) -> torch.Tensor:
        texts = tokenizer(
            pairs["prompt"],
            pairs[side],
            truncation=True,
            max_length=LONGEST,
            padding="max_length" if padded else True,
            return_tensors="pt",
        )
        return network(**texts).logits[:, 0]

    def margins(pairs: Any) -> Any:
        with torch.no_grad():
            found = [
                (rewards(pairs[n : n + 1], "chosen") - rewards(pairs[n : n + 1], "rejected")).item()
                for n in range(len(pairs))
            ]
        return np.array(found)

    seen = train.select(range(40)) if padded else train
    margin = margins(seen)
    scored = time.process_time()
    rows_kept = np.flatnonzero(1 / (1 + np.exp(-margin)) < tau)
    weights = torch.as_tensor(np.exp(np.minimum(margin / beta, 0)), dtype=torch.float32)
    network.train()
    made = 3 if padded else STEPS
    for step in range(made):
        rng = np.random.default_rng(step)
        batch = rng.choice(rows_kept, BATCH, replace=len(rows_kept) < BATCH).tolist()
        margin_now = rewards(seen[batch], "chosen") - rewards(seen[batch], "rejected")
        (weights[batch] * torch.nn.functional.softplus(-margin_now)).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
    trained = time.process_time()
    if not padded:
        margins(rows["test"])
        return
    pairs = len(train) + len(rows["test"])
    print(before + (scored - before) / len(seen) * pairs + (trained - scored) / made * STEPS)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["smoke", "blend", "one"])
    parser.add_argument("model", type=Path)
    parser.add_argument("setting", type=float, nargs="*", help="tau, beta, fraction of `one`")
    parser.add_argument("--singles", type=int, default=4)
    parser.add_argument("--padded", action="store_true")
    given = parser.parse_args()
    if given.part == "one":
        one(given.model, *given.setting, padded=given.padded)
        return
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    print(f"{os.cpu_count()} CPU cores, Python {platform.python_version()}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        {"smoke": smoke, "blend": blend}[given.part](
            given.model.resolve(), Path(folder), given.singles
        )


if __name__ == "__main__":
    main()
