import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t

from scpo_ray.records import Difference
from scpo_ray.statistics.cluster_variance import cluster_freedom
from scpo_ray.statistics.intervals import (
    accuracy,
    basic_interval,
    detectable_difference,
    holm,
    macro_difference,
    macro_mean,
    paired_difference,
    stream,
    with_holm,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_accuracy_is_the_mean_over_pairs_and_counts_pairs_and_clusters():
    outcomes = np.array([1, 1, 0, 1, 0.5])
    clusters = np.array(["ann", "ann", "ann", "bo", "bo"])

    estimate = accuracy(outcomes, clusters, samples=500, rng=rng())

    assert estimate.value == pytest.approx(3.5 / 5)
    assert (estimate.num_pairs, estimate.num_clusters) == (5, 2)
    # Resamples are ann twice (2/3), both (3.5/5) or bo twice (3/4).
    assert (estimate.low, estimate.high) == (pytest.approx(2 / 3), pytest.approx(3 / 4))


def test_the_basic_interval_is_the_reported_one_reversed_at_the_value():
    difference = Difference(0.25, -0.25, 0.5, 0.2, None, 9, 3)

    assert basic_interval(difference) == (0.0, 0.75)
    assert basic_interval(accuracy(np.ones(2), np.zeros(2), samples=9, rng=rng())) == (None, None)


def test_one_cluster_has_a_value_but_no_interval():
    estimate = accuracy(np.array([1, 0]), np.array([7, 7]), samples=100, rng=rng())

    assert (estimate.value, estimate.low, estimate.high) == (0.5, None, None)


def test_no_pair_has_no_value():
    estimate = accuracy(np.empty(0), np.empty(0, dtype=int), samples=100, rng=rng())

    assert (estimate.value, estimate.low, estimate.high, estimate.num_pairs) == (
        None,
        None,
        None,
        0,
    )


def test_nan_outcomes_are_an_error():
    with pytest.raises(ValueError, match="outcomes must be finite, got nan at 1"):
        accuracy(np.array([1, math.nan]), np.array([0, 1]), samples=100, rng=rng())


def test_outcomes_without_their_cluster_are_an_error():
    with pytest.raises(ValueError, match=r"must be \(B,\) alike, got \[\(2,\)\], \[\(1,\)\]"):
        accuracy(np.ones(2), np.ones(1), samples=100, rng=rng())


def test_intervals_widen_when_pairs_come_in_clusters():
    outcomes = np.repeat([1, 0], 100)

    alone = accuracy(outcomes, np.arange(200), samples=500, rng=rng())
    together = accuracy(outcomes, np.arange(200) // 20, samples=500, rng=rng())

    assert alone.low is not None and together.low is not None
    assert alone.low == pytest.approx(0.5 - 1.96 * 0.5 / math.sqrt(200), abs=0.02)
    assert together.low < alone.low - 0.1


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_the_interval_lies_in_0_to_1_and_does_not_depend_on_the_pairs_order(rows):
    clusters, outcomes = (np.array(column) for column in zip(*rows, strict=True))
    order = np.random.default_rng(1).permutation(len(rows))

    estimate = accuracy(outcomes, clusters, samples=100, rng=rng())

    assert estimate == accuracy(outcomes[order], clusters[order], samples=100, rng=rng())
    if estimate.low is not None and estimate.high is not None:
        assert 0 <= estimate.low <= estimate.high <= 1


def test_a_paired_difference_removes_what_the_models_share():
    generator = rng()
    clusters = np.repeat(np.arange(10), 20)
    rival = generator.random(200) < np.repeat(generator.random(10), 20)
    ours = rival.copy()
    ours[::20] = True  # one pair of every user, at most, becomes right

    difference = paired_difference(ours, rival, clusters, samples=500, rng=rng())
    alone = accuracy(ours, clusters, samples=500, rng=rng())

    assert difference.value == pytest.approx(ours.mean() - rival.mean())
    assert None not in (difference.low, difference.high, alone.low, alone.high)
    assert difference.high - difference.low < (alone.high - alone.low) / 4


def test_exact_p_values_count_the_signs_that_are_as_extreme():
    ours, rival = np.array([1, 1, 1, 0]), np.array([0, 0, 0, 1])

    difference = paired_difference(ours, rival, np.arange(4), samples=100, rng=rng())

    # |sum| of four signs is 4 (2 ways of 16) or 2 (8 ways) or 0; the observed one is 2, and the
    # ways that are just as far count half.
    assert (difference.value, difference.p_value) == (0.5, (2 + 8 / 2) / 16)


def test_signs_with_the_same_sum_are_told_apart_by_their_standard_error():
    # Three users of 1, 1 and 4 pairs; the second pair of the last user is the rival's.
    clusters = np.array([0, 1, 2, 2, 2, 2])
    ours, rival = np.array([1, 1, 1, 0, 0, 0]), np.array([0, 0, 0, 1, 1, 0])

    difference = paired_difference(ours, rival, clusters, samples=100, rng=rng())

    # Sums of +-1 +-1 -+1: 3 twice, 1 six times. Where both small users lean one way the residuals
    # are larger than where they cancel: of the six, four are further out, and two are as observed.
    assert difference.value == pytest.approx(1 / 6)
    assert difference.p_value == pytest.approx((2 + 4 + 2 / 2) / 8)


@pytest.mark.parametrize("num_clusters", [2, 8, 12])
def test_the_smallest_exact_p_value_is_half_of_2_of_all_signs(num_clusters: int):
    ones, zeros = np.ones(num_clusters), np.zeros(num_clusters)

    difference = paired_difference(ones, zeros, np.arange(num_clusters), samples=100, rng=rng())

    assert difference.p_value == 1 / 2**num_clusters


def test_random_flips_agree_with_the_exact_binomial():
    # 20 clusters, 15 for and 5 against: P(over 15 of 20 heads) and half of P(15), twice.
    ours, rival = np.repeat([1, 0], [15, 5]), np.repeat([0, 1], [15, 5])

    difference = paired_difference(ours, rival, np.arange(20), samples=100, rng=rng())

    exact = 2 * (sum(math.comb(20, k) for k in range(16, 21)) + math.comb(20, 15) / 2) / 2**20
    assert difference.p_value == pytest.approx(exact, abs=0.006)


def test_a_random_p_value_is_never_0():
    difference = paired_difference(np.ones(60), np.zeros(60), np.arange(60), samples=100, rng=rng())

    assert difference.p_value == pytest.approx(0.5 / 10_001)


def test_equal_models_differ_by_0_with_p_1():
    outcomes = np.array([1, 0, 1])

    difference = paired_difference(outcomes, outcomes, np.arange(3), samples=100, rng=rng())

    assert difference == Difference(0, 0, 0, 1.0, None, 3, 3)


def test_a_difference_that_cancels_but_for_rounding_has_p_1():
    ours, rival = np.array([0.1 + 0.2, 0.0]), np.array([0.0, 0.3])

    difference = paired_difference(ours, rival, np.arange(2), samples=100, rng=rng())

    assert difference.p_value == 1.0


@pytest.mark.parametrize(("num_pairs", "value"), [(0, None), (2, 1.0)])
def test_fewer_than_two_clusters_carry_no_test(num_pairs: int, value: float | None):
    difference = paired_difference(
        np.ones(num_pairs),
        np.zeros(num_pairs),
        np.zeros(num_pairs, dtype=int),
        samples=100,
        rng=rng(),
    )

    assert difference == Difference(value, None, None, None, None, num_pairs, min(num_pairs, 1))


def test_cultures_count_alike_in_the_macro_mean():
    outcomes = [np.ones(90), np.zeros(10)]
    clusters = [np.arange(90), np.arange(100, 110)]

    estimate = macro_mean(outcomes, clusters, samples=200, rng=rng())

    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.5, 0.5)
    assert (estimate.num_pairs, estimate.num_clusters) == (100, 100)


def test_a_shared_question_is_resampled_for_all_cultures_at_once():
    outcomes = np.repeat([1, 0], 50)
    shared = [np.arange(100)] * 4
    apart = [np.arange(100) + 1_000 * culture for culture in range(4)]

    together = macro_mean([outcomes] * 4, shared, samples=2_000, rng=rng())
    separate = macro_mean([outcomes] * 4, apart, samples=2_000, rng=rng())

    # Four cultures that repeat one another halve no error; four independent ones do.
    assert (together.num_clusters, separate.num_clusters) == (100, 400)
    assert together.high - together.low == pytest.approx(2 * 1.96 * 0.05, rel=0.1)
    assert separate.high - separate.low == pytest.approx(1.96 * 0.05, rel=0.1)


@pytest.mark.parametrize("outcomes", [[np.ones(3), np.empty(0)], []])
def test_a_macro_mean_that_lacks_a_culture_has_no_value(outcomes: list[np.ndarray]):
    clusters = [np.arange(len(outcome)) for outcome in outcomes]

    estimate = macro_mean(outcomes, clusters, samples=100, rng=rng())
    difference = macro_difference(outcomes, outcomes, clusters, samples=100, rng=rng())

    assert (estimate.value, estimate.low, estimate.high) == (None, None, None)
    assert (difference.value, difference.low, difference.p_value) == (None, None, None)


def test_a_culture_with_one_cluster_leaves_the_macro_mean_without_interval():
    estimate = macro_mean(
        [np.array([1, 0]), np.array([1, 0])],
        [np.array([0, 1]), np.array([2, 2])],
        samples=100,
        rng=rng(),
    )

    assert (estimate.value, estimate.low, estimate.high) == (0.5, None, None)


def test_no_interval_where_resamples_mostly_leave_a_culture_empty():
    # Two cultures share question 0, so all are drawn together: few draws reach all 20 cultures.
    clusters = [np.array([2 * culture, 2 * culture + 1]) for culture in range(20)]
    clusters[1][0] = 0

    estimate = macro_mean([np.array([1, 0])] * 20, clusters, samples=200, rng=rng())

    assert (estimate.value, estimate.low, estimate.high) == (0.5, None, None)


def test_the_macro_test_flips_a_shared_cluster_in_all_its_cultures_at_once():
    ours, rival = [np.ones(3), np.ones(3)], [np.zeros(3), np.zeros(3)]
    shared = [np.arange(3), np.arange(3)]
    apart = [np.arange(3), np.arange(3, 6)]

    assert macro_difference(ours, rival, shared, samples=100, rng=rng()).p_value == 1 / 2**3
    assert macro_difference(ours, rival, apart, samples=100, rng=rng()).p_value == 1 / 2**6


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
    clusters = generator.integers(10_000, size=50_000)  # more than one block of resamples
    outcomes = generator.random(50_000) < 0.6

    estimate = accuracy(outcomes, clusters, samples=2_000, rng=rng())

    assert estimate.low == pytest.approx(0.6 - 1.96 * math.sqrt(0.24 / 50_000), abs=0.005)


def simulated(generator: np.random.Generator, num_users: int) -> tuple[np.ndarray, ...]:
    """Two models that are equally good (62 %), on users with tastes and activity of their own."""
    users = np.repeat(np.arange(num_users), generator.integers(2, 31, size=num_users))
    tastes = generator.beta(6.2, 3.8, size=(2, num_users))
    ours, theirs = generator.random((2, len(users))) < tastes[:, users]
    return ours, theirs, users


@pytest.mark.parametrize("num_users", [8, 13, 40])
def test_intervals_hold_the_truth_in_93_to_97_of_100_cases(num_users):
    generator = np.random.default_rng(3)
    held = []
    for _ in range(800):
        ours, _, users = simulated(generator, num_users)
        estimate = accuracy(ours, users, samples=500, rng=generator)
        held.append(estimate.low <= 0.62 <= estimate.high)

    assert 0.93 < np.mean(held) < 0.97


@pytest.mark.parametrize("num_users", [8, 13, 40])
def test_equal_models_are_called_different_about_one_time_in_twenty(num_users):
    generator = np.random.default_rng(4)
    alarms = []
    for _ in range(600):
        ours, theirs, users = simulated(generator, num_users)
        difference = paired_difference(ours, theirs, users, samples=2, rng=generator)
        alarms.append(difference.p_value <= 0.05)

    assert 0.03 < np.mean(alarms) < 0.07


def test_few_or_unequal_clusters_take_percentiles_further_out():
    equal = {number: cluster_freedom([np.arange(number)]).tail for number in (2, 8, 40, 10_000)}
    unequal = cluster_freedom([np.repeat(np.arange(8), [40, 2, 2, 2, 2, 2, 2, 2])]).tail

    # One pair each: a normal at t(7 degrees) * sqrt(8 / 7), Hesterberg's expanded percentile.
    assert equal[8] == pytest.approx(norm.sf(t.ppf(0.975, 7) * math.sqrt(8 / 7)))
    assert unequal < equal[8] < equal[40] < equal[10_000] < 0.025
    assert equal[10_000] == pytest.approx(0.025, abs=1e-4)
    assert cluster_freedom([np.arange(8), np.zeros(3)]) is None


@given(st.lists(st.integers(1, 10**7), min_size=2, max_size=12))
def test_no_sizes_make_the_tail_senseless(sizes):
    needed = detectable_difference(np.array(sizes), differing_share=1e-6, correlation=0.0)

    assert needed is not None and 0 < needed <= 1


@pytest.mark.parametrize("large", [10, 10**3, 10**6])
def test_one_user_with_nearly_all_pairs_leaves_the_range_of_the_resamples(large: int):
    users = np.repeat([0, 1, 2], [large, 1, 1])
    outcomes = np.arange(len(users)) % 2

    estimate = accuracy(outcomes, users, samples=200, rng=rng())

    assert cluster_freedom([users]).tail < 0.001
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.booleans()), min_size=2, max_size=30)
)
def test_the_rival_sees_the_same_difference_with_the_other_sign(rows):
    clusters, ours, theirs = (np.array(column) for column in zip(*rows, strict=True))

    one = paired_difference(ours, theirs, clusters, samples=100, rng=rng())
    other = paired_difference(theirs, ours, clusters, samples=100, rng=rng())

    assert (one.p_value is None) == (len(set(clusters.tolist())) < 2)
    if one.p_value is not None:
        assert 0 < one.p_value <= 1
        assert one.p_value == pytest.approx(other.p_value)
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
        assert one.detectable == pytest.approx(other.detectable)


def test_a_macro_mean_of_many_small_cultures_needs_the_variance_more_than_the_t():
    seven = cluster_freedom([np.arange(10) + 100 * culture for culture in range(7)]).tail

    assert seven == pytest.approx(norm.sf(t.ppf(0.975, 63) * math.sqrt(10 / 9)), rel=1e-6)


def test_seeds_that_differ_widen_the_interval_and_raise_the_p_value():
    generator = rng()
    users = np.repeat(np.arange(30), 10)
    rival = generator.random(300) < 0.5
    skills = np.array([0.5, 0.7, 0.6])  # three trainings, for everyone alike
    seeds = generator.random((300, 3)) < skills

    apart = paired_difference(seeds, rival, users, samples=500, rng=rng())
    averaged = paired_difference(seeds.mean(axis=1), rival, users, samples=500, rng=rng())

    assert apart.value == averaged.value
    assert apart.high - apart.low > 1.5 * (averaged.high - averaged.low)
    assert apart.p_value > 3 * averaged.p_value
    assert apart.detectable > averaged.detectable


def test_seeds_that_differ_by_the_users_drawn_add_nothing():
    # Every seed is right for a third of the users: which seed is ahead is a matter of who is there.
    users = np.repeat(np.arange(30), 10)
    seeds = users[:, None] % 3 == np.arange(3)

    apart = accuracy(seeds, users, samples=500, rng=rng())

    assert apart == accuracy(seeds.mean(axis=1), users, samples=500, rng=rng())


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
        found = paired_difference(kinds == 1, kinds == -1, users, samples=2, rng=generator)
        shown.append(found.p_value <= 0.05)

    assert 0.74 < np.mean(shown) < 0.86
