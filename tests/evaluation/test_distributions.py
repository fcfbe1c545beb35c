"""Shares, their distances and their temperatures: by hand, against SciPy, and by their laws."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax

from scpo_ray.evaluation.distributions import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    fit_temperature,
    js_distances,
    option_shares,
    renormalised,
    similarities,
)

BASES = st.sampled_from([math.e, 2.0, 10.0])
WEIGHTS = arrays(np.float64, (3, 5), elements=st.floats(0, 1, width=32)).filter(
    lambda rows: bool((rows.sum(axis=1) > 1e-6).all())
)


def everywhere(array):
    return np.ones(np.shape(array), dtype=np.bool_)


def test_shares_are_the_softmax_of_rewards_over_the_temperature_where_there_is_an_option():
    rewards = np.array([[1.0, 3.0, math.nan]])
    valid = np.array([[True, True, False]])

    shares = option_shares(rewards, valid, temperature=2.0)

    # (3 - 1) / 2 = 1  ->  1 / (1 + e), e / (1 + e)
    np.testing.assert_allclose(shares, [[1 / (1 + math.e), math.e / (1 + math.e), 0.0]])


def test_shares_of_far_rewards_do_not_overflow():
    shares = option_shares(np.array([[1e6, 0.0]]), everywhere([[0, 0]]), temperature=1e-3)

    assert shares.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_an_options_reward_must_be_finite(broken):
    with pytest.raises(ValueError, match=f"rewards must be finite, got {broken}"):
        option_shares(np.array([[0.0, broken]]), everywhere([[0, 0]]), temperature=1.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_the_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match=f"temperature must be > 0, got {temperature}"):
        option_shares(np.zeros((1, 2)), everywhere([[0, 0]]), temperature=temperature)


def test_dropped_options_leave_shares_that_sum_to_one():
    valid = np.array([[True, True, False]])

    assert renormalised(np.array([[0.3, 0.1, 0.6]]), valid).round(12).tolist() == [[0.75, 0.25, 0]]


@pytest.mark.parametrize(
    "row",
    [
        [0.0, 0.0, 1.0],
        [math.nan, 0.5, 0.5],
        [math.inf, 0.5, 0.5],
        [-0.1, 0.6, 0.5],
    ],
)
def test_a_row_that_is_no_distribution_is_missing_and_its_similarity_too(row):
    valid = np.array([[True, True, False]])
    equal = np.array([row])

    assert np.isnan(renormalised(equal, valid)).all()
    assert np.isnan(similarities(renormalised(equal, valid), equal, base=2)).all()


def test_all_zero_rows_are_never_a_perfect_match():
    zeros = np.zeros((1, 3))

    assert np.isnan(similarities(zeros, zeros, base=2)).all()


def test_one_option_alone_is_missing_for_there_is_nothing_to_tell_apart():
    valid = np.array([[True, False, False]])

    assert np.isnan(renormalised(np.array([[1.0, 0.0, 0.0]]), valid)).all()


@given(WEIGHTS, WEIGHTS, BASES)
def test_the_distance_is_scipys(one, other, base):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy's root of a rounding below 0
        expected = np.nan_to_num(jensenshannon(one, other, base=base, axis=1))

    # A rounding of 1e-16 under the root is 1e-8.
    np.testing.assert_allclose(js_distances(one, other, base=base), expected, atol=3e-8)


@given(WEIGHTS, WEIGHTS, BASES)
def test_the_distance_is_symmetric_and_between_zero_and_the_root_of_the_logarithm_of_two(
    one, other, base
):
    there = js_distances(one, other, base=base)

    np.testing.assert_allclose(there, js_distances(other, one, base=base), atol=1e-12)
    assert ((there >= 0) & (there <= math.sqrt(math.log(2, base)) + 1e-12)).all()


@given(WEIGHTS, BASES, st.floats(0.01, 100))
def test_equal_rows_are_at_distance_zero_whatever_they_sum_to(rows, base, factor):
    np.testing.assert_allclose(js_distances(rows, rows * factor, base=base), 0, atol=3e-8)


def test_rows_without_a_common_option_are_as_far_apart_as_can_be():
    apart = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])

    assert js_distances(*apart, base=2).tolist() == [1.0]
    np.testing.assert_allclose(similarities(*apart, base=math.e), 1 - math.sqrt(math.log(2)))


@given(
    arrays(np.float64, (6, 4), elements=st.floats(-5, 5)),
    st.floats(0.05, 20),
)
def test_a_model_that_answers_at_some_temperature_is_fitted_with_it(rewards, temperature):
    if np.ptp(rewards, axis=1).max() < 0.5 * temperature:
        return  # at so high a temperature every answer is uniform, and many fit
    valid = everywhere(rewards)
    answers = option_shares(rewards, valid, temperature=temperature)

    fitted = fit_temperature(rewards, answers, valid)

    np.testing.assert_allclose(
        option_shares(rewards, valid, temperature=fitted), answers, atol=1e-6
    )


def test_the_fitted_temperature_is_where_the_answers_are_likeliest():
    rng = np.random.default_rng(0)
    rewards, answers = rng.standard_normal((30, 5)), rng.dirichlet(np.ones(5), 30)
    answers = (answers + option_shares(rewards, everywhere(rewards), temperature=0.7)) / 2

    fitted = fit_temperature(rewards, answers, everywhere(rewards))

    best = minimize_scalar(
        lambda log_t: -(answers * log_softmax(rewards / math.exp(log_t), axis=1)).sum(),
        bounds=(-5, 5),
        method="bounded",
        options={"xatol": 1e-9},
    )
    np.testing.assert_allclose(math.log(fitted), best.x, atol=1e-4)


def test_rewards_against_the_answers_get_the_highest_temperature_too_small_ones_the_lowest():
    answers = np.array([[0.9, 0.1]])

    assert fit_temperature(np.array([[0.0, 1.0]]), answers, everywhere(answers)) == MAX_TEMPERATURE
    assert fit_temperature(np.array([[1e-9, 0.0]]), answers, everywhere(answers)) == MIN_TEMPERATURE


def test_missing_answers_are_left_out_of_the_fit_and_alone_give_none():
    rewards = np.array([[1.0, 0.0], [0.0, 5.0]])
    answers = np.array([[0.7, 0.3], [math.nan, math.nan]])

    fitted = fit_temperature(rewards, answers, everywhere(answers))

    np.testing.assert_allclose(fitted, 1 / math.log(0.7 / 0.3), rtol=1e-6)
    assert fit_temperature(rewards[1:], answers[1:], everywhere(answers[1:])) is None


def test_shapes_and_bases_are_checked():
    with pytest.raises(ValueError, match=r"must be \(G, K\) alike, got \(1, 2\) and \(1, 3\)"):
        js_distances(np.zeros((1, 2)), np.zeros((1, 3)), base=2)
    with pytest.raises(ValueError, match="base must be > 1, got 1"):
        js_distances(np.zeros((1, 2)), np.zeros((1, 2)), base=1)
