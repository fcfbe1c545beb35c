import numpy as np
import pytest

from scpo_ray.statistics.cluster_variance import SeedVariance, macro_seed_variance
from scpo_ray.statistics.intervals import accuracy, paired_difference, verdict
from scpo_ray.statistics.joint_scores import Lowest, measured, ranking

TWO_SEEDS = SeedVariance(0.04, 0.04**2)


def cultures(rng: np.random.Generator, number: int, users: int, models: int, differ: float = 0.15):
    """Equal models (60 %) of as many users each, which differ by chance alone."""
    outcomes, clusters = [], []
    for culture in range(number):
        labels = np.repeat(np.arange(users), 15)
        taste = np.clip(rng.normal(0.6, 0.1, users), 0, 1)[labels, None]
        own, common = rng.random((len(labels), models)), rng.random((len(labels), 1))
        draws = np.where(rng.random(own.shape) < differ, own, common)
        outcomes.append((draws < taste).astype(float))
        clusters.append(labels + 1_000 * culture)
    return outcomes, clusters


def test_several_models_have_the_numbers_of_each_by_itself():
    outcomes, clusters = cultures(np.random.default_rng(0), 1, 12, 3)
    score = measured(outcomes, clusters, [[{}] * 3])

    by_itself = [accuracy(outcomes[0][:, place], clusters[0]) for place in range(3)]
    differences = [
        paired_difference(outcomes[0][:, place], outcomes[0][:, 1], clusters[0])
        for place in range(3)
    ]

    assert score.estimates() == [pytest.approx(e) for e in by_itself] or all(
        (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))
        for one, other in zip(score.estimates(), by_itself, strict=True)
    )
    for one, other in zip(score.minus(score, 1, level=0.05), differences, strict=True):
        assert (one.value, one.low, one.high) == pytest.approx(
            (other.value, other.low, other.high), abs=1e-9
        )


@pytest.mark.parametrize(("number", "users", "models"), [(1, 6, 6), (1, 25, 12), (1, 25, 40)])
def test_of_equal_models_one_is_called_behind_the_best_at_most_one_time_in_twenty(
    number, users, models
):
    rng = np.random.default_rng(5)
    alarms = []
    for _ in range(150):
        outcomes, clusters = cultures(rng, number, users, models)
        behind = measured(outcomes, clusters, [[{}] * models] * number).behind_best(
            "max", samples=400, rng=rng
        )
        alarms.append(any(verdict(found) == "worse" for found in behind if found))

    # 0.05, and three standard errors of 150 cases.
    assert np.mean(alarms) < 0.05 + 3 * 0.018


def test_models_that_go_together_are_fewer_chances_of_a_lucky_best():
    rng = np.random.default_rng(2)
    [apart], clusters = cultures(rng, 1, 60, 12)
    [few], _ = cultures(rng, 1, 60, 3)
    flips = rng.random(apart.shape) < 0.01
    alike = np.abs(np.repeat(few, 4, axis=1) - flips)

    def level(outcomes: np.ndarray) -> float:
        score = measured([outcomes], clusters, [[{}] * outcomes.shape[1]])
        return score.simultaneous_level(0.05, samples=4_000, rng=rng)

    bonferroni = 0.05 / 66
    assert bonferroni < level(apart) < level(alike) < level(few) < level(few[:, :2]) == 0.05


def test_a_model_that_is_far_worse_is_behind_whatever_else_was_tried():
    rng = np.random.default_rng(1)
    outcomes, clusters = cultures(rng, 2, 20, 10)
    outcomes = [np.column_stack([columns, 0 * columns[:, 0]]) for columns in outcomes]

    behind = measured(outcomes, clusters, [[{}] * 11] * 2).behind_best("max", samples=400, rng=rng)

    assert verdict(behind[-1]) == "worse"
    assert sum(found is None for found in behind) == 1


def test_few_seeds_that_outweigh_the_users_take_the_interval_further_out():
    # A method as good as its rival; three seeds move everyone by 5 points, 100 users differ by 1.4.
    rng = np.random.default_rng(3)
    held = []
    for _ in range(200):
        users = np.repeat(np.arange(100), rng.integers(2, 31, size=100))
        hard = 0.8 * rng.beta(6, 4, size=100)[users] + 0.1
        rival = rng.random(len(users)) < hard
        skill = hard[:, None] + 0.05 * rng.standard_normal(3)
        seeds = rng.random((len(users), 3)) < skill
        both = np.column_stack([seeds.mean(axis=1), rival])
        variance = macro_seed_variance([seeds], [users])
        scores = [measured([both], [users], [[of, {}]]) for of in ({}, {"": variance})]
        found = [score.minus(score, 1, level=0.05)[0] for score in scores]
        held.append([one.low <= 0 <= one.high for one in found])

    before, after = np.mean(held, axis=0)
    assert before < 0.87 and after > 0.93


@pytest.mark.parametrize(
    ("trainings", "value", "degrees"), [(("a", "b"), 0.02, 2), (("a", "a"), 0.04, 1)]
)
def test_one_training_for_two_cultures_has_its_own_degrees_of_freedom(trainings, value, degrees):
    clusters = [np.arange(8), np.arange(8, 16)]
    seeds = [[{training: TWO_SEEDS}] for training in trainings]

    [spread] = measured([np.eye(8)[:, :1]] * 2, clusters, seeds).spreads

    assert spread.seeds.value == pytest.approx(value)
    assert spread.seeds.degrees == pytest.approx(degrees)


@pytest.mark.parametrize("users", [5, 13])
def test_the_lowest_of_equal_cultures_is_not_said_to_be_lower_than_they_are(users: int):
    rng = np.random.default_rng(4)
    values, held = [], []
    for _ in range(150):
        outcomes, clusters = cultures(rng, 7, users, 1)
        alone = [
            measured([columns], [labels], [[{}]])
            for columns, labels in zip(outcomes, clusters, strict=True)
        ]
        [found] = Lowest(tuple(alone)).estimates()
        values.append(found.value)
        held.append(found.low <= 0.6 <= found.high)

    # As it stands, the lowest of seven lies 4 to 8 points below.
    assert np.mean(values) == pytest.approx(0.6, abs=0.015)
    assert np.mean(held) > 0.93


def test_where_one_culture_is_clearly_the_lowest_it_is_its_own_number():
    low, high = np.tile([1.0, 0, 0, 0, 0], 40)[:, None], np.tile([1.0, 1, 1, 1, 0], 40)[:, None]
    users = [np.arange(200) // 5 % 20 * 1.0, np.arange(200) // 5 % 20 + 100.0]
    low[::7], high[::9] = 0, 1
    alone = [measured([c], [u], [[{}]]) for c, u in zip((low, high), users, strict=True)]

    [found] = Lowest(tuple(alone)).estimates()

    assert found.value == pytest.approx(low.mean())


def test_a_lowest_culture_that_is_worse_everywhere_is_behind():
    rng = np.random.default_rng(2)
    outcomes, clusters = cultures(rng, 3, 20, 1)
    alone = [
        measured([np.column_stack([columns, 0 * columns])], [labels], [[{}] * 2])
        for columns, labels in zip(outcomes, clusters, strict=True)
    ]

    best, worse = Lowest(tuple(alone)).behind_best("max", samples=200, rng=rng)

    assert best is None and verdict(worse) == "worse"


def test_what_rounding_sets_apart_ranks_as_it_stands():
    assert ranking([0.1 + 0.2, 0.3, None, 0.5], mode="max") == [3, 0, 1, 2]
    assert ranking([0.1 + 0.2, 0.3, None, 0.5], mode="min") == [0, 1, 3, 2]
