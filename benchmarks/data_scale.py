"""Memory and time of loading many preferences: `python benchmarks/data_scale.py [NUMBER [OTHER]]`.

NUMBER pairs with responses of about 500 characters (PRISM's length) are written to a JSONL file
and loaded. Each line of the table is a process of its own. "objects" keeps the same interactions
as Python objects in a list. Memory is the process's own (anonymous) at its highest, sampled every
10 ms: pages of the mapped file belong to the system, which takes them back when it needs them.
What Python and numpy allocate, at the most and in the end, is traced in a load of its own, since
tracing takes time.

With OTHER, another checkout of the project, both load the same cached pairs and plan a training
on them, and only that is told: CPU seconds, in turn, the least of three, and the traced bytes.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np

from scpo_ray.storage.disk import file_digest
from scpo_ray.training.plan import plan_steps

CHARACTERS = 500
PAIRS_PER_USER = 20


def write_pairs(path: Path, number: int) -> None:
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"abcdefghijklmnopqrst     ", dtype=np.uint8)
    with path.open("w") as file:
        for row in range(number):
            texts = letters[rng.integers(len(letters), size=(3, CHARACTERS))]
            prompt, chosen, rejected = (text.tobytes().decode().strip() for text in texts)
            user = row // PAIRS_PER_USER
            record = {
                "prompt": prompt[:60],
                "chosen": chosen,
                "rejected": rejected,
                "culture": "AB"[user % 2],
                "user": f"u{user}",
            }
            file.write(json.dumps(record) + "\n")


def measured(kind: str, path: Path) -> None:
    """Runs one kind in this process and prints its seconds and peak memory in MB."""
    from scpo_ray.data.loading import load_preferences
    from scpo_ray.data.preferences import ColumnMap, PreferencesConfig, open_preferences
    from scpo_ray.data.rows import Notes

    config = PreferencesConfig(
        source="preferences", train_files=[str(path)], columns=ColumnMap(user="user")
    )
    if kind in ("traced", "compared"):
        # The first load brings the libraries.
        load_preferences(config, path.parent / "cache")
        started = time.process_time()
        pairs = load_preferences(config, path.parent / "cache").train
        loaded = time.process_time()
        if kind == "compared":
            print(loaded - started, hashing_s(path), *(planning_s(len(pairs), g) for g in (0, 2)))
            return
        del pairs
        tracemalloc.start()
        _data = load_preferences(config, path.parent / "cache")
        print(*tracemalloc.get_traced_memory(), 0)
        return
    peak = _PeakMemory()
    started = time.perf_counter()
    if kind == "table":
        kept = [load_preferences(config, path.parent / "cache")]
    elif kind == "objects":
        kept = [interaction for _, interaction in open_preferences(config).read(Notes())]
    else:
        kept = []
    seconds = time.perf_counter() - started
    print(f"{seconds:.2f} {peak.stop():.0f} {len(kept)}")


def hashing_s(path: Path) -> float:
    """CPU seconds of reading the file and its table once, to know that they are what they were."""
    started = time.process_time()
    for file in (path, *(path.parent / "cache").glob("*.arrow")):
        file_digest(file)
    return time.process_time() - started


def planning_s(num_pairs: int, group_size: int) -> float:
    """CPU seconds until the first step is planned; with groups, pairs of one prompt together."""
    pairs = np.arange(2 * num_pairs).reshape(-1, 2)
    lengths = np.random.default_rng(0).integers(50, 400, 2 * num_pairs)
    groups = np.arange(num_pairs) // group_size if group_size else None
    started = time.process_time()
    plan = plan_steps(
        *(pairs, lengths),
        batch_size=8,
        num_steps=1_000,
        micro_batch_tokens=2_048,
        num_workers=1,
        seed=0,
        groups=groups,
    )
    plan.num_tokens()
    next(plan.steps_from(0))
    return time.process_time() - started


def compare(number: int, other: Path) -> None:
    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        write_pairs(path, number)
        _in_a_process("table", path)
        rounds = [[_in_a_process("compared", path, at) for at in (other, here)] for _ in range(3)]
        traced = [_in_a_process("traced", path, at) for at in (other, here)]
    before, now = (np.min(columns, axis=0) for columns in zip(*rounds, strict=True))
    print(f"{number:,} pairs\n\n| what | there | here | ratio |\n|---|---|---|---|")
    names = ("loading cached pairs", "of that, hashing", "a plan", "a plan, whole prompts")
    for name, there, ours in zip(names, before, now, strict=True):
        print(f"| {name}, CPU s | {there:.2f} | {ours:.2f} | {there / ours:.2f} |")
    for place, name in ((1, "at the most"), (0, "in the end")):
        there, ours = (found[place] / number for found in traced)
        print(f"| {name}, bytes a pair | {there:.0f} | {ours:.0f} | {there / ours:.2f} |")
    print("\nplans of 10,000,000 pairs here, CPU s:", end="")
    print(*(f" {planning_s(10_000_000, group_size):.2f}" for group_size in (0, 2)))


class _PeakMemory:
    """The highest anonymous memory of this process in MB, from now until `stop`."""

    def __init__(self) -> None:
        self.peak = 0.0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
            self.peak = max(self.peak, int(line.split()[1]) / 1024)
            if self.stopping.wait(0.01):
                return

    def stop(self) -> float:
        self.stopping.set()
        self.thread.join()
        return self.peak


def main(number: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        write_pairs(path, number)
        size = path.stat().st_size / 2**20
        rows = [
            (title, *_in_a_process(kind, path)[:2])
            for title, kind in (
                ("imports alone", "nothing"),
                ("as Python objects", "objects"),
                ("table: write and load", "table"),
                ("table: load again", "table"),
            )
        ]
        kept, most, _ = _in_a_process("traced", path)
    print(f"{number:,} pairs, {size:.0f} MB of JSON; {os.cpu_count()} CPUs, ", end="")
    print(f"Python {platform.python_version()}\n")
    print("| what | seconds | peak MB | above imports, share of the objects' |")
    print("|---|---|---|---|")
    base = rows[0][2]
    for title, seconds, peak in rows:
        share = f"{(peak - base) / (rows[1][2] - base):.2f}" if peak > base else ""
        print(f"| {title} | {seconds:.1f} | {peak:.0f} | {share} |")
    found = f"{most / number:.0f} at the most, {kept / number:.0f} in the end"
    print(f"\ntraced while cached pairs are loaded, bytes a pair: {found}")


def _in_a_process(kind: str, path: Path, checkout: Path | None = None) -> list[float]:
    """What `measured` prints, of this checkout or another one."""
    command = [sys.executable, __file__, kind, str(path)]
    environment = os.environ if checkout is None else {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return [float(number) for number in done.stdout.splitlines()[-1].split()]


if __name__ == "__main__":
    if len(sys.argv) == 3 and not sys.argv[1].isdigit():
        measured(sys.argv[1], Path(sys.argv[2]))
    elif len(sys.argv) == 3:
        compare(int(sys.argv[1]), Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) == 2 else 200_000)
