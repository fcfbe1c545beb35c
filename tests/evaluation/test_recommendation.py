from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.evaluation.recommendation import (
    Candidate,
    of_run,
    recommend,
    recommendations,
)
from scpo_ray.results import Difference
from scpo_ray.statistics.intervals import clusters_needed, reversed_difference
from tests.results import comparison, difference, estimate, run_result


def candidate(name, value, behind=None, half_width=0.03):
    change = None if behind is None else difference(behind, half_width)
    return Candidate(name, estimate(value), change)


GLOBAL = candidate("global", 0.58, -0.05)
FINETUNE = candidate("finetune", 0.62, -0.01)
SCPO = candidate("scpo", 0.63)


def test_the_best_is_recommended_where_it_is_shown_to_be_better_than_the_global_model():
    found = recommend("Chile", [GLOBAL, FINETUNE, SCPO])

    assert (found.name, found.best, found.certainty) == ("scpo", "scpo", "clear")
    assert found.as_good == ("finetune",)
    assert (found.over_global.value, found.over_global.low) == pytest.approx((0.05, 0.02))
    assert found.over_finetune.value == pytest.approx(0.01)


def test_the_global_model_is_kept_where_no_method_is_shown_to_be_better():
    near = candidate("global", 0.61, -0.02)

    found = recommend("Chile", [near, SCPO])

    assert (found.name, found.best, found.certainty) == ("global", "scpo", "not distinguishable")
    # 9 users show 4.2 points: 5 points take 9 (4.2 / 5)^2 of them.
    assert found.users_needed == 7


@pytest.mark.parametrize(
    ("candidates", "name", "certainty"),
    [
        ([candidate("global", 0.6), candidate("scpo", 0.5, -0.1)], "global", "clear"),
        (
            [candidate("global", 0.6), candidate("a", 0.59, -0.01)],
            "global",
            "not distinguishable",
        ),
        ([FINETUNE, SCPO], "scpo", "not distinguishable"),
        ([candidate("finetune", 0.5, -0.13), SCPO], "scpo", "clear"),
        ([SCPO], "scpo", "unknown"),
        ([candidate("scpo", None)], "", "unknown"),
        ([], "", "unknown"),
        # Nothing says how they differ: a comparison of an older version.
        ([candidate("global", 0.58), SCPO], "global", "unknown"),
    ],
)
def test_what_is_recommended_and_how_sure_that_is(candidates, name, certainty):
    found = recommend("Chile", candidates)

    assert (found.name, found.certainty) == (name, certainty)


def test_without_an_interval_too_few_users_were_tested():
    bare = Difference(-0.2, None, None, None, None, 9, 1)

    found = recommend("Chile", [Candidate("global", estimate(0.4), bare), SCPO])

    assert (found.name, found.certainty, found.users_needed) == ("global", "too few users", None)


def test_of_ties_the_first_is_the_best_and_a_method_without_a_number_is_left_out():
    tied = candidate("finetune", 0.63)

    found = recommend("Chile", [candidate("filter", None), tied, SCPO])

    assert found.best == "finetune" and found.unknown == ("scpo",)


def test_the_lowest_is_best_where_the_sweep_says_so():
    found = recommend("", [candidate("a", 0.5), candidate("b", 0.6, 0.1)], mode="min")

    assert (found.best, found.certainty) == ("a", "clear")


def test_a_comparison_has_a_recommendation_for_the_macro_mean_and_every_culture():
    _, summary = comparison()

    found = recommendations(summary)

    assert [r.culture for r in found] == ["", "Chile", "Israel", "Mexico"]
    macro = found[0]
    of = next(s for s in summary.summaries if (s.method, s.culture) == ("scpo", ""))
    assert macro.best == "scpo" and macro.reached == of.accuracy["all"]
    assert macro.agreed == of.minus_global["agreed"] and macro.others == of.others_minus_global


@pytest.mark.parametrize(
    ("gain", "name", "certainty"),
    [
        (0.05, "scpo", "clear"),
        (0.01, "global", "not distinguishable"),
        (-0.05, "global", "clear"),
    ],
)
def test_a_run_is_set_against_the_global_model(gain, name, certainty):
    run = run_result()
    after = {"all": estimate(0.586 + gain)}
    tested = replace(run.evaluation["Chile"], after=after, difference={"all": difference(gain)})

    [found] = of_run(replace(run, evaluation={"Chile": tested}))

    assert (found.culture, found.name, found.certainty) == ("Chile", name, certainty)


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.integers(2, 10_000))
def test_as_many_users_as_needed_show_the_effect_and_one_fewer_does_not(detectable, effect, users):
    change = Difference(0.1, 0, 0.2, None, None, users, users, detectable)

    needed = clusters_needed(change, effect)

    assert detectable * (users / needed) ** 0.5 <= effect * (1 + 1e-6)
    assert needed == 1 or detectable * (users / (needed - 1)) ** 0.5 > effect * (1 - 1e-6)


def test_an_effect_must_be_a_share():
    with pytest.raises(ValueError, match=r"effect must be in \(0, 1\], got 5"):
        clusters_needed(difference(0.1), 5)


def test_a_reversed_difference_is_the_rivals():
    change = Difference(0.02, -0.01, 0.05, 0.2, None, 140, 9, 0.04)

    assert reversed_difference(change) == replace(change, value=-0.02, low=-0.05, high=0.01)
    assert reversed_difference(reversed_difference(change)) == change
    assert str(reversed_difference(replace(change, value=0.0)).value) == "0.0"
