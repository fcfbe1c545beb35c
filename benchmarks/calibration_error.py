"""What chance makes of a calibration error, and how often its interval holds the truth.

`python benchmarks/calibration_error.py [TEST SETS]` draws that many test sets per line: users with
2 to 30 pairs each, whose preferences follow a model's margins more or less closely (the slope: 1 is
calibrated, below 1 the model is too sure) and each in their own measure (its spread).
"""

import sys

import numpy as np
from scipy.special import expit

from scpo_ray.evaluation.calibration import (
    calibration_error,
    debiased_calibration_error,
)

USERS = (2, 4, 8, 13, 40, 200)
WORLDS = {
    "calibrated": (1.0, 0.0),
    "calibrated on average": (1.0, 0.5),
    "too sure": (0.6, 0.3),
    "far too sure": (0.25, 0.3),
}
NUM_TRUTH_USERS = 30_000


def drawn(
    rng: np.random.Generator, num_users: int, slope: float, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """(P,) the model's margins of the preferred over the other response, and users."""
    users = np.repeat(np.arange(num_users), rng.integers(2, 31, num_users))
    margins = 1.5 * rng.standard_normal(len(users))
    own = slope * np.exp(spread * rng.standard_normal(num_users))[users]
    first_wins = rng.random(len(users)) < expit(own * margins)
    return np.where(first_wins, margins, -margins), users


def truth(slope: float, spread: float) -> tuple[float, float]:
    """The expected and the root mean square calibration error, from half a million pairs."""
    margins, users = drawn(np.random.default_rng(2), NUM_TRUTH_USERS, slope, spread)
    return calibration_error(margins), debiased_calibration_error(margins, users).value


def main(number: int) -> None:
    print(
        "| model | users | true ECE | ECE | true root mean square | without chance, root of mean | "
        "interval holds it, % |\n|---|---|---|---|---|---|---|"
    )
    for name, world in WORLDS.items():
        expected, root = truth(*world)
        for num_users in USERS:
            rng = np.random.default_rng(1)
            plain, square, held = [], [], []
            for _ in range(number):
                margins, users = drawn(rng, num_users, *world)
                found = debiased_calibration_error(margins, users)
                plain.append(calibration_error(margins))
                square.append(found.value**2)
                held.append(found.low <= root <= found.high)
            cells = [100 * x for x in (expected, np.mean(plain), root, np.sqrt(np.mean(square)))]
            shown = " | ".join(f"{cell:.1f}" for cell in cells)
            print(f"| {name} | {num_users} | {shown} | {100 * np.mean(held):.1f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) == 2 else 500)
