"""How much of `distinctive` can be right at all, where the tastes behind the data are known.

`python benchmarks/distinctive_ceiling.py` generates cultures whose taste lies further and further
from the majority's and whose people agree less and less with each other. The global model ranks as
the majority's true taste, the best model of a culture as the culture's; nothing is trained. Beside
it: the global model plus noise as large as the change from one to the other.
"""

import numpy as np

from scpo_ray.data.synthetic import SyntheticConfig, margins_of_culture
from scpo_ray.evaluation.metrics import noise_outcomes

NUM_USERS = 300


def main() -> None:
    print(
        "| taste distance | own noise, outliers | distinctive pairs | right at best: distinctive |"
        " agreed | all | noise of that size: distinctive | agreed | all |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for distance in (0.0, 0.25, 0.5, 1.0, 1.5):
        for noise, outliers in ((0.0, 0.0), (0.3, 0.1), (0.6, 0.1), (0.3, 0.3)):
            config = SyntheticConfig(
                source="synthetic",
                users={"Majority": 1, "A": NUM_USERS},
                taste_distance=distance,
                person_noise=noise,
                outlier_share=outliers,
            )
            found = margins_of_culture(config, "A")
            distinctive = found.majority <= 0
            by_noise = noise_outcomes(found.majority, found.culture)
            shares = [
                f"{100 * right[mask].mean():.1f}" if mask.any() else "\N{EN DASH}"
                for right in (found.culture > 0, by_noise)
                for mask in (distinctive, ~distinctive, np.ones_like(distinctive))
            ]
            print(
                f"| {distance:g} | {noise:g}, {100 * outliers:.0f} % | "
                f"{100 * distinctive.mean():.1f} | {' | '.join(shares)} |"
            )


if __name__ == "__main__":
    main()
