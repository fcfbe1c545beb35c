"""Do score heads on frozen features rank tau and beta as full training does?

    scpo train sweeps/blend_global.yaml
    scpo export runs/blend-global/finetune-all-s0-* models/blend-global
    python benchmarks/heads_rank_settings.py models/blend-global

Full training's side is the table of docs/results.md ("which filter, which temperature?"): twelve
settings, three cultures, accuracy on the test questions. The heads' side is what
`selection: auto` goes by: accuracy on left-out training questions. The table's tau are taken over
by the share of pairs that they keep, its beta by the size of the margins, so that another global
model than the table's serves.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from scpo_ray.experiment import load_inputs, task_of
from scpo_ray.inputs import open_run_dir
from scpo_ray.methods.choosing import NUM_FOLDS, culture_pairs, held_out_accuracy
from scpo_ray.records import ALONE
from scpo_ray.settings.files import load_sweep

KEPT = {None: 1.0, 0.55: 0.75, 0.52: 0.65, 0.51: 0.59}
"""tau -> share of the pairs that it kept there."""
MARGIN_AT_75 = 0.2
"""There the margin of tau 0.55, below which 75 % of the pairs lay: logit(0.55)."""
FULL_TRAINING = {
    (None, 0.3): 59.7,
    (None, 0.1): 59.5,
    (0.51, 0.1): 59.3,
    (None, 1.0): 59.3,
    (0.52, 0.3): 59.2,
    (0.52, 0.1): 59.2,
    (0.51, 0.3): 59.0,
    (0.55, 1.0): 58.6,
    (0.55, 0.1): 58.2,
    (0.55, 0.3): 58.2,
    (0.52, 1.0): 57.3,
    (0.51, 1.0): 52.9,
}
"""(tau, beta) -> % of test pairs ranked right, macro mean."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--output-dir", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    run = load_sweep("sweeps/blend.yaml").run
    config = run.model_copy(
        update={
            "model": run.model.model_copy(update={"path": str(arguments.model)}),
            "output_dir": arguments.output_dir,
        }
    )
    task = task_of(config, load_inputs(config, open_run_dir(config)), ALONE)
    features = task.base.features(task.data.texts)
    if features is None:
        sys.exit("no features")
    started = time.process_time()
    cultures = list(culture_pairs(task, features, seed=0))
    chosen, rejected = task.ref_pair_rewards
    margins = (chosen - rejected).double().numpy()
    unit = float(np.quantile(margins, 0.75)) / MARGIN_AT_75
    print(f"global model right on {100 * (margins > 0).mean():.1f} % of the training pairs")
    print("| tau there | beta there | tau | beta | heads, left out | full training, test |")
    print("|---|---|---|---|---|---|")
    by_heads = []
    for (tau, beta), reached in FULL_TRAINING.items():
        threshold = None
        if tau is not None:
            at = torch.tensor(np.quantile(margins, KEPT[tau]))
            threshold = float(torch.sigmoid(at))
        accuracies = [
            held_out_accuracy(
                pairs,
                threshold,
                beta * unit,
                "agreement",
                normalize_weights=False,
                num_folds=NUM_FOLDS,
                seed=0,
            )
            for pairs in cultures
        ]
        by_heads.append(100 * float(np.mean(accuracies)))
        shown = "none" if threshold is None else f"{threshold:.4f}"
        there = "none" if tau is None else tau
        print(
            f"| {there} | {beta} | {shown} | {beta * unit:.3g} | {by_heads[-1]:.1f} | {reached} |"
        )
    rank = spearmanr(by_heads, list(FULL_TRAINING.values())).statistic
    print(f"Spearman's rank correlation {rank:+.2f}, {time.process_time() - started:.0f} s of CPU")


if __name__ == "__main__":
    main()
