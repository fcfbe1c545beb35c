import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.methods.margins import effective_pairs, look_at_margins


def look(margins, threshold=0.7, temperature=1.1):
    margins = np.array(margins, np.float32)
    rejected = np.zeros_like(margins)
    return look_at_margins(margins, rejected, threshold=threshold, temperature=temperature)


def test_each_tau_keeps_a_share_and_each_beta_has_weights_of_what_the_set_tau_keeps():
    # Win probabilities 0.27, 0.5, 0.62, 0.88: below 0.7 are three.
    found = look([-1.0, 0.0, 0.5, 2.0], temperature=1.0)

    assert found.kept[0.5] == 0.25 and found.kept[0.6] == 0.5 and found.kept[0.7] == 0.75
    assert found.num_kept == 3
    weight = np.exp(-1.0)
    assert found.weights[1.0].mean == pytest.approx((weight + 2) / 3)
    assert found.weights[1.0].effective_pairs == pytest.approx((weight + 2) ** 2 / (weight**2 + 2))
    assert found.quantiles[0.5] == 0.75
    assert found.warnings == []


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=30))
def test_shares_rise_with_tau_and_weights_with_beta(margins):
    found = look(margins)

    kept, weights = list(found.kept.values()), [w.mean for w in found.weights.values()]
    assert kept == sorted(kept) and weights == sorted(weights)
    assert 0 <= min(kept) and max(kept) <= 1
    for each in found.weights.values():
        assert 0 <= each.effective_pairs <= found.num_kept * (1 + 1e-9)
    taus = [tau for tau in found.thresholds.values() if tau is not None]
    assert taus == sorted(taus) and all(0 < tau < 1 for tau in taus)


def test_equal_weights_count_as_many_pairs_as_there_are_and_none_without_any():
    assert effective_pairs(np.full(7, 0.3)) == pytest.approx(7)
    assert effective_pairs(np.array([1.0, 0.0, 0.0])) == 1
    assert effective_pairs(np.zeros(3)) == 0


def test_margins_so_small_that_the_papers_values_do_nothing_are_warned_of():
    tau, beta = look(np.linspace(-0.02, 0.02, 41)).warnings

    assert tau.startswith("filter_threshold 0.7 keeps 100.0 % of the pairs: the global model's")
    assert "half of them below 0.01" in tau
    assert beta.startswith("weight_temperature 1.1 gives the 41 kept pairs a mean weight of 1.00")


def test_margins_so_large_that_the_papers_values_do_nothing_are_warned_of():
    tau, beta = look(np.linspace(-51, 61, 41)).warnings

    assert "keeps what the global model ranks wrong and 0.0 % of the pairs beside" in tau
    assert "as good as left out" in beta


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e-6, 1e-9])
def test_the_advised_tau_and_beta_keep_and_weigh_what_they_say_whatever_the_unit(unit):
    margins = unit * np.linspace(-0.02, 0.021, 400)
    tau, beta = look(margins).warnings

    third, half = map(
        float, re.search("nothing; (.*) keeps a third, (.*) keeps a half", tau).groups()
    )

    found = look(margins, threshold=third)
    assert found.kept[third] == pytest.approx(0.33, abs=0.05)
    assert look(margins, threshold=half).kept[half] == pytest.approx(0.5, abs=0.05)
    typical = float(re.search("those ranked wrong, (.*), does more", beta)[1])
    advised = look(margins, temperature=typical / 3).weights[typical / 3]
    assert advised.effective_pairs < 0.9 * 400


@pytest.mark.parametrize("threshold", [0.7, None])
def test_where_all_margins_are_0_no_value_is_advised(threshold):
    found = look(np.zeros(20), threshold=threshold)

    assert set(found.thresholds.values()) == {None}
    [said] = found.warnings
    assert said.startswith("the global model's margins are all 0: no filter_threshold and no")


def test_where_no_kept_pair_is_ranked_wrong_no_other_beta_is_advised():
    [_, beta] = look(np.linspace(0.01, 0.02, 20)).warnings

    assert beta.endswith("so does any: the global model ranks none of them wrong")


def test_a_share_that_no_tau_keeps_has_none():
    assert look(np.linspace(-1000, 3000, 40)).thresholds == {0.33: None, 0.5: None, 0.67: None}


def test_what_is_not_set_is_not_warned_of():
    found = look(np.linspace(-0.02, 0.02, 41), threshold=None, temperature=None)

    assert found.warnings == [] and found.num_kept == 41
    with pytest.raises(ValueError, match="there must be a pair"):
        look([])
