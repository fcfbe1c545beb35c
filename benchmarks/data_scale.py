"""Memory and time of loading many preferences: `python benchmarks/data_scale.py [NUMBER]`.

NUMBER pairs with responses of about 500 characters (PRISM's length) are written to a JSONL file
and loaded. Each line of the table is a process of its own. "objects" keeps the same interactions
as Python objects in a list. Memory is the process's own (anonymous) at its highest, sampled every
10 ms: pages of the mapped file belong to the system, which takes them back when it needs them.
What Python and numpy allocate, at the most and in the end, is traced in a load of its own, since
tracing takes time.
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
    if kind == "traced":
        # The first load brings the libraries.
        load_preferences(config, path.parent / "cache")
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
            (title, *_in_a_process(kind, path))
            for title, kind in (
                ("imports alone", "nothing"),
                ("as Python objects", "objects"),
                ("table: write and load", "table"),
                ("table: load again", "table"),
            )
        ]
        kept, most = _in_a_process("traced", path)
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


def _in_a_process(kind: str, path: Path) -> tuple[float, float]:
    command = [sys.executable, __file__, kind, str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, peak, _ = output.splitlines()[-1].split()
    return float(seconds), float(peak)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measured(sys.argv[1], Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) == 2 else 200_000)
