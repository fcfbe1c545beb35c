"""How often the 95 % interval holds the truth, and the paired test raises a false alarm.

`python benchmarks/interval_coverage.py [CULTURES]` simulates that many cultures per line: every
user has 2 to 30 pairs and an accuracy of their own (mean 60 %, standard deviation 15 points), so a
user's pairs are correlated. The two models of the paired test are equally good for everyone.
"""

import sys

import numpy as np

from scpo_ray.metrics import accuracy, macro_mean, paired_difference

MEAN, SPREAD = 0.6, 0.15
SAMPLES = 1_000


def simulated(rng: np.random.Generator, num_users: int) -> tuple[np.ndarray, ...]:
    """(P,) outcomes of two models alike, and (P,) users."""
    shape = MEAN * (1 - MEAN) / SPREAD**2 - 1
    skill = rng.beta(MEAN * shape, (1 - MEAN) * shape, size=num_users)
    users = np.repeat(np.arange(num_users), rng.integers(2, 31, size=num_users))
    ours, theirs = (rng.random(len(users)) < skill[users] for _ in range(2))
    return ours, theirs, users


def covered(rng: np.random.Generator, num_users: int, num_cultures: int) -> bool:
    drawn = [simulated(rng, num_users) for _ in range(num_cultures)]
    # Users of different cultures are different people.
    users = [users + 1_000 * culture for culture, (_, _, users) in enumerate(drawn)]
    outcomes = [ours for ours, _, _ in drawn]
    if num_cultures == 1:
        estimate = accuracy(outcomes[0], users[0], samples=SAMPLES, rng=rng)
    else:
        estimate = macro_mean(outcomes, users, samples=SAMPLES, rng=rng)
    return bool(estimate.low <= MEAN <= estimate.high)


def false_alarm(rng: np.random.Generator, num_users: int) -> bool:
    ours, theirs, users = simulated(rng, num_users)
    difference = paired_difference(ours, theirs, users, samples=100, rng=rng)
    return bool(difference.p_value <= 0.05)


def main(number: int) -> None:
    print(f"{number:,} simulated cultures (or sets of seven) per line\n")
    print("| users | the 95 % interval covers | false alarms at 5 % |")
    print("|---|---|---|")
    rng = np.random.default_rng(0)
    for num_users in (8, 13, 40, 100):
        share = np.mean([covered(rng, num_users, 1) for _ in range(number)])
        alarms = np.mean([false_alarm(rng, num_users) for _ in range(number)])
        print(f"| {num_users} | {100 * share:.1f} % | {100 * alarms:.1f} % |", flush=True)
    share = np.mean([covered(rng, 10, 7) for _ in range(number)])
    print(f"| macro mean of 7 cultures with 10 each | {100 * share:.1f} % | |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) == 2 else 2_000)
