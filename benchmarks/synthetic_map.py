"""Where scpo finds a culture's true taste and where it does not: a table from finished sweeps.

`python benchmarks/synthetic_map.py FOLDER...` reads the folders of sweeps/synthetic_map.yaml. A
model is measured against the taste that the culture's people were made from, not against what
they chose: *own*, the test pairs on which the culture's taste and the majority's part; *common*,
those on which they are one; *all*, both. Each number is the mean over cultures of the seeds' mean,
in %; beside it what it is more than finetune's on the same data, with its interval over users and
seeds.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from scpo_ray.data.synthetic import SyntheticConfig, margins_of_pairs
from scpo_ray.results import Difference
from scpo_ray.statistics.intervals import macro_difference, macro_mean
from scpo_ray.storage.run_dir import load_result, load_test_pairs
from scpo_ray.sweep.records import SweepResult
from scpo_ray.sweep.store import load_sweep_result

RIVAL = "finetune"
KINDS = ("all", "own", "common")
Outcomes = dict[str, tuple[np.ndarray, np.ndarray]]
"""Culture -> (B, K) whether each of K seeds ranks as its taste, and (B,) users."""


def outcomes_of(sweep: SweepResult) -> tuple[dict[tuple[float, str, str], Outcomes], float]:
    """(fraction, variant, kind of pairs) -> outcomes, and the data's share of outliers."""
    values = {summary.setting.number: summary.setting.values for summary in sweep.settings}
    columns: dict[tuple[float, str, str], dict[str, list[np.ndarray]]] = defaultdict(
        lambda: defaultdict(list)
    )
    users: dict[tuple[str, str], np.ndarray] = {}
    outlier_share = 0.0
    for trial in sweep.trials:
        if trial.state != "finished":
            continue
        run = Path(trial.path)
        data = SyntheticConfig.model_validate(load_result(run).config["data"])
        outlier_share = data.outlier_share
        pairs = load_test_pairs(run)
        mine = pairs["culture"] == trial.culture
        true = margins_of_pairs(data, list(pairs["pair_id"][mine]))
        # A pair that the taste itself does not tell apart has no right answer.
        told = (true.culture != 0) & (true.majority != 0)
        right = np.sign(pairs["margin"][mine]) == np.sign(true.culture)
        part = np.sign(true.culture) != np.sign(true.majority)
        setting = values[trial.setting]
        for kind, mask in zip(KINDS, (told, told & part, told & ~part), strict=True):
            key = (setting["data.data_fraction"], setting["variant"], kind)
            columns[key][trial.culture].append(right[mask])
            users[trial.culture, kind] = pairs["cluster"][mine][mask]
            ref = np.sign(pairs["ref_margin"][mine]) == np.sign(true.culture)
            columns[key[0], "global", kind].setdefault(trial.culture, [ref[mask]])
    found = {
        key: {c: (np.stack(seeds, axis=1), users[c, key[2]]) for c, seeds in sorted(of.items())}
        for key, of in columns.items()
    }
    return found, outlier_share


def in_points(found: Difference) -> str:
    if found.value is None or found.low is None or found.high is None:
        return "no number"
    return f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def main(folders: list[Path]) -> None:
    columns = " | ".join(f"{kind} | minus finetune" for kind in KINDS)
    print(f"| outliers | users | method | {columns} |")
    print("|---|---|---|---|---|---|---|---|---|")
    by_folder = [outcomes_of(load_sweep_result(folder)) for folder in folders]
    for found, outlier_share in sorted(by_folder, key=lambda item: item[1]):
        for fraction, variant in dict.fromkeys((f, v) for f, v, _ in found):
            cells = []
            for kind in KINDS:
                ours = found[fraction, variant, kind]
                outcomes, users = zip(*ours.values(), strict=True)
                mean = macro_mean(outcomes, users)
                cells.append("no number" if mean.value is None else f"{100 * mean.value:.1f}")
                rival = found.get((fraction, RIVAL, kind), {})
                if variant == RIVAL or list(rival) != list(ours):
                    cells.append("")
                    continue
                theirs = [outcome for outcome, _ in rival.values()]
                difference = macro_difference(outcomes, theirs, users)
                cells.append(in_points(difference))
            print(
                f"| {100 * outlier_share:.0f} % | {100 * fraction:g} % | {variant} | "
                f"{' | '.join(cells)} |"
            )


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
