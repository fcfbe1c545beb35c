"""Rewards of several models on one scale."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scpo_ray.evaluation.mixtures import linear, people_shares, worst
from scpo_ray.evaluation.scales import reference_probabilities, scale_of, standardised

rewards_of_texts = arrays(np.float64, st.integers(5, 60), elements=st.floats(-50, 50)).filter(
    lambda values: values.std() > 1e-3
)


def test_a_scale_is_mean_spread_and_quantiles_of_the_reference_texts():
    scale = scale_of(np.array([1.0, 2.0, 3.0, 6.0]), "these")

    # deviations -2, -1, 0, 3: 14 / 3
    assert (scale.mean, scale.spread) == (3.0, pytest.approx((14 / 3) ** 0.5))
    assert (scale.quantiles[0], scale.quantiles[50], scale.quantiles[-1]) == (1.0, 2.5, 6.0)
    assert (scale.num_texts, scale.references) == (4, "these")
    assert standardised(5.0, scale) == pytest.approx(2 / (14 / 3) ** 0.5)


@given(rewards_of_texts, st.floats(0.01, 100), st.floats(-100, 100))
def test_the_units_of_a_model_do_not_matter(rewards, factor, shift):
    one, other = scale_of(rewards, ""), scale_of(factor * rewards + shift, "")
    asked = rewards.mean() + np.linspace(-3, 3, 7) * rewards.std()

    np.testing.assert_allclose(
        standardised(asked, one), standardised(factor * asked + shift, other), atol=1e-6
    )


@given(rewards_of_texts)
def test_a_probability_is_the_share_of_reference_texts_below(rewards):
    scale = scale_of(rewards, "")
    asked = np.sort(np.concatenate([rewards, [rewards.min() - 1, rewards.max() + 1]]))

    found = reference_probabilities(asked, scale)

    assert (found[0], found[-1]) == (0.0, 1.0)
    assert (np.diff(found) >= -1e-12).all()
    below = (rewards[None] < asked[:, None]).mean(axis=1)
    above = (rewards[None] > asked[:, None]).mean(axis=1)
    # A quantile between two texts lies on the line that joins them: one text's share of freedom.
    assert (found >= below - 1 / len(rewards) - 0.011).all()
    assert (found <= 1 - above + 1 / len(rewards) + 0.011).all()


def test_equal_rewards_beat_half_of_each_other():
    scale = scale_of(np.array([0.0] * 50 + [1.0] * 50), "")

    assert reference_probabilities([0.0, 1.0], scale) == pytest.approx([0.25, 0.75], abs=0.01)


FAULTS = {
    "one text": ([1.0], "rewards of 2 reference texts, got 1"),
    "NaN": ([1.0, float("nan")], "finite"),
    "the same": ([2.0, 2.0], "the same reward, 2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_makes_no_scale_is_refused(fault):
    rewards, said = FAULTS[fault]

    with pytest.raises(ValueError, match=said):
        scale_of(np.array(rewards), "")


def test_mixtures_of_two_cultures():
    z = [[1.0, -1.0], [0.0, 2.0]]

    assert linear(z, [0.75, 0.25]) == pytest.approx([0.75, -0.25])
    assert worst(z) == pytest.approx([0.0, -1.0])


def test_people_prefer_by_their_own_culture():
    # one culture is sure of the first, the other of the second; a third of the people each, and
    # the last third cannot say
    rewards = [[50.0, 0.0], [0.0, 50.0], [1.0, 1.0]]

    assert people_shares(rewards, [1.0, 1.0, 1.0], [0.5, 0.2, 0.3]) == pytest.approx([0.65, 0.35])
    # sigmoid(1 / 2) of one culture alone
    assert people_shares([[1.0, 0.0]], [2.0], [1.0]) == pytest.approx([0.6224593, 0.3775407])
    with pytest.raises(ValueError, match="2 candidates or more, got 1"):
        people_shares([[1.0]], [1.0], [1.0])


@given(arrays(np.float64, (2, 5), elements=st.floats(-20, 20)), st.floats(0, 1))
def test_shares_of_k_candidates_sum_to_half_of_them(rewards, weight):
    shares = people_shares(rewards, [1.0, 3.0], [weight, 1 - weight])

    assert shares.sum() == pytest.approx(2.5)
    assert ((shares >= 0) & (shares <= 1)).all()
