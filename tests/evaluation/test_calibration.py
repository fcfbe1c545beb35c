"""Calibration: what a fitted temperature is, what the errors count, and what they leave out."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit

from scpo_ray.evaluation.calibration import (
    MIN_FITTED_PAIRS,
    bins_of,
    calibration_error,
    confidence,
    debiased_calibration_error,
    evaluate_calibration,
    fit_win_temperature,
    fitting_pairs,
    overconfidence,
)
from scpo_ray.statistics.intervals import accuracy
from tests.evaluation.test_layers import make_pairs, rewards_of


def preferences(scale: float, users: int, rng: np.random.Generator):
    """(P,) margins of a model that is `scale` times too sure, and users; chosen is as drawn."""
    clusters = np.repeat(np.arange(users), rng.integers(5, 30, users))
    true = 1.5 * rng.standard_normal(len(clusters))
    wins = rng.random(len(clusters)) < expit(true)
    return np.where(wins, true, -true) * scale, clusters


def test_the_fitted_temperature_is_how_many_times_too_sure_a_model_is():
    margins, _ = preferences(3.0, 400, np.random.default_rng(0))

    assert fit_win_temperature(margins) == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize(
    ("margins", "temperature"), [([1.0, 2.0], 1e-3), ([-1.0, -2.0], 1e3), ([0.0], 1e3), ([], None)]
)
def test_margins_that_say_all_or_nothing_have_the_ends_of_the_range(margins, temperature):
    assert fit_win_temperature(np.array(margins)) == temperature


def test_a_margin_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="margins must be finite, got nan"):
        fit_win_temperature(np.array([1.0, np.nan]))


@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(-50, 50)), st.floats(0.1, 10))
def test_a_temperature_follows_the_unit_of_the_margins(margins, unit):
    once, scaled = fit_win_temperature(margins), fit_win_temperature(unit * margins)

    if 1e-2 < once < 1e2:
        assert scaled == pytest.approx(unit * once, rel=1e-6)


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy():
    # 20 pairs at sigmoid(1) = 0.731, of which 10 are right: two bins would part equal confidences.
    margins = np.tile([1.0, -1.0], 10)

    assert calibration_error(margins) == pytest.approx(expit(1.0) - 0.5)
    assert calibration_error(np.empty(0)) is None


def test_equal_confidences_are_in_one_bin_whatever_their_order():
    confidences = np.repeat([0.5, 0.6, 0.9], [40, 5, 55])

    assert sorted(np.unique(bins_of(confidences), return_counts=True)[1]) == [5, 40, 55]


def test_what_chance_adds_is_taken_off_and_a_real_gap_stays():
    rng = np.random.default_rng(1)
    values = {scale: [preferences(scale, 13, rng) for _ in range(40)] for scale in (1.0, 4.0)}

    plain = {s: np.mean([calibration_error(m) for m, _ in drawn]) for s, drawn in values.items()}
    squares = {
        s: np.mean([debiased_calibration_error(*of).value ** 2 for of in drawn])
        for s, drawn in values.items()
    }

    assert squares[1.0] ** 0.5 < 0.05 < 0.06 < plain[1.0]
    assert squares[4.0] ** 0.5 > 0.15


def test_a_debiased_error_has_an_interval_from_two_people_on():
    margins = np.array([2.0, -1.0, 0.5, 1.0])

    alone = debiased_calibration_error(margins, np.zeros(4))
    two = debiased_calibration_error(margins, np.array([0, 0, 1, 1]))

    assert (alone.low, alone.high, alone.num_clusters) == (None, None, 1)
    assert 0 <= two.low <= two.value <= two.high <= 1


@pytest.mark.parametrize(
    ("margins", "users"),
    [
        ([0.01, -0.01] * 6, 3),
        ([0.01, -0.0101] * 6, 3),
        ([-0.2, -0.21, -0.22] * 3, 3),
        ([1.0] * 9, 3),
        ([0.0] * 8, 4),
        ([3.0, -1.0, 2.0, -2.0] * 50, 10),
    ],
)
def test_a_calibration_interval_is_no_point_and_reaches_as_far_as_the_mean_gaps(margins, users):
    margins, clusters = np.array(margins), np.repeat(np.arange(users), len(margins) // users)

    error = debiased_calibration_error(margins, clusters)
    gap = overconfidence(*confidence(margins), clusters)

    assert error.low <= error.value <= error.high
    assert error.high - error.low > 0.01
    assert error.high >= max(-gap.low, gap.high)
    assert gap.high - gap.low > 0.01
    assert (gap.low <= 0 <= gap.high) == (gap.p_value > 0.05)


def test_calibrated_pairs_never_have_an_error_that_is_surely_0():
    rng = np.random.default_rng(3)
    drawn = [preferences(1.0, 11, rng) for _ in range(100)]

    assert min(debiased_calibration_error(*of).high for of in drawn) > 0.01


def test_where_all_are_right_confidences_that_vary_do_not_narrow_the_gap():
    clusters = np.repeat(np.arange(10), 10)
    confidences = 0.8 + 0.001 * np.tile(np.linspace(-1, 1, 10), 10)
    varied = confidences + 0.0005 * np.repeat(np.linspace(-1, 1, 10), 10)

    found = overconfidence(varied, np.ones(100), clusters)

    assert found.value == pytest.approx(-0.2)
    # As many may be wrong as where 100 pairs of 10 users were all right.
    assert found.high - found.value > 1 - accuracy(np.ones(100), clusters).low - 1e-9


def data_of(train, test, *, dev=None, votes=False):
    nobody = np.empty(0, np.int64)
    return SimpleNamespace(
        train=train,
        dev=test.take(nobody) if dev is None else dev,
        test=test,
        cultures=test.cultures,
        scores_are_votes=votes,
    )


def test_a_culture_with_people_held_out_for_choices_is_fitted_on_them_alone():
    train, test = make_pairs([0, 0, 1, 1], [0, 1, 2, 3]), make_pairs([0, 1], [0, 1])
    dev = train.take(np.array([0]))
    data = data_of(train, test, dev=dev)

    fitting = fitting_pairs(data, seed=0)
    found = evaluate_calibration(data, rewards_of([1.0, -2.0, 1, -2]), None, saved=None, seed=0)

    assert fitting.interactions.tolist() == [0, 2, 3]
    assert [found[culture].fitted_on for culture in ("A", "B")] == ["dev", "train"]
    assert found["A"].temperatures["model_fitted"] == 1e-3


def test_every_culture_has_its_own_temperature_and_the_global_model_its_own():
    codes = [0] * 60 + [1] * 60
    pairs = make_pairs(codes, list(range(120)))
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(1, 2, 120), rng.normal(0.2, 1, 120)

    found = evaluate_calibration(
        data_of(pairs, pairs), rewards_of(ours), rewards_of(theirs), saved=None, seed=0
    )

    for code, culture in enumerate(("A", "B")):
        own = np.float32(ours[60 * code : 60 * code + 60])
        calibration = found[culture]
        fitted = fit_win_temperature(own)
        assert calibration.temperatures["model_fitted"] == pytest.approx(fitted, rel=1e-5)
        brier = (expit(-own / fitted) ** 2).mean()
        assert calibration.brier["model_fitted"].value == pytest.approx(brier, rel=1e-4)
        assert calibration.brier["model_fitted"].value <= calibration.brier["model"].value
        assert calibration.brier_minus_global.keys() == {"model", "model_fitted"}
        assert calibration.vote_distance == {}


def test_without_a_global_model_or_training_pairs_what_is_missing_is_absent():
    test, train = make_pairs([0, 1], [0, 1]), make_pairs([0], [0])

    found = evaluate_calibration(
        data_of(train, test), rewards_of([1.0, 2.0]), None, saved=None, seed=0
    )

    assert found["A"].brier.keys() == {"model", "model_fitted"}
    assert found["B"].brier.keys() == {"model"}
    assert found["B"].brier_minus_global == {}


def test_a_saved_temperature_takes_the_fitted_ones_place():
    pairs = make_pairs([0, 1], [0, 1])

    found = evaluate_calibration(
        data_of(pairs, pairs), rewards_of([1.0, 2.0]), None, saved={"A": 2.0}, seed=0
    )

    assert (found["A"].temperatures, found["A"].fitted_on) == ({"model_fitted": 2.0}, "saved")
    assert found["B"].temperatures == {}


def test_votes_are_what_a_win_probability_is_held_against():
    pairs = make_pairs([0, 0], [0, 1], cultures=("A",))
    pairs.chosen_scores[:], pairs.rejected_scores[:] = [3, 2], [1, 0]

    found = evaluate_calibration(
        data_of(pairs, pairs, votes=True), rewards_of([0.0, 0.0]), None, saved=None, seed=0
    )

    # |0.5 - 3/4| and |0.5 - 1|
    assert found["A"].vote_distance["model"].value == pytest.approx(0.375)


def test_no_more_training_pairs_are_scored_than_there_are_test_pairs_or_a_few_hundred():
    train = make_pairs([0] * 500 + [1] * 3, list(range(503)))
    test = make_pairs([0] * 250 + [1], list(range(251)))

    fitting = fitting_pairs(data_of(train, test), seed=0)
    again = fitting_pairs(data_of(train, test), seed=1)

    assert np.bincount(fitting.culture_codes).tolist() == [250, 3]
    assert MIN_FITTED_PAIRS == 200
    assert not np.array_equal(fitting.interactions, again.interactions)
