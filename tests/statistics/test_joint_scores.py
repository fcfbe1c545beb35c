import numpy as np
import pytest

from scpo_ray.statistics.cluster_variance import SeedVariance, macro_seed_variance
from scpo_ray.statistics.intervals import draw_clusters, percentile_intervals
from scpo_ray.statistics.joint_scores import (
    SeedNoise,
    added,
    lowest,
    replicated,
    shared,
    with_seeds,
)

TWO_SEEDS = SeedVariance(0.04, 0.04**2)


def test_few_seeds_that_outweigh_the_users_take_the_interval_further_out():
    # A method as good as its rival; three seeds move everyone by 5 points, 100 users differ by 1.4.
    rng = np.random.default_rng(3)
    held = []
    for _ in range(300):
        users = np.repeat(np.arange(100), rng.integers(2, 31, size=100))
        hard = 0.8 * rng.beta(6, 4, size=100)[users] + 0.1
        rival = rng.random(len(users)) < hard
        skill = hard[:, None] + 0.05 * rng.standard_normal(3)
        seeds = rng.random((len(users), 3)) < skill
        [draws] = draw_clusters([users], samples=200, rng=rng)
        score = replicated(np.column_stack([seeds.mean(axis=1), rival]), users, draws)
        variance = macro_seed_variance([seeds], [users])
        score = with_seeds(score, {0: SeedNoise("", variance, rng)})

        [difference, _] = score.minus(score, 1)

        replicates = score.replicates[:, :1] - score.replicates[:, 1:]
        users_alone = percentile_intervals(replicates, score.freedom.tail)[:, 0]
        intervals = users_alone, (difference.low, difference.high)
        held.append([low <= 0 <= high for low, high in intervals])

    before, after = np.mean(held, axis=0)
    assert before < 0.87 and after > before + 0.03


@pytest.mark.parametrize(
    ("trainings", "value", "degrees"), [(("a", "b"), 0.02, 2), (("a", "a"), 0.04, 1)]
)
def test_one_training_for_two_cultures_has_its_own_degrees_of_freedom(trainings, value, degrees):
    rng = np.random.default_rng(0)
    clusters = [np.arange(8), np.arange(8, 16)]
    total = None
    for training, labels, draws in zip(
        trainings, clusters, draw_clusters(clusters, samples=50, rng=rng), strict=True
    ):
        score = replicated(np.eye(8)[:, :1], labels, draws)
        total = added(total, with_seeds(score, {0: SeedNoise(training, TWO_SEEDS, rng)}))

    [seeds] = shared(total, 2, clusters).seeds

    assert sum(part.value for part in seeds.values()) == pytest.approx(value)
    assert sum(part.squares for part in seeds.values()) == pytest.approx(value**2 / degrees)


def test_the_lowest_culture_has_the_seeds_that_vary_most():
    rng = np.random.default_rng(0)
    [draws] = draw_clusters([np.arange(8)], samples=50, rng=rng)
    score = replicated(np.eye(8)[:, :1], np.arange(8), draws)
    moved = with_seeds(score, {0: SeedNoise("a", TWO_SEEDS, rng)})

    assert lowest(lowest(None, score), moved).seeds == ({"a": TWO_SEEDS},)
    assert lowest(moved, score).tails < score.tails
