"""Do score heads on frozen features rank tau and beta as full training does?

    scpo train sweeps/blend_global.yaml
    scpo export runs/blend-global/finetune-all-s0-* models/blend-global
    scpo sweep sweeps/blend.yaml
    python benchmarks/heads_rank_settings.py runs/blend-sweep/sweep-blend

Full training's side is that sweep's result: twelve settings, three cultures, accuracy on the dev
questions. The heads' side is what `selection: auto` goes by: accuracy on left-out training
questions, with the same global model.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from scpo_ray.experiment import load_inputs, task_of
from scpo_ray.inputs import open_run_dir
from scpo_ray.methods.choosing import NUM_FOLDS, culture_pairs, held_out_accuracy
from scpo_ray.records import ALONE
from scpo_ray.settings.files import load_sweep
from scpo_ray.sweep.store import load_sweep_result

NAMES = ("filter_threshold", "weight_temperature")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path, help="its folder")
    parser.add_argument("--output-dir", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    full = {}
    for found in load_sweep_result(arguments.sweep).settings:
        tau, beta = (found.setting.values[f"selection.{name}"] for name in NAMES)
        full[tau, beta] = found.accuracy[""]["all"].value
    run = load_sweep("sweeps/blend.yaml").run
    config = run.model_copy(update={"output_dir": arguments.output_dir})
    task = task_of(config, load_inputs(config, open_run_dir(config)), ALONE)
    features = task.base.features(task.data.texts)
    if features is None:
        sys.exit("no features")
    started = time.process_time()
    cultures = list(culture_pairs(task, features, seed=0))
    print("| tau | beta | heads, left out | full training, dev |\n|---|---|---|---|")
    by_heads = {}
    for (tau, beta), reached in sorted(full.items(), key=lambda item: -item[1]):
        accuracies = [
            held_out_accuracy(
                pairs,
                tau,
                beta,
                "agreement",
                normalize_weights=False,
                num_folds=NUM_FOLDS,
                seed=0,
            )
            for pairs in cultures
        ]
        by_heads[tau, beta] = float(np.mean(accuracies))
        shown = "none" if tau is None else tau
        print(f"| {shown} | {beta} | {100 * by_heads[tau, beta]:.1f} | {100 * reached:.1f} |")
    rank = spearmanr([by_heads[one] for one in full], list(full.values())).statistic
    print(f"Spearman's rank correlation {rank:+.2f}, {time.process_time() - started:.0f} s of CPU")


if __name__ == "__main__":
    main()
