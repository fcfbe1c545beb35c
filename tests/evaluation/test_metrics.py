import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scpo_ray.evaluation.metrics import (
    layer_masks,
    margin_scale,
    noise_outcomes,
    ranked_right,
    win_probabilities,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_pair_is_right_only_when_chosen_is_strictly_above():
    chosen, rejected = np.array([2.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0])

    assert ranked_right(chosen, rejected).tolist() == [True, False, False]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("function", [ranked_right, win_probabilities])
def test_broken_rewards_are_an_error_not_a_wrong_pair(function: Callable, broken: float):
    with pytest.raises(ValueError, match=r"1 pairs that are not, the first at 1: .* and 0.0"):
        function(np.array([1.0, broken]), np.array([0.0, 0.0]))


def test_rewards_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"must be \(B,\) and alike, got \(2,\) and \(1,\)"):
        ranked_right(np.zeros(2), np.zeros(1))


def test_win_probabilities_do_not_overflow():
    probabilities = win_probabilities(np.array([1e4, -1e4, 0.0, 1.0]), np.zeros(4))

    np.testing.assert_allclose(probabilities, [1.0, 0.0, 0.5, 1 / (1 + math.exp(-1))])


def test_layers_at_the_papers_threshold_are_the_global_models_wrong_and_right_pairs():
    # wrong, right, tied, right by the smallest step that float32 has
    chosen = np.array([0.0, 2.0, 1.0, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    rejected = np.array([1.0, 1.0, 1.0, 1.0], np.float32)

    masks = layer_masks(chosen, rejected, distinctive_threshold=0.5)

    assert masks["all"].tolist() == [True, True, True, True]
    assert masks["distinctive"].tolist() == [True, False, True, False]
    assert masks["agreed"].tolist() == [False, True, False, True]


def test_a_higher_threshold_calls_unsure_pairs_distinctive():
    margins = np.log(np.array([0.6, 0.69, 0.71, 0.9]) / np.array([0.4, 0.31, 0.29, 0.1]))

    masks = layer_masks(margins, np.zeros(4), distinctive_threshold=0.7)

    assert masks["distinctive"].tolist() == [True, True, False, False]
    assert layer_masks(margins, np.zeros(4), distinctive_threshold=1.0)["distinctive"].all()


finite = st.floats(-(2.0**100), 2.0**100, width=32)


@given(arrays(np.float32, (20, 2), elements=finite))
def test_the_global_model_has_0_on_distinctive_and_1_on_agreed_whatever_its_rewards(rewards):
    right = ranked_right(rewards[:, 0], rewards[:, 1])

    masks = layer_masks(rewards[:, 0], rewards[:, 1], distinctive_threshold=0.5)

    assert not right[masks["distinctive"]].any()
    assert right[masks["agreed"]].all()
    assert (masks["distinctive"] ^ masks["agreed"]).all()


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.01, math.nan])
def test_the_threshold_is_a_probability(threshold: float):
    with pytest.raises(ValueError, match=r"distinctive_threshold must be in \(0, 1\], got"):
        layer_masks(np.zeros(1), np.zeros(1), distinctive_threshold=threshold)


def test_noise_outcomes_are_what_many_draws_of_noise_would_do():
    generator = rng()
    ref_margins = np.array([-2.0, -0.5, 0.1, 1.0])
    # Twice the reference margins, and a change that has nothing of them: -2 * 0.5 - 0.5 * -2 = 0.
    margins = 2 * ref_margins + np.array([0.5, -2.0, 0.0, 0.0])

    size = np.sqrt((0.5**2 + 2.0**2) / 4) / 2
    drawn = ref_margins + size * generator.standard_normal((100_000, 4)) > 0

    np.testing.assert_allclose(noise_outcomes(ref_margins, margins), drawn.mean(axis=0), atol=0.01)


def test_no_change_leaves_the_reference_models_outcomes():
    assert noise_outcomes(np.array([1.0, -1.0, 0.0]), np.array([1.0, -1.0, 0.0])).tolist() == [
        1,
        0,
        0,
    ]
    assert noise_outcomes(np.empty(0), np.empty(0)).shape == (0,)


@pytest.mark.parametrize("scale", [0.3, 1.1, 3.0])
def test_a_model_that_only_grew_surer_is_set_against_the_reference_model_itself(scale: float):
    ref_margins = rng().normal(0.3, 1, 500).astype(np.float32)
    margins = np.float32(scale) * ref_margins

    assert margin_scale(ref_margins, margins) == pytest.approx(scale)
    assert noise_outcomes(ref_margins, margins).tolist() == (ref_margins > 0).tolist()


def test_where_nothing_of_the_reference_model_is_left_the_control_is_a_coin():
    ref_margins = np.array([-1.0, 1.0, 2.0])

    for margins in (-ref_margins, np.array([1.0, 1.0, 0.0])):
        assert margin_scale(ref_margins, margins) == 0
        assert noise_outcomes(ref_margins, margins).tolist() == [0.5, 0.5, 0.5]
    assert margin_scale(np.zeros(2), np.ones(2)) is None
    assert noise_outcomes(np.zeros(2), np.ones(2)).tolist() == [0.5, 0.5]
