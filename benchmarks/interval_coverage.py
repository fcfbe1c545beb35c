"""How often the 95 % interval holds the truth, and a test raises a false alarm.

`python benchmarks/interval_coverage.py [CULTURES [PART ...]] [--seed SEED]` simulates that many
cultures per line of these parts, or of all (coverage, paired, macro, ...): users with different
numbers of pairs and a taste of their own, so a user's pairs are correlated. Beside the interval
that the package uses stands t with the same degrees of freedom and standard error, cut at 0 and
100 %.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.stats import t

from scpo_ray.statistics.cluster_variance import macro_parts
from scpo_ray.statistics.intervals import (
    accuracy,
    detectable_difference,
    macro_difference,
    macro_mean,
    paired_difference,
    verdict,
)
from scpo_ray.statistics.joint_scores import Lowest, measured

SAMPLES = 1_000
NUM_USERS = (2, 3, 4, 5, 6, 8, 13, 25, 40, 100)
Sizes = Callable[[np.random.Generator, int], np.ndarray]


def even_sizes(rng: np.random.Generator, num_users: int) -> np.ndarray:
    return rng.integers(2, 31, size=num_users)


def uneven_sizes(rng: np.random.Generator, num_users: int) -> np.ndarray:
    """1 to 80, a few users with most of the pairs."""
    return np.clip(np.round(np.exp(rng.normal(2.2, 0.8, size=num_users))), 1, 80).astype(int)


ACCURACIES: dict[str, tuple[float, float, Sizes]] = {
    "60 % ± 15, 2 to 30 pairs": (0.60, 0.15, even_sizes),
    "85 % ± 12, 2 to 30 pairs": (0.85, 0.12, even_sizes),
    "97 % ± 4, 2 to 30 pairs": (0.97, 0.04, even_sizes),
    "97 % ± 8, 2 to 30 pairs": (0.97, 0.08, even_sizes),
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


def student(outcomes: np.ndarray, users: np.ndarray) -> tuple[float, float]:
    """t around the value, cut at 0 and 1."""
    found = macro_parts([outcomes[:, None]], [users])
    half = t.ppf(0.975, found.layout.degrees) * float(np.sqrt(found.variances[0]))
    value = float(found.values[0])
    return max(0.0, value - half), min(1.0, value + half)


def coverage(number: int, seed: int) -> None:
    print(
        "| users' accuracy and pairs | users | t, cut | used | its width, points |\n"
        "|---|---|---|---|---|"
    )
    for name, (mean, spread, sizes) in ACCURACIES.items():
        for num_users in NUM_USERS:
            rng = np.random.default_rng(1_000 * seed)
            held, width = np.zeros(2), 0.0
            for _ in range(number):
                skill = skills(rng, num_users, mean, spread)
                outcomes, users = simulated(rng, sizes(rng, num_users), skill)
                used = accuracy(outcomes, users)
                width += used.high - used.low
                ends = student(outcomes, users), (used.low, used.high)
                held += [low <= mean <= high for low, high in ends]
            shares = " | ".join(f"{100 * share:.1f}" for share in held / number)
            print(f"| {name} | {num_users} | {shares} | {100 * width / number:.0f} |", flush=True)


def paired(number: int, seed: int) -> None:
    print("\n| two equal models | users | false alarms (p <= 0.05, and 0 outside the interval) |")
    print("|---|---|---|")
    for name, (differing, lean, sizes) in DIFFERENCES.items():
        for num_users in NUM_USERS:
            rng = np.random.default_rng(1 + 1_000 * seed)
            alarms = 0
            for _ in range(number):
                leans = leanings(rng, num_users, lean)
                models = two_models(rng, sizes(rng, num_users), differing, leans)
                alarms += verdict(paired_difference(*models)) in ("better", "worse")
            print(f"| {name} | {num_users} | {100 * alarms / number:.1f} |", flush=True)


def unequal(number: int, seed: int) -> None:
    """A true difference: the same for everyone, or made by a few users who lose far more."""
    print("\n| one model is worse by | users | its interval holds that |\n|---|---|---|")
    for name, share, loss in (
        ("5 points for everyone", 1.0, 0.05),
        ("30 points for one user in five", 0.2, 0.3),
        ("60 points for one user in twelve", 1 / 12, 0.6),
    ):
        for num_users in NUM_USERS[1:]:
            rng = np.random.default_rng(8 + 1_000 * seed)
            held = 0
            for _ in range(number):
                ours, theirs, users = two_models(
                    rng, even_sizes(rng, num_users), 0.07, np.zeros(num_users)
                )
                losing = rng.random(num_users) < share
                lost = losing[users] & (rng.random(len(users)) < loss)
                found = paired_difference(ours & ~lost, theirs | lost, users)
                held += found.low <= -share * loss <= found.high
            print(f"| {name} | {num_users} | {100 * held / number:.1f} |", flush=True)


def macro(number: int, seed: int) -> None:
    """Means over seven cultures: of different people, one of them alone, the same questions."""
    print("\n| macro mean of 7 cultures | holds the truth | false alarms at 5 % |\n|---|---|---|")
    for name, counts, shared in (
        ("10 users each", [10] * 7, False),
        ("3 users each", [3] * 7, False),
        ("10 users in six, one in the seventh", [*[10] * 6, 1], False),
        ("2 users in two, one in five", [2, 2, 1, 1, 1, 1, 1], False),
        ("30 questions, the same in all", [30] * 7, True),
    ):
        rng = np.random.default_rng(2 + 1_000 * seed)
        held = alarms = 0
        for _ in range(number):
            sizes = [even_sizes(rng, count) for count in counts]
            # A question is as hard, and leans as far, in every culture; people are their own.
            skill = [skills(rng, count, 0.6, 0.15) for count in counts]
            lean = [leanings(rng, count, 0.2) for count in counts]
            own = 0 if shared else 1
            drawn = [simulated(rng, one, skill[own * c]) for c, one in enumerate(sizes)]
            models = [two_models(rng, one, 0.15, lean[own * c]) for c, one in enumerate(sizes)]
            users = [users + 1_000 * own * c for c, (_, users) in enumerate(drawn)]
            found = macro_mean([right for right, _ in drawn], users)
            held += found.low <= 0.6 <= found.high
            ours, theirs = [ours for ours, _, _ in models], [theirs for _, theirs, _ in models]
            alarms += macro_difference(ours, theirs, users).p_value <= 0.05
        print(f"| {name} | {100 * held / number:.1f} | {100 * alarms / number:.1f} |", flush=True)


def seeds(number: int, seed: int) -> None:
    """Seeds that move everyone's accuracy alike: averaged first, and as a layer of chance."""
    print(
        "\n| cultures of 13 users, seeds, their sd in points | averaged: false alarms | "
        "as a layer: false alarms |\n|---|---|---|"
    )
    for num_cultures, num_seeds, sd in (
        *((1, count, 0.05) for count in (2, 3, 5)),
        *((7, count, 0.05) for count in (2, 3, 4, 5)),
        (7, 2, 0.0),
    ):
        rng = np.random.default_rng(3 + 1_000 * seed)
        counts = np.zeros(2)
        for _ in range(number):
            moved = sd * rng.standard_normal(num_seeds)
            outcomes, rivals, clusters = [], [], []
            for culture in range(num_cultures):
                users = np.repeat(np.arange(13), even_sizes(rng, 13))
                hard = rng.beta(6, 4, size=13)[users] * 0.8 + 0.1
                rivals.append(rng.random(len(users)) < hard)
                outcomes.append(rng.random((len(users), num_seeds)) < hard[:, None] + moved)
                clusters.append(users + 100 * culture)
            for place, ours in enumerate(([o.mean(axis=1) for o in outcomes], outcomes)):
                found = macro_difference(ours, rivals, clusters, one_training=True)
                counts[place] += found.p_value <= 0.05
        shown = " | ".join(f"{100 * count / number:.1f}" for count in counts)
        print(f"| {num_cultures}, {num_seeds}, {100 * sd:.0f} | {shown} |", flush=True)


def equal_models(
    rng: np.random.Generator, cultures: int, users: int, models: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Per culture, outcomes of models that differ on about 7 % of the pairs, and users."""
    outcomes, clusters = [], []
    for culture in range(cultures):
        labels = np.repeat(np.arange(users), 15)
        taste = np.clip(rng.normal(0.6, 0.1, users), 0, 1)[labels, None]
        own, common = rng.random((len(labels), models)), rng.random((len(labels), 1))
        draws = np.where(rng.random(own.shape) < 0.15, own, common)
        outcomes.append((draws < taste).astype(float))
        clusters.append(labels + 1_000 * culture)
    return outcomes, clusters


def best_of_many(number: int, seed: int) -> None:
    """Of equal models, how often any is called behind the one that came out best."""
    print("\n| equal models | cultures, users each | each by itself | all at once |")
    print("|---|---|---|---|")
    for models, cultures, users in (
        (6, 1, 4),
        (12, 1, 8),
        (6, 1, 25),
        (20, 1, 25),
        (12, 3, 13),
        (50, 3, 13),
    ):
        rng = np.random.default_rng(5 + 1_000 * seed)
        counts = np.zeros(2)
        for _ in range(number):
            outcomes, clusters = equal_models(rng, cultures, users, models)
            score = measured(outcomes, clusters, [[{}] * models] * cultures)
            alone = score.minus(score, int(score.values.argmax()), level=0.05)
            together = score.behind_best("max", samples=SAMPLES, rng=rng)
            counts += [
                any(verdict(found) == "worse" for found in several if found)
                for several in (alone, together)
            ]
        shown = " | ".join(f"{100 * count / number:.1f}" for count in counts)
        print(f"| {models} | {cultures}, {users} | {shown} |", flush=True)


def lowest(number: int, seed: int) -> None:
    print("\n| lowest of 7 equal cultures (60 %), users each | as it is | said | interval holds |")
    print("|---|---|---|---|")
    for users in (4, 8, 13, 40):
        rng = np.random.default_rng(6 + 1_000 * seed)
        plain, said, held = [], [], []
        for _ in range(number):
            outcomes, clusters = equal_models(rng, 7, users, 1)
            pairs = zip(outcomes, clusters, strict=True)
            alone = tuple(measured([o], [c], [[{}]]) for o, c in pairs)
            [found] = Lowest(alone).estimates()
            plain.append(min(float(culture.values[0]) for culture in alone))
            said.append(found.value)
            held.append(found.low <= 0.6 <= found.high)
        shown = " | ".join(f"{100 * np.mean(values):.1f}" for values in (plain, said, held))
        print(f"| {users} | {shown} |", flush=True)


def power(number: int, seed: int) -> None:
    print(
        "\n| users, pairs that differ | smallest difference to be shown, points | shown |\n"
        "|---|---|---|"
    )
    for num_users in NUM_USERS[5:]:
        for differing, lean in ((0.2, 0.2), (0.4, 0.1)):
            rng = np.random.default_rng(4 + 1_000 * seed)
            sizes = even_sizes(rng, num_users)
            gain = detectable_difference(
                sizes, differing_share=differing, correlation=4 * differing * lean**2
            )
            shown = 0
            for _ in range(number):
                leans = leanings(rng, num_users, lean)
                models = two_models(rng, sizes, differing, leans, gain)
                shown += paired_difference(*models).p_value <= 0.05
            cells = f"{100 * gain:.1f} | {100 * shown / number:.1f}"
            print(f"| {num_users}, {100 * differing:.0f} % | {cells} |", flush=True)


def large(number: int, seed: int) -> None:
    """How long a million test pairs of as many users take, whatever `number` is."""
    rng, users = np.random.default_rng(7 + 1_000 * seed), np.arange(1_000_000)
    ours, theirs = rng.random(len(users)) < 0.61, rng.random(len(users)) < 0.6
    print("\n| a million pairs of as many users | CPU seconds |\n|---|---|")
    for name, measure in (
        ("accuracy", partial(accuracy, ours, users)),
        ("paired difference", partial(paired_difference, ours, theirs, users)),
        ("macro mean of two such", partial(macro_mean, [ours, theirs], [users, users])),
    ):
        started = time.process_time()
        measure()
        print(f"| {name} | {time.process_time() - started:.1f} |", flush=True)


PARTS = {
    part.__name__: part
    for part in (coverage, paired, unequal, macro, seeds, best_of_many, lowest, power, large)
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cultures", type=int, nargs="?", default=2_000)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="part")
    parser.add_argument("--seed", type=int, default=0, help="another one draws others")
    asked = parser.parse_args()
    print(f"{asked.cultures:,} simulated cultures (or sets of seven) per line, in %\n")
    for name in asked.parts:
        PARTS[name](asked.cultures, asked.seed)


if __name__ == "__main__":
    main()
