import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.methods.selection import (
    agreement_weights,
    disagreement_mask,
    inverse_weights,
    select_pairs,
)
from scpo_ray.methods.task import Task
from scpo_ray.records import ALONE, InputError, Pairs
from scpo_ray.settings.methods import METHODS, method_names
from scpo_ray.settings.run import RunConfig

NAN = math.nan
# What cannot be left at its default.
NEEDED = {
    "gpo": {"data": {"source": "opinions"}},
    "soup": {"methods": {"soup": {"models": ["a", "b"]}}},
}
margins = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20)
temperatures = st.floats(0.01, 100)
thresholds = st.floats(0.01, 1.0)


def sides(values):
    """Chosen and rejected rewards with these margins."""
    chosen = torch.tensor(values, dtype=torch.float32)
    return chosen, torch.zeros_like(chosen)


def task(method, chosen, rejected):
    """P pairs of one culture, with the global model's rewards of both sides or without it."""
    size = 2 if chosen is None else len(chosen)
    codes = np.arange(size)
    pairs = Pairs(
        codes, codes, codes + size, *[np.zeros(size, np.int16)] * 4, *[codes * 0] * 2, ("C",)
    )
    return Task(
        config=RunConfig.model_validate({"method": method, **NEEDED.get(method, {})}),
        data=None,
        tokens=None,
        base=None,
        worker=ALONE,
        ref_rewards=None if chosen is None else torch.cat([chosen, rejected]).numpy(),
        culture_weights={"C": 1.0},
        train_pairs=pairs,
    )


def test_a_pair_is_kept_where_the_reference_model_doubts_it():
    # margins ln(0.8/0.2) = 1.386, ln(0.6/0.4) = 0.405, -1  ->  p = 0.8, 0.6, 0.269
    chosen, rejected = torch.tensor([2.386, 0.405, 0.0]), torch.tensor([1.0, 0.0, 1.0])

    keep = disagreement_mask(chosen, rejected, threshold=0.7)

    assert keep.tolist() == [False, True, True]
    assert keep.dtype == torch.bool


@pytest.mark.parametrize(("margin", "threshold"), [(0.0, 0.5), (1e4, 1.0), (40.0, 1.0)])
def test_a_pair_exactly_at_the_threshold_is_dropped(margin, threshold):
    chosen, rejected = sides([margin])

    assert torch.sigmoid(chosen.double()).item() == threshold
    assert disagreement_mask(chosen, rejected, threshold=threshold).tolist() == [False]


def test_a_threshold_of_one_drops_the_sure_pairs_and_no_threshold_none():
    chosen, rejected = sides([30.0, 40.0])

    def keep(threshold):
        selection = select_pairs(
            chosen,
            rejected,
            filter_threshold=threshold,
            weighting="none",
            weight_temperature=None,
        )
        return selection.keep.tolist()

    # sigmoid(30) < 1 in float64, sigmoid(40) is 1.
    assert keep(1.0) == [True, False]
    assert keep(None) == [True, True]


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.01, NAN])
def test_threshold_must_be_a_probability_above_zero(threshold):
    with pytest.raises(ValueError, match=rf"threshold must be in \(0, 1\], got {threshold}"):
        disagreement_mask(*sides([0.0]), threshold=threshold)


@given(margins, thresholds, thresholds)
def test_a_higher_threshold_keeps_all_that_a_lower_one_keeps(values, one, other):
    low, high = sorted([one, other])
    chosen, rejected = sides(values)

    kept_low = disagreement_mask(chosen, rejected, threshold=low)
    kept_high = disagreement_mask(chosen, rejected, threshold=high)

    assert (kept_high | ~kept_low).all()


def test_weights_are_one_on_agreement_and_fall_with_disagreement():
    chosen, rejected = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.1])

    weights = agreement_weights(chosen, rejected, temperature=1.1)

    # margins 1, 0, -1.1  ->  min(e^0.91, 1), e^0, e^-1
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, math.exp(-1)]))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match=f"temperature must be > 0, got {temperature}"):
        agreement_weights(torch.zeros(1), torch.zeros(1), temperature=temperature)


@given(margins, temperatures)
def test_weights_lie_between_zero_and_one_and_rise_with_the_margin(values, temperature):
    chosen, rejected = sides(sorted(values))

    weights = agreement_weights(chosen, rejected, temperature=temperature)

    assert weights.dtype == torch.float32
    assert ((weights >= 0) & (weights <= 1)).all()
    assert (weights.diff() >= 0).all()


@given(margins, temperatures, temperatures)
def test_a_lower_temperature_never_gives_a_larger_weight(values, one, other):
    low, high = sorted([one, other])
    chosen, rejected = sides(values)

    sharp = agreement_weights(chosen, rejected, temperature=low)
    soft = agreement_weights(chosen, rejected, temperature=high)

    # exp of a float32 argument is monotone up to its last bit.
    assert (sharp <= soft * (1 + 1e-6)).all()


def test_inverse_weights_are_one_on_agreement_and_rise_with_disagreement():
    # margins 1, 0, -1.1  ->  max(e^-1, 1), e^0, e^1.1
    weights = inverse_weights(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.1]))

    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, math.exp(1.1)]))


@given(st.lists(st.floats(-80, 1e4, width=32), min_size=1, max_size=20))
def test_inverse_weights_are_finite_at_least_one_and_fall_with_the_margin(values):
    weights = inverse_weights(*sides(sorted(values)))

    assert weights.isfinite().all()
    assert (weights >= 1).all()
    assert (weights.diff() <= 0).all()


def test_an_inverse_weight_that_leaves_float32_is_refused_with_its_margin():
    with pytest.raises(InputError, match=r"a margin of 90\.0 reward units is above 80\.0"):
        inverse_weights(*sides([0.0, -90.0]))


@pytest.mark.parametrize("margin", [1e4, -1e4])
def test_nothing_overflows_at_huge_margins(margin):
    chosen, rejected = sides([margin])

    assert disagreement_mask(chosen, rejected, threshold=0.7).tolist() == [margin < 0]
    assert agreement_weights(chosen, rejected, temperature=0.01).tolist() == [float(margin > 0)]


def test_a_nan_is_not_kept_and_stays_a_nan_as_weight():
    chosen, rejected = sides([NAN, 0.0])

    assert disagreement_mask(chosen, rejected, threshold=1.0).tolist() == [False, True]
    assert agreement_weights(chosen, rejected, temperature=1.0).isnan().tolist() == [True, False]
    assert inverse_weights(chosen, rejected).isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: disagreement_mask(a, b, threshold=0.7),
        lambda a, b: agreement_weights(a, b, temperature=1.1),
        inverse_weights,
    ],
)
def test_rewards_of_two_shapes_are_refused(function):
    with pytest.raises(ValueError, match=r"must have one shape, got \(2,\) and \(2, 1\)"):
        function(torch.zeros(2), torch.zeros(2, 1))


# margins 2, -1.1 at tau 0.7 (p 0.88, 0.25) and beta 1.1: weights 1, e^-1; inverse 1, e^1.1
@pytest.mark.parametrize(
    ("method", "keep", "weights"),
    [
        ("global", [True, True], [1.0, 1.0]),
        ("finetune", [True, True], [1.0, 1.0]),
        ("filter", [False, True], [1.0, 1.0]),
        ("weight", [True, True], [1.0, math.exp(-1)]),
        ("inverse", [True, True], [1.0, math.exp(1.1)]),
        ("scpo", [False, True], [1.0, math.exp(-1)]),
    ],
)
def test_each_method_keeps_and_weighs_as_the_paper_says(method, keep, weights):
    selection = METHODS[method].select(task(method, *sides([2.0, -1.1])))

    assert selection.keep.tolist() == keep
    torch.testing.assert_close(selection.weights, torch.tensor(weights))


@pytest.mark.parametrize("method", method_names())
def test_only_methods_that_need_the_global_model_select_by_its_rewards(method):
    try:
        selection = METHODS[method].select(task(method, None, None))
    except ValueError as error:
        assert "by a global model's rewards, and there are none" in str(error)
        assert METHODS[method].needs_global_model
    else:
        assert selection.keep.tolist() == [True] * 2
        assert selection.weights.tolist() == [1.0] * 2


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("method", ["filter", "weight", "inverse", "scpo"])
def test_a_global_model_that_gives_no_numbers_stops_the_selection(method, bad):
    chosen, rejected = torch.tensor([0.0, bad, 1.0]), torch.tensor([bad, 1.0, 0.0])

    with pytest.raises(InputError, match="rewards that are not finite\n  in 2 of 3 training pairs"):
        METHODS[method].select(task(method, chosen, rejected))
