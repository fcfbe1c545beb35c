"""Group DRO: the worst culture gains by the formula, and its pairs weigh as its mean would."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.methods.group_dro import Groups, follow_losses

THREE_OF_NORTH_ONE_OF_SOUTH = Groups(np.array([0, 0, 1, 0]), ("North", "South"), 0.1)


def test_the_worst_group_gains_by_the_formula():
    weights = follow_losses(np.array([0.5, 0.25, 0.25]), np.array([1.0, 3.0, 0.0]), step_size=0.5)

    # 0.5 e^0.5, 0.25 e^1.5 and 0.25 e^0, over their sum
    raised = np.array([0.5 * math.exp(0.5), 0.25 * math.exp(1.5), 0.25])
    np.testing.assert_allclose(weights, raised / raised.sum(), rtol=1e-12)
    assert weights[1] > 0.25 > weights[2]


def test_huge_losses_leave_the_weights_finite():
    weights = follow_losses(np.array([0.5, 0.5]), np.array([1e6, 0.0]), step_size=10.0)

    np.testing.assert_array_equal(weights, [1.0, 0.0])


sizes = st.integers(2, 6)
finite = st.floats(-50, 50)


@given(st.data(), sizes)
def test_weights_stay_a_distribution_and_follow_the_order_of_the_losses(data, size):
    losses = np.array(data.draw(st.lists(finite, min_size=size, max_size=size)))
    weights = np.full(size, 1 / size)
    for _ in range(3):
        weights = follow_losses(weights, losses, step_size=0.1)

    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    assert (np.diff(weights[np.argsort(losses)]) >= -1e-12).all()


@given(st.data(), sizes)
def test_the_mean_of_all_weighed_pairs_is_the_weighted_sum_of_the_groups_means(data, num_groups):
    extra = data.draw(st.lists(st.integers(0, num_groups - 1), max_size=20))
    codes = np.array([*range(num_groups), *extra])
    losses = np.array(data.draw(st.lists(finite, min_size=len(codes), max_size=len(codes))))
    groups = Groups(codes, tuple("abcdef"[:num_groups]), 0.1)
    weights = follow_losses(groups.start(), np.arange(num_groups, dtype=float), step_size=1.0)
    means = np.array([losses[codes == g].mean() for g in range(num_groups)])

    found = groups.losses(np.arange(len(codes)), losses, batch_size=len(codes))

    np.testing.assert_allclose(found, means, atol=1e-9)
    weighed = (groups.pair_weights(weights, np.arange(len(codes))) * losses).mean()
    assert weighed == pytest.approx(weights @ means, rel=1e-4, abs=1e-4)


def test_workers_parts_of_the_losses_add_up():
    groups = THREE_OF_NORTH_ONE_OF_SOUTH
    losses = np.array([1.0, 2.0, 4.0, 8.0])

    whole = groups.losses(np.array([2, 0, 3, 1]), losses, batch_size=4)
    parts = [
        groups.losses(np.array(rows, np.int64), part, batch_size=4)
        for rows, part in (([2, 0], losses[:2]), ([3, 1], losses[2:]), ([], np.empty(0)))
    ]

    # North: rows 0, 3, 1 have 2 + 4 + 8, times 4/3, over 4 pairs; South: 1, times 4, over 4.
    np.testing.assert_allclose(whole, [14 / 3, 1.0])
    np.testing.assert_allclose(sum(parts), whole)


def test_pairs_of_a_rare_group_weigh_more():
    groups = THREE_OF_NORTH_ONE_OF_SOUTH

    # Half the weight each, over a share of 3/4 and 1/4 of the pairs.
    np.testing.assert_allclose(
        groups.pair_weights(groups.start(), np.arange(4)), [2 / 3, 2 / 3, 2, 2 / 3]
    )


@pytest.mark.parametrize(
    ("weights", "losses", "step_size", "problem"),
    [
        ([0.5, 0.5], [1.0], 0.1, r"\(G,\) alike, got \(2,\) and \(1,\)"),
        ([0.5, 0.5], [1.0, 1.0], 0.0, "step_size must be > 0, got 0.0"),
        ([0.5, 0.5], [1.0, math.nan], 0.1, "losses must be finite"),
    ],
)
def test_bad_input_is_told(weights, losses, step_size, problem):
    with pytest.raises(ValueError, match=problem):
        follow_losses(np.array(weights), np.array(losses), step_size=step_size)


def test_a_group_without_a_pair_is_told():
    with pytest.raises(ValueError, match=r"every group must have a pair, got \[1, 0\]"):
        Groups(np.array([0]), ("North", "South"), 0.1).pair_weights(
            np.array([0.5, 0.5]), np.array([0])
        )
