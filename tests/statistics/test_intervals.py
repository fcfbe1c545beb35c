import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t

from scpo_ray.results import Difference, Estimate
from scpo_ray.statistics.cluster_variance import (
    SeedVariance,
    cluster_layout,
    macro_parts,
    macro_seed_variance,
)
from scpo_ray.statistics.intervals import (
    Spread,
    accuracy,
    detectable_difference,
    holm,
    macro_difference,
    macro_mean,
    paired_difference,
    standing,
    stream,
    verdict,
    with_holm,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_accuracy_is_the_mean_over_pairs_and_counts_pairs_and_clusters():
    outcomes = np.array([1, 1, 0, 1, 0.5])
    clusters = np.array(["ann", "ann", "ann", "bo", "bo"])

    estimate = accuracy(outcomes, clusters)

    assert estimate.value == pytest.approx(3.5 / 5)
    assert (estimate.num_pairs, estimate.num_clusters) == (5, 2)
    assert 0 <= estimate.low < 3.5 / 5 < estimate.high <= 1


def test_one_cluster_has_a_value_but_no_interval():
    estimate = accuracy(np.array([1, 0]), np.array([7, 7]))

    assert (estimate.value, estimate.low, estimate.high) == (0.5, None, None)


def test_no_pair_has_no_value():
    estimate = accuracy(np.empty(0), np.empty(0, dtype=int))

    assert (estimate.value, estimate.low, estimate.high, estimate.num_pairs) == (
        None,
        None,
        None,
        0,
    )


def test_nan_outcomes_are_an_error():
    with pytest.raises(ValueError, match="outcomes must be finite, got nan at 1"):
        accuracy(np.array([1, math.nan]), np.array([0, 1]))


def test_outcomes_without_their_cluster_are_an_error():
    with pytest.raises(ValueError, match=r"must be \(B,\) alike, got \[\(2,\)\], \[\(1,\)\]"):
        accuracy(np.ones(2), np.ones(1))


def test_intervals_widen_when_pairs_come_in_clusters():
    outcomes = np.repeat([1, 0], 100)

    alone = accuracy(outcomes, np.arange(200))
    together = accuracy(outcomes, np.arange(200) // 20)

    assert alone.low is not None and together.low is not None
    assert alone.low == pytest.approx(0.5 - 1.96 * 0.5 / math.sqrt(200), abs=0.02)
    assert together.low < alone.low - 0.1


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_the_interval_lies_in_0_to_1_and_does_not_depend_on_the_pairs_order(rows):
    clusters, outcomes = (np.array(column) for column in zip(*rows, strict=True))
    order = np.random.default_rng(1).permutation(len(rows))

    estimate = accuracy(outcomes, clusters)

    assert estimate == accuracy(outcomes[order], clusters[order])
    if estimate.low is not None and estimate.high is not None:
        assert 0 <= estimate.low <= estimate.high <= 1


def test_a_paired_difference_removes_what_the_models_share():
    generator = rng()
    clusters = np.repeat(np.arange(10), 20)
    rival = generator.random(200) < np.repeat(generator.random(10), 20)
    ours = rival.copy()
    ours[::20] = True  # one pair of every user, at most, becomes right

    difference = paired_difference(ours, rival, clusters)
    alone = accuracy(ours, clusters)

    assert difference.value == pytest.approx(ours.mean() - rival.mean())
    assert None not in (difference.low, difference.high, alone.low, alone.high)
    assert difference.high - difference.low < (alone.high - alone.low) / 4


def test_a_difference_that_cancels_but_for_rounding_has_p_1():
    ours, rival = np.array([0.1 + 0.2, 0.0]), np.array([0.0, 0.3])

    difference = paired_difference(ours, rival, np.arange(2))

    assert difference.p_value == 1.0


@pytest.mark.parametrize(("num_pairs", "value"), [(0, None), (2, 1.0)])
def test_fewer_than_two_clusters_carry_no_test(num_pairs: int, value: float | None):
    difference = paired_difference(
        np.ones(num_pairs), np.zeros(num_pairs), np.zeros(num_pairs, dtype=int)
    )

    assert difference == Difference(value, None, None, None, None, num_pairs, min(num_pairs, 1))


def test_cultures_count_alike_in_the_macro_mean():
    outcomes = [np.ones(90), np.zeros(10)]
    clusters = [np.arange(90), np.arange(100, 110)]

    estimate = macro_mean(outcomes, clusters)

    # No user differs from another of their culture: what was never seen widens it, alike both ways.
    assert estimate.value == 0.5
    assert estimate.low == pytest.approx(1 - estimate.high) and 0.43 < estimate.low < 0.45
    assert (estimate.num_pairs, estimate.num_clusters) == (100, 100)


def test_a_shared_question_moves_all_its_cultures_at_once():
    outcomes = np.repeat([1, 0], 50)
    shared = [np.arange(100)] * 4
    apart = [np.arange(100) + 1_000 * culture for culture in range(4)]

    together = macro_mean([outcomes] * 4, shared)
    separate = macro_mean([outcomes] * 4, apart)

    # Four cultures that repeat one another halve no error; four independent ones do.
    assert (together.num_clusters, separate.num_clusters) == (100, 400)
    assert together.high - together.low == pytest.approx(2 * 1.96 * 0.05, rel=0.1)
    assert separate.high - separate.low == pytest.approx(1.96 * 0.05, rel=0.1)


@pytest.mark.parametrize("outcomes", [[np.ones(3), np.empty(0)], []])
def test_a_macro_mean_that_lacks_a_culture_has_no_value(outcomes: list[np.ndarray]):
    clusters = [np.arange(len(outcome)) for outcome in outcomes]

    estimate = macro_mean(outcomes, clusters)
    difference = macro_difference(outcomes, outcomes, clusters)

    assert (estimate.value, estimate.low, estimate.high) == (None, None, None)
    assert (difference.value, difference.low, difference.p_value) == (None, None, None)


def test_holm_multiplies_the_smallest_by_all_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), 0.06]


def test_holm_does_not_count_tests_that_were_not_made():
    assert holm([None, 0.02, None, 0.5]) == [None, 0.04, None, 0.5]
    assert holm([]) == []


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_p_value(p: float):
    with pytest.raises(ValueError, match=r"a p-value must be in \[0, 1\], got"):
        holm([p])


@given(st.lists(st.none() | st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_and_lies_between_raw_and_bonferroni(p_values):
    corrected = holm(p_values)

    known = [(p, c) for p, c in zip(p_values, corrected, strict=True) if p is not None]
    assert [c is None for c in corrected] == [p is None for p in p_values]
    assert all(p <= c <= min(1, len(known) * p) + 1e-12 for p, c in known)
    assert [c for _, c in sorted(known)] == sorted(c for _, c in known)


def test_with_holm_sets_the_corrected_p_value_alone():
    differences = [Difference(0.1, 0.0, 0.2, p, None, 9, 3) for p in (0.01, 0.2)]

    corrected = with_holm(differences)

    assert [d.p_holm for d in corrected] == [0.02, 0.2]
    assert [(d.value, d.p_value) for d in corrected] == [(0.1, 0.01), (0.1, 0.2)]


def test_streams_depend_on_the_seed_and_on_each_name():
    names = [(0, "a", "b"), (0, "ab"), (0, "b", "a"), (1, "a", "b"), (0, "\ud800")]

    draws = {stream(seed, *rest).random() for seed, *rest in names}

    assert len(draws) == len(names)
    assert stream(0, "a", "b").random() == stream(0, "a", "b").random()


def test_ten_thousand_clusters_give_the_interval_of_independent_pairs():
    generator = rng()
    clusters = generator.integers(10_000, size=50_000)
    outcomes = generator.random(50_000) < 0.6

    estimate = accuracy(outcomes, clusters)

    assert estimate.low == pytest.approx(0.6 - 1.96 * math.sqrt(0.24 / 50_000), abs=0.005)


def simulated(generator: np.random.Generator, num_users: int) -> tuple[np.ndarray, ...]:
    """Two models that are equally good (62 %), on users with tastes and activity of their own."""
    users = np.repeat(np.arange(num_users), generator.integers(2, 31, size=num_users))
    tastes = generator.beta(6.2, 3.8, size=(2, num_users))
    ours, theirs = generator.random((2, len(users))) < tastes[:, users]
    return ours, theirs, users


@pytest.mark.parametrize("num_users", [2, 3, 5, 8, 13, 40])
def test_intervals_hold_the_truth_in_at_least_93_of_100_cases(num_users):
    generator = np.random.default_rng(3)
    held = []
    for _ in range(500):
        ours, _, users = simulated(generator, num_users)
        estimate = accuracy(ours, users)
        held.append(estimate.low <= 0.62 <= estimate.high)

    # Of few users' discrete outcomes no interval holds exactly 95; it must not be fewer.
    assert 0.93 < np.mean(held) < (0.97 if num_users >= 13 else 1)


@pytest.mark.parametrize("num_users", [2, 5, 8, 13, 40])
def test_equal_models_are_called_different_at_most_about_one_time_in_twenty(num_users):
    generator = np.random.default_rng(4)
    alarms = []
    for _ in range(500):
        ours, theirs, users = simulated(generator, num_users)
        difference = paired_difference(ours, theirs, users)
        alarms.append(difference.p_value <= 0.05)
        assert alarms[-1] == (verdict(difference) in ("better", "worse"))

    assert np.mean(alarms) < 0.07


# The smaller the shape, the more users are at 100 % and the farther below are the few others.
@pytest.mark.parametrize(("num_users", "shape", "least"), [(8, 20, 0.93), (25, 3.5, 0.9)])
def test_an_accuracy_near_100_is_covered_too(num_users: int, shape: float, least: float):
    generator = np.random.default_rng(6)
    held = []
    for _ in range(500):
        users = np.repeat(np.arange(num_users), generator.integers(2, 31, size=num_users))
        taste = generator.beta(0.97 * shape, 0.03 * shape, size=num_users)
        estimate = accuracy(generator.random(len(users)) < taste[users], users)
        held.append(estimate.low <= 0.97 <= estimate.high)

    assert np.mean(held) > least


def test_a_share_trusts_its_variance_less_where_one_user_makes_it():
    users = np.repeat(np.arange(20), 10)
    layout = cluster_layout(np.full((20, 1), 10.0))
    place = np.tile(np.arange(10), 20)
    even, lonely = (place > 1) | (users % 2 == 0), users > 0

    of_even, of_lonely = (
        Spread.of(macro_parts([right[:, None]], [users]).parts[:, 0], layout, SeedVariance(0, 0))
        for right in (even, lonely)
    )

    # Half of the users are at 80 %; or one of 20 has nearly all of the variance, so that two
    # degrees of freedom are left of 19.
    assert of_even.variance > 0
    assert (of_even.excess, of_lonely.excess) == (0, pytest.approx(0.9, abs=0.15))
    sure = replace(of_lonely, excess=0.0)
    assert of_lonely.share_ends(0.95, 0.05)[0] < sure.share_ends(0.95, 0.05)[0]
    assert of_lonely.ends(-0.05, 0.05) == sure.ends(-0.05, 0.05)


@pytest.mark.parametrize("right", [0, 1])
def test_where_every_user_has_0_or_100_the_interval_is_no_point(right: int):
    users = np.arange(8)

    estimate = accuracy(np.full(8, right), users)

    # One pair each, so 8 independent ones: Wilson at the edge, t^2 / (8 + t^2) of all unseen.
    square = t.ppf(0.975, 7) ** 2
    ends = sorted([abs(right - square / (8 + square)), float(right)])
    assert (estimate.low, estimate.high) == pytest.approx(tuple(ends))


@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-5, 1e-3])
def test_outcomes_that_are_nearly_equal_have_no_point_for_an_interval(noise):
    outcomes = 0.3 + noise * np.linspace(-1, 1, 9)
    clusters = np.repeat(np.arange(3), 3)

    exactly, found = accuracy(np.full(9, 0.3), clusters), accuracy(outcomes, clusters)
    difference = paired_difference(outcomes, np.full(9, 0.2), clusters)

    assert found.low == pytest.approx(exactly.low, abs=1e-3)
    assert found.high == pytest.approx(exactly.high, abs=1e-3)
    assert found.high - found.low > 0.2
    assert (difference.low <= 0) == (difference.p_value > 0.05)
    if noise < 1e-3:
        assert difference.low < 0 < difference.high
        assert difference.detectable is None


def test_models_that_never_differ_may_still_differ_on_pairs_that_were_not_seen():
    outcomes, users = np.array([1, 0, 1]), np.arange(3)

    difference = paired_difference(outcomes, outcomes, users)

    square = t.ppf(0.975, 2) ** 2
    assert (difference.value, difference.p_value) == (0, 1.0)
    assert difference.high == -difference.low == pytest.approx(square / (3 + square))
    assert verdict(difference) == "not distinguishable"


def test_the_interval_and_the_p_value_are_those_of_a_t_test_where_users_have_one_pair_each():
    ours, rival = np.repeat([1, 0, 1], [9, 2, 5]), np.repeat([0, 1, 1], [9, 2, 5])
    change = ours - rival

    difference = paired_difference(ours, rival, np.arange(16))

    error = change.std(ddof=1) / 4
    assert difference.p_value == pytest.approx(2 * t.sf(change.mean() / error, 15))
    assert difference.low == pytest.approx(change.mean() - t.ppf(0.975, 15) * error)


def test_the_p_value_is_the_level_whose_interval_ends_at_0_with_seeds_too():
    generator = rng()
    users = np.repeat(np.arange(20), 10)
    seeds = generator.random((200, 3)) < np.array([0.55, 0.72, 0.66])
    rival = generator.random(200) < 0.5

    found = paired_difference(seeds, rival, users)

    assert (found.p_value <= 0.05) == (found.low > 0 or found.high < 0)
    layout = cluster_layout(np.full((20, 1), 10.0))
    change = macro_parts([(seeds.mean(axis=1) - rival)[:, None]], [users])
    spread = Spread(float(change.variances[0]), layout, macro_seed_variance([seeds], [users]))
    assert spread.ends(found.value, found.p_value)[0] == pytest.approx(0, abs=1e-6)


def test_a_verdict_is_read_off_the_interval_and_unknown_without_one():
    found = {
        verdict(Difference(0.2, low, high, 0.0001, None, 9, 3))
        for low, high in ((0.1, 0.3), (-0.3, -0.1), (-0.1, 0.3), (None, None))
    }

    assert found == {"better", "worse", "not distinguishable", "unknown"}
    assert verdict(None) == verdict(Difference(None, None, None, None, None, 0, 0)) == "unknown"


def test_standing_is_that_of_the_interval_and_best_where_there_is_no_difference():
    reached, nothing = Estimate(0.6, 0.5, 0.7, 9, 3), Estimate(None, None, None, 0, 0)

    def beside(low, high):
        return standing(reached, Difference(-0.1, low, high, None, None, 9, 3))

    assert (standing(reached, None), standing(nothing, None)) == ("best", "unknown")
    assert beside(-0.2, 0.1) == "not distinguishable"
    assert beside(-0.2, -0.01) == beside(0.01, 0.2) == "behind"
    assert beside(None, None) == "unknown"


def test_a_culture_with_one_user_takes_the_variance_of_the_others_users():
    generator = rng()
    sizes = [20, 20, 20, 20, 20, 20, 1]
    clusters = [np.repeat(np.arange(n), 15) + 100 * c for c, n in enumerate(sizes)]
    rival = [generator.random(len(users)) < 0.5 for users in clusters]
    ours = [right & (generator.random(len(right)) < 0.3) for right in rival]

    whole = macro_difference(ours, rival, clusters)
    without = macro_difference(ours[:6], rival[:6], clusters[:6])

    # 65 points of difference in one of seven: its one user of 15 pairs is as uncertain as 20 of
    # the others' users, so the error of the mean grows by sqrt(1 + 20 / 6) * 6 / 7.
    assert verdict(whole) == "worse" and whole.p_value < 0.001
    width, narrower = whole.high - whole.low, without.high - without.low
    assert width == pytest.approx(narrower * 6 / 7 * math.sqrt(1 + 20 / 6), rel=0.01)


@pytest.mark.parametrize(("pairs", "factor"), [(4, 1 + 8), (16, 1 + 2), (100, 1 + 2)])
def test_what_one_user_is_taken_to_vary_by_holds_however_alike_their_pairs_are(pairs, factor):
    sizes = np.array([[16, 0], [16, 0], [0, pairs]], dtype=float)

    # Beside two users of 16 pairs: 32 / pairs as much if pairs are independent, twice if alike.
    assert cluster_layout(sizes).factor == pytest.approx(factor)


def test_where_every_culture_has_one_user_nothing_says_how_users_differ():
    found = macro_mean([np.array([1, 0])] * 2, [np.array([0, 0]), np.array([1, 1])])

    assert (found.value, found.low, found.high) == (0.5, None, None)


def test_seeds_of_one_model_for_all_cultures_are_covered():
    generator = np.random.default_rng(99)
    held = []
    for _ in range(200):
        seeds = generator.normal(0, 0.05, 2)
        outcomes, clusters = [], []
        for culture in range(4):
            users = np.repeat(np.arange(13), 12)
            taste = np.clip(generator.normal(0.6, 0.1, 13), 0.02, 0.98)[users]
            outcomes.append(generator.random((156, 2)) < taste[:, None] + seeds)
            clusters.append(users + 100 * culture)
        found = macro_mean(outcomes, clusters, one_training=True)
        held.append(found.low <= 0.6 <= found.high)

    assert np.mean(held) > 0.93


def test_degrees_of_freedom_fall_with_few_and_with_unequal_clusters():
    equal = {number: cluster_layout(np.ones((number, 1))).degrees for number in (2, 8, 40)}
    unequal = cluster_layout(np.array([[40.0], *[[2.0]] * 7])).degrees

    assert equal == pytest.approx({2: 1, 8: 7, 40: 39})
    assert 1 <= unequal < 3
    # Seven cultures of ten users each: nine degrees from every one.
    apart = np.kron(np.eye(7), np.ones((10, 1)))
    assert cluster_layout(apart).degrees == pytest.approx(63)


@given(st.lists(st.integers(1, 10**7), min_size=2, max_size=12))
def test_what_can_be_shown_is_at_most_100_points_or_nothing(sizes):
    needed = detectable_difference(np.array(sizes), differing_share=0.2, correlation=0.05)

    assert needed is None or 0 < needed <= 1


def test_two_users_can_show_nothing():
    found = paired_difference(
        np.array([1, 0, 0, 1]), np.array([0, 0, 0, 0]), np.array([0, 0, 1, 1])
    )
    uneven = paired_difference(
        np.array([1, 1, 0, 0]), np.array([0, 0, 1, 0]), np.array([0, 0, 1, 1])
    )

    assert detectable_difference(np.array([5, 5]), differing_share=1, correlation=0.9) is None
    assert found.detectable is uneven.detectable is None


@pytest.mark.parametrize("large", [10, 10**3, 10**6])
def test_one_user_with_nearly_all_pairs_leaves_the_interval_wide(large: int):
    users = np.repeat([0, 1, 2], [large, 1, 1])

    estimate = accuracy(np.arange(len(users)) % 2, users)

    assert cluster_layout(np.array([[large], [1.0], [1.0]])).degrees < 1.5
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.booleans()), min_size=2, max_size=30)
)
def test_the_rival_sees_the_same_difference_with_the_other_sign(rows):
    clusters, ours, theirs = (np.array(column) for column in zip(*rows, strict=True))

    one = paired_difference(ours, theirs, clusters)
    other = paired_difference(theirs, ours, clusters)

    assert (one.p_value is None) == (len(set(clusters.tolist())) < 2)
    if one.p_value is not None:
        assert 0 < one.p_value <= 1
        assert one.p_value == pytest.approx(other.p_value)
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
        assert one.detectable == pytest.approx(other.detectable)


def test_seeds_that_differ_widen_the_interval_and_raise_the_p_value():
    generator = rng()
    users = np.repeat(np.arange(30), 10)
    rival = generator.random(300) < 0.5
    skills = np.array([0.5, 0.7, 0.6])  # three trainings, for everyone alike
    seeds = generator.random((300, 3)) < skills

    apart = paired_difference(seeds, rival, users)
    averaged = paired_difference(seeds.mean(axis=1), rival, users)

    assert apart.value == averaged.value
    # Two degrees of freedom: 4.3 standard errors of the seeds, squared and added.
    assert apart.high - apart.low > 2 * (averaged.high - averaged.low)
    assert apart.p_value > 3 * averaged.p_value
    assert apart.detectable > averaged.detectable


def test_seeds_that_differ_by_the_users_drawn_add_nothing():
    # Every seed is right for a third of the users: which seed is ahead is a matter of who is there.
    users = np.repeat(np.arange(30), 10)
    seeds = users[:, None] % 3 == np.arange(3)

    apart = accuracy(seeds, users)

    assert apart == accuracy(seeds.mean(axis=1), users)


def test_the_smallest_difference_that_a_test_set_can_show_falls_with_its_users():
    needed = {
        number: detectable_difference(np.full(number, 30), differing_share=0.2, correlation=0.03)
        for number in (8, 32, 10_000)
    }

    # 32 users of 30 pairs: (t .975 + t .80) * sqrt(0.2 * (1 + 0.03 * 29) / 960)
    steps = t.ppf(0.975, 31) + t.ppf(0.8, 31)
    assert needed[32] == pytest.approx(steps * math.sqrt(0.2 * 1.87 / 960))
    assert needed[8] > 2 * needed[32] > 2 * needed[10_000]
    assert detectable_difference(np.array([30]), differing_share=0.2, correlation=0.0) is None


def test_a_difference_as_large_as_what_can_be_shown_is_shown_4_times_in_5():
    generator = np.random.default_rng(5)
    sizes = np.array([4, 8, 12, 16, 20, 24, 28, 6, 10, 14, 18, 22])
    users = np.repeat(np.arange(12), sizes)
    size = detectable_difference(sizes, differing_share=0.3, correlation=0.0)
    shown = []
    for _ in range(500):
        kinds = generator.choice(
            [1, -1, 0], p=[0.15 + size / 2, 0.15 - size / 2, 0.7], size=len(users)
        )
        found = paired_difference(kinds == 1, kinds == -1, users)
        shown.append(found.p_value <= 0.05)

    assert 0.74 < np.mean(shown) < 0.86
