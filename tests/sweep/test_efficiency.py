from collections.abc import Sequence
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.results import Difference, Estimate
from scpo_ray.sweep.efficiency import efficiency_curves, matching_pairs
from scpo_ray.sweep.records import Setting, SettingSummary

FRACTION = "data.data_fraction"
Row = tuple[str, float, float, float | None]  # method, fraction, selected pairs, objective


def summary(number: int, row: Row) -> SettingSummary:
    method, fraction, num_pairs, value = row
    return SettingSummary(
        setting=Setting(number, {"method": method, FRACTION: fraction}, ""),
        num_finished=1,
        num_failed=0,
        num_stopped=0,
        accuracy={"": {}},
        other_cultures=None,
        objective=None if value is None else Estimate(value, None, None, 8, 4),
        objective_per_culture={},
        minus_best=None,
        minus_global=None,
        seed_sd=None,
        kept_share=1.0,
        num_pairs=num_pairs,
    )


def minus(ours: float | None, theirs: float | None) -> Difference | None:
    """Known to a hundredth of a point."""
    if ours is None or theirs is None:
        return None
    value = ours - theirs
    return Difference(value, value - 1e-4, value + 1e-4, None, None, 8, 4)


def curves_of(rows: Sequence[Row], noise: Sequence[float] = (0.0, 0.0), mode: str = "max"):
    """Curves whose replicates are the values plus a method's own noise (none for finetune)."""
    summaries = [summary(number, row) for number, row in enumerate(rows)]
    replicates = {
        number: np.full(len(noise), np.nan)
        if value is None
        else value + (method != "finetune") * np.array(noise)
        for number, (method, _, _, value) in enumerate(rows)
    }
    curves = efficiency_curves(
        ["method", FRACTION, "culture"],
        summaries,
        replicates,
        mode,
        tail=0.025,
        minus=lambda ours, theirs: minus(rows[ours][3], rows[theirs][3]),
    )
    return {curve.name: curve for curve in curves}


FINETUNE: list[Row] = [("finetune", 1.0, 1_000, 0.60), ("finetune", 0.5, 500, 0.56)]
SCPO: list[Row] = [("scpo", 0.5, 200, 0.58), ("scpo", 0.25, 100, 0.54), ("scpo", 1.0, 400, 0.62)]


def test_a_curve_reaches_its_rival_between_two_of_its_points():
    curves = curves_of([*SCPO, *FINETUNE])

    assert list(curves) == ["method=scpo", "method=finetune"]
    scpo = curves["method=scpo"]
    assert [(p.fraction, p.num_pairs) for p in scpo.points] == [(0.25, 100), (0.5, 200), (1, 400)]
    # 0.60 lies half-way between 0.58 at 200 and 0.62 at 400: 300 of finetune's 1,000.
    assert scpo.rival == "method=finetune"
    assert scpo.pairs_to_match == pytest.approx((0.3, 0.3, 0.3))
    assert curves["method=finetune"].pairs_to_match is None


def test_the_interval_comes_from_the_replicates_and_may_have_no_end():
    # By replicate: 0.63 at the last point (250 pairs do), as measured (300), 0.59 (never).
    curves = curves_of([*SCPO, *FINETUNE], noise=[0.01, 0.0, -0.03])

    assert curves["method=scpo"].pairs_to_match == pytest.approx((0.3, 0.25, inf))


def test_without_replicates_nothing_is_known_of_the_interval():
    curves = curves_of([*SCPO, *FINETUNE], noise=[np.nan, np.nan])

    assert curves["method=scpo"].pairs_to_match == pytest.approx((0.3, 0, inf))


def test_lower_is_better_where_the_mode_says_so():
    rows = [(method, f, n, 1 - value) for method, f, n, value in [*SCPO, *FINETUNE]]

    assert curves_of(rows, mode="min")["method=scpo"].pairs_to_match[0] == pytest.approx(0.3)


def test_without_finetune_the_first_curve_is_the_rival():
    rows = [*SCPO, ("filter", 0.5, 200, 0.5), ("filter", 1.0, 400, 0.6)]

    curves = curves_of(rows)

    assert {curve.rival for curve in curves.values()} == {"method=scpo"}
    assert curves["method=filter"].pairs_to_match[0] == inf


def test_a_setting_without_objective_is_no_point_and_a_rival_without_it_no_target():
    rows = [*SCPO[:2], ("scpo", 1.0, 400, None), ("finetune", 1.0, 1_000, None), FINETUNE[1]]

    curves = curves_of(rows)

    assert [p.fraction for p in curves["method=scpo"].points] == [0.25, 0.5]
    assert [p.fraction for p in curves["method=finetune"].points] == [0.5]
    assert curves["method=scpo"].pairs_to_match is None


def test_one_fraction_or_no_such_axis_makes_no_curve():
    assert curves_of([SCPO[0], FINETUNE[1]]) == {}
    summaries = [summary(number, row) for number, row in enumerate(SCPO)]
    assert (
        efficiency_curves(["method"], summaries, {}, "max", tail=0.025, minus=lambda *_: None) == []
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_target_is_never_reached_with_fewer_pairs(reached, one, other):
    num_pairs = 100.0 * np.arange(1, len(reached) + 1)
    low, high = sorted([one, other])

    easy, hard = matching_pairs(num_pairs, np.array([reached, reached]).T, np.array([low, high]))

    assert 100 <= easy <= hard
    assert (hard == inf) == (max(reached) < high - 1e-12)


@pytest.mark.parametrize(
    ("first", "learned"), [(0.56, "better"), (0.60, "not distinguishable"), (0.64, "worse")]
)
def test_a_rival_that_stays_flat_leaves_nothing_to_match(first: float, learned: str):
    flat = [FINETUNE[0], ("finetune", 0.5, 500, first)]

    scpo = curves_of([*SCPO, *flat])["method=scpo"]

    assert scpo.rival_learned == learned


def test_a_curve_that_suffices_at_its_first_point_needs_at_most_that():
    curves = curves_of([*SCPO, ("finetune", 1.0, 1_000, 0.53), ("finetune", 0.5, 500, 0.50)])

    assert curves["method=scpo"].pairs_to_match[0] == pytest.approx(0.1)
    assert curves["method=scpo"].is_at_most
    assert not curves_of([*SCPO, *FINETUNE])["method=scpo"].is_at_most
