"""Memory and time of loading many interactions: `python benchmarks/data_scale.py [NUMBER]`.

Generated interactions with three responses each are written into the memory-mapped table and
loaded; each line is a process of its own, so that its peak memory is its own. "objects" holds the
same interactions as Python objects in a list: what the table saves.
"""

import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

INTERACTIONS_PER_USER = 20


def measured(kind: str, number: int, cache: Path) -> None:
    """Runs one kind in this process and prints its seconds and peak memory in MB."""
    from scpo_ray.config import SyntheticConfig
    from scpo_ray.data.loading import load_preferences
    from scpo_ray.data.rows import Notes
    from scpo_ray.data.synthetic import open_synthetic

    users = {"A": number // INTERACTIONS_PER_USER // 2, "B": number // INTERACTIONS_PER_USER // 2}
    config = SyntheticConfig(
        source="synthetic", users=users, interactions_per_user=INTERACTIONS_PER_USER
    )
    started = time.perf_counter()
    if kind == "load":
        loaded = len(load_preferences(config, cache).train)
    elif kind == "objects":
        kept = [interaction for _, interaction in open_synthetic(config).read(Notes())]
        loaded = len(kept)
    else:
        loaded = 0
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{seconds:.2f} {peak:.0f} {loaded}")


def main(number: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            (title, *_in_a_process(kind, number, folder))
            for title, kind in (
                ("imports alone", "nothing"),
                ("as Python objects", "objects"),
                ("table: write and load", "load"),
                ("table: load again", "load"),
            )
        ]
    print(f"{number:,} interactions, {os.cpu_count()} CPUs, Python {platform.python_version()}\n")
    print("| what | seconds | peak MB | MB above imports | share of the objects' |")
    print("|---|---|---|---|---|")
    base = rows[0][2]
    objects = rows[1][2] - base
    for title, seconds, peak in rows:
        share = f"{(peak - base) / objects:.2f}" if peak > base else ""
        print(f"| {title} | {seconds:.1f} | {peak:.0f} | {peak - base:.0f} | {share} |")


def _in_a_process(kind: str, number: int, folder: str) -> tuple[float, float]:
    command = [sys.executable, __file__, kind, str(number), folder]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, peak, _ = output.splitlines()[-1].split()
    return float(seconds), float(peak)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        measured(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) == 2 else 200_000)
