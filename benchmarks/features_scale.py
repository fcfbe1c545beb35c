"""Heads on many features: `python benchmarks/features_scale.py OTHER_CHECKOUT [PAIRS [WIDTH]]`.

PAIRS pairs of three cultures, each of two texts with WIDTH features, lie in a feature store. The
heads of `shared_offset` are learned from them in a few passes, here and in another checkout of the
project, each in a process of its own: CPU seconds a pass, all work around them included, and the
highest anonymous memory above what was there when everything was imported. Pages of mapped files
belong to the system, which takes them back when it needs them.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from data_scale import _PeakMemory

PASSES = 8
TEXTS_PER_PART = 16_384


def hashes_of(num_texts: int) -> np.ndarray:
    return np.arange(num_texts, dtype=np.uint64)


def write_features(folder: Path, num_texts: int, width: int) -> None:
    from scpo_ray.storage.stores import ScoreStore

    rng, store = np.random.default_rng(0), ScoreStore(folder)
    for start in range(0, num_texts, TEXTS_PER_PART):
        hashes = hashes_of(num_texts)[start : start + TEXTS_PER_PART]
        values = rng.standard_normal((len(hashes), width), dtype=np.float32)
        store.put("features", hashes, values)


def measured(folder: Path, num_pairs: int) -> None:
    from scpo_ray.methods.heads import learned_changes
    from scpo_ray.methods.shared_offset import Settings, shared_offset_heads
    from scpo_ray.records import Pairs
    from scpo_ray.storage.stores import ScoreStore

    rng, store = np.random.default_rng(1), ScoreStore(folder)
    chosen, rejected = rng.permutation(2 * num_pairs).reshape(2, -1)
    numbers, none = np.arange(num_pairs), np.zeros(num_pairs, np.int16)
    scores = none.astype(np.float32)
    codes = (numbers % 3).astype(np.int32)
    columns = numbers, chosen, rejected, none, none, scores, scores, codes, numbers
    pairs = Pairs(*columns, ("A", "B", "C"))
    rewards = rng.standard_normal(2 * num_pairs, dtype=np.float32)
    peak, before = _PeakMemory(), time.process_time()
    started = peak.peak
    # The code of before has no features that stay on the disk.
    read = getattr(store, "mapped", store.get)
    changes, heads = learned_changes(
        *(pairs, read("features", hashes_of(2 * num_pairs)), rewards),
        lambda cultures: shared_offset_heads(cultures, Settings(max_iterations=PASSES)),
        method="shared_offset",
        shares=None,
    )
    seconds, highest = time.process_time() - before, peak.stop() - started
    norm = float(np.linalg.norm(np.stack(list(changes.values()))))
    print(seconds, highest, heads.num_evaluations, heads.loss, norm)


def main(other: Path, num_pairs: int, width: int) -> None:
    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        write_features(Path(folder), 2 * num_pairs, width)
        size = 2 * num_pairs * width * 4 / 2**20
        print(f"{num_pairs:,} pairs, {width} features a text: {size:,.0f} MB on the disk\n")
        print("| code | CPU s a pass | peak MB | passes | loss | length of the changes |")
        print("|---|---|---|---|---|---|")
        for name, checkout in (("there", other), ("here", here)):
            environment = {**os.environ, "PYTHONPATH": str(checkout)}
            command = [sys.executable, __file__, "measured", folder, str(num_pairs)]
            done = subprocess.run(command, check=True, capture_output=True, env=environment)
            seconds, peak, passes, loss, norm = map(float, done.stdout.split()[-5:])
            line = f"{seconds / passes:.2f} | {peak:,.0f} | {passes:.0f} | {loss:.9f} | {norm:.9f}"
            print(f"| {name} | {line} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "measured":
        measured(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        numbers = [int(number) for number in sys.argv[2:]]
        main(Path(sys.argv[1]), *(numbers + [400_000, 384][len(numbers) :]))
