"""How often the 95 % interval holds the truth, and the paired test raises a false alarm.

`python benchmarks/interval_coverage.py [CULTURES]` simulates that many cultures per line: users
with different numbers of pairs and a taste of their own, so a user's pairs are correlated. Beside
the interval that the package uses stand its basic counterpart (the same widened tail) and the plain
percentile and basic bootstrap.
"""

import sys
from collections.abc import Callable

import numpy as np

from scpo_ray.statistics.intervals import (
    accuracy,
    basic_interval,
    detectable_difference,
    draw_clusters,
    joint_means,
    macro_difference,
    macro_mean,
    paired_difference,
)

SAMPLES = 1_000
NUM_USERS = (8, 13, 25, 40, 100)
Sizes = Callable[[np.random.Generator, int], np.ndarray]


def even_sizes(rng: np.random.Generator, num_users: int) -> np.ndarray:
    return rng.integers(2, 31, size=num_users)


def uneven_sizes(rng: np.random.Generator, num_users: int) -> np.ndarray:
    """1 to 80, a few users with most of the pairs."""
    return np.clip(np.round(np.exp(rng.normal(2.2, 0.8, size=num_users))), 1, 80).astype(int)


ACCURACIES: dict[str, tuple[float, float, Sizes]] = {
    "60 % ± 15, 2 to 30 pairs": (0.60, 0.15, even_sizes),
    "85 % ± 12, 2 to 30 pairs": (0.85, 0.12, even_sizes),
    "30 % ± 10, 1 to 80 pairs": (0.30, 0.10, uneven_sizes),
}
# Share of pairs on which two models differ, how much users lean to either, and their sizes.
DIFFERENCES: dict[str, tuple[float, float, Sizes]] = {
    "48 % differ": (0.48, 0.10, even_sizes),
    "15 % differ": (0.15, 0.20, even_sizes),
    "15 % differ, 1 to 80 pairs": (0.15, 0.20, uneven_sizes),
    "5 % differ": (0.05, 0.20, even_sizes),
}


def skills(rng: np.random.Generator, num_users: int, mean: float, spread: float) -> np.ndarray:
    """(G,) users' accuracies with this mean and standard deviation."""
    shape = mean * (1 - mean) / spread**2 - 1
    return rng.beta(mean * shape, (1 - mean) * shape, size=num_users)


def leanings(rng: np.random.Generator, num_users: int, lean: float) -> np.ndarray:
    """(G,) half of the users lean to one model and half to the other."""
    return lean * rng.choice([-1, 1], size=num_users)


def simulated(
    rng: np.random.Generator, sizes: np.ndarray, skill: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(P,) outcomes and users."""
    users = np.repeat(np.arange(len(sizes)), sizes)
    return rng.random(len(users)) < skill[users], users


def two_models(
    rng: np.random.Generator, sizes: np.ndarray, differing: float, lean: np.ndarray, gain: float = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(P,) outcomes of two models, the first better by `gain`, and users."""
    users = np.repeat(np.arange(len(sizes)), sizes)
    ahead = 0.5 + gain / (2 * differing) + lean
    differ, first = rng.random(len(users)) < differing, rng.random(len(users)) < ahead[users]
    both = rng.random(len(users)) < 0.6
    return np.where(differ, first, both), np.where(differ, ~first, both), users


def coverage(number: int) -> None:
    print(
        "| users' accuracy and pairs | users | percentile | basic | basic, widened | used |\n"
        "|---|---|---|---|---|---|"
    )
    for name, (mean, spread, sizes) in ACCURACIES.items():
        for num_users in NUM_USERS:
            rng = np.random.default_rng(0)
            held = np.zeros(4)
            for _ in range(number):
                skill = skills(rng, num_users, mean, spread)
                outcomes, users = simulated(rng, sizes(rng, num_users), skill)
                [draws] = draw_clusters([users], samples=SAMPLES, rng=rng)
                replicates = joint_means(outcomes[:, None], users, draws)
                low, high = np.quantile(replicates, [0.025, 0.975])
                twice = 2 * outcomes.mean()
                used = accuracy(outcomes, users, samples=SAMPLES, rng=rng)
                ends = (
                    (low, high),
                    (twice - high, twice - low),
                    basic_interval(used),
                    (used.low, used.high),
                )
                held += [low <= mean <= high for low, high in ends]
            shares = " | ".join(f"{100 * share:.1f}" for share in held / number)
            print(f"| {name} | {num_users} | {shares} |", flush=True)


def paired(number: int) -> None:
    print("\n| two models | users | interval holds 0 | false alarms at 5 % |\n|---|---|---|---|")
    for name, (differing, lean, sizes) in DIFFERENCES.items():
        for num_users in NUM_USERS:
            rng = np.random.default_rng(1)
            held = alarms = 0
            for _ in range(number):
                leans = leanings(rng, num_users, lean)
                models = two_models(rng, sizes(rng, num_users), differing, leans)
                found = paired_difference(*models, samples=SAMPLES, rng=rng)
                held += found.low <= 0 <= found.high
                alarms += found.p_value <= 0.05
            shares = f"{100 * held / number:.1f} | {100 * alarms / number:.1f}"
            print(f"| {name} | {num_users} | {shares} |", flush=True)


def macro(number: int) -> None:
    """Means over seven cultures: of different people, and of the same questions."""
    print("\n| macro mean of 7 cultures | holds the truth | false alarms at 5 % |\n|---|---|---|")
    for num_clusters, shared in ((10, False), (30, True)):
        rng = np.random.default_rng(2)
        held = alarms = 0
        for _ in range(number):
            sizes = [even_sizes(rng, num_clusters) for _ in range(7)]
            # A question is as hard, and leans as far, in every culture; people are their own.
            skill = [skills(rng, num_clusters, 0.6, 0.15) for _ in range(1 if shared else 7)]
            lean = [leanings(rng, num_clusters, 0.2) for _ in range(1 if shared else 7)]
            drawn = [simulated(rng, one, skill[c % len(skill)]) for c, one in enumerate(sizes)]
            models = [
                two_models(rng, one, 0.15, lean[c % len(lean)]) for c, one in enumerate(sizes)
            ]
            own = 0 if shared else 1_000
            users = [users + own * place for place, (_, users) in enumerate(drawn)]
            found = macro_mean([right for right, _ in drawn], users, samples=SAMPLES, rng=rng)
            held += found.low <= 0.6 <= found.high
            ours, theirs = [ours for ours, _, _ in models], [theirs for _, theirs, _ in models]
            difference = macro_difference(ours, theirs, users, samples=2, rng=rng)
            alarms += difference.p_value <= 0.05
        name = f"{num_clusters} {'questions, the same in all' if shared else 'users each'}"
        print(f"| {name} | {100 * held / number:.1f} | {100 * alarms / number:.1f} |", flush=True)


def seeds(number: int) -> None:
    """Seeds that move everyone's accuracy alike: averaged first, and as a layer of chance."""
    print(
        "\n| users, seeds, their sd in points | averaged: holds, false alarms | "
        "as a layer: holds, false alarms |\n|---|---|---|"
    )
    for num_users, num_seeds, sd in (
        *((13, count, 0.02) for count in (2, 3, 5)),
        *((100, count, 0.0) for count in (2, 5)),
        *((100, count, 0.02) for count in (2, 3, 5)),
    ):
        rng = np.random.default_rng(3)
        counts = np.zeros(4)
        for _ in range(number):
            sizes = even_sizes(rng, num_users)
            users = np.repeat(np.arange(num_users), sizes)
            hard = rng.beta(6, 4, size=num_users)[users] * 0.8
            rival = rng.random(len(users)) < hard + 0.1
            skill = hard[:, None] + 0.1 + sd * rng.standard_normal(num_seeds)
            right = rng.random((len(users), num_seeds)) < skill
            for place, ours in enumerate((right.mean(axis=1), right)):
                found = paired_difference(ours, rival, users, samples=SAMPLES, rng=rng)
                counts[2 * place] += found.low <= 0 <= found.high
                counts[2 * place + 1] += found.p_value <= 0.05
        shown = [f"{100 * count / number:.1f}" for count in counts]
        cells = f"{', '.join(shown[:2])} | {', '.join(shown[2:])}"
        print(f"| {num_users}, {num_seeds}, {100 * sd:.0f} | {cells} |", flush=True)


def power(number: int) -> None:
    print(
        "\n| users, pairs that differ | smallest difference to be shown, points | shown |\n"
        "|---|---|---|"
    )
    for num_users in NUM_USERS:
        for differing, lean in ((0.2, 0.2), (0.4, 0.1)):
            rng = np.random.default_rng(4)
            sizes = even_sizes(rng, num_users)
            gain = detectable_difference(
                sizes, differing_share=differing, correlation=4 * differing * lean**2
            )
            shown = 0
            for _ in range(number):
                leans = leanings(rng, num_users, lean)
                models = two_models(rng, sizes, differing, leans, gain)
                found = paired_difference(*models, samples=2, rng=rng)
                shown += found.p_value <= 0.05
            cells = f"{100 * gain:.1f} | {100 * shown / number:.1f}"
            print(f"| {num_users}, {100 * differing:.0f} % | {cells} |", flush=True)


def main(number: int) -> None:
    print(f"{number:,} simulated cultures (or sets of seven) per line, in %\n")
    for part in (coverage, paired, macro, seeds, power):
        part(number)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) == 2 else 2_000)
