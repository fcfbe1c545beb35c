from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.evaluation.champion import MARGIN, Verdict, judge
from scpo_ray.evaluation.comparison import PairOutcomes

RIGHT, WRONG = 1.0, -1.0
USERS = 4


def outcomes(
    right: Mapping[str, Sequence[bool]],
    *,
    global_right: Sequence[bool] = (False, True),
    with_global: bool = True,
    users: int = USERS,
) -> PairOutcomes:
    """Per culture, whether each pair is ranked right; every user has one pair after the other.

    `global_right`: whether the global model ranks a pair right, of each user's pairs in turn.
    """
    culture = [name for name, values in right.items() for _ in values]
    number = [i for values in right.values() for i in range(len(values))]
    ref = [RIGHT if global_right[i // users % len(global_right)] else WRONG for i in number]
    return PairOutcomes(
        culture=np.array(culture, object),
        pair_id=np.array([f"{c}{i}:0>1" for c, i in zip(culture, number, strict=True)], object),
        cluster=np.array(
            [100 * list(right).index(c) + i % users for c, i in zip(culture, number, strict=True)]
        ),
        ref_margin=np.array(ref, np.float32) if with_global else None,
        margin=np.array(
            [RIGHT if r else WRONG for values in right.values() for r in values], np.float32
        ),
    )


def judged(
    new: PairOutcomes,
    champion: PairOutcomes,
    cultures: Sequence[str] = ("Mexico",),
    *,
    margin: float = MARGIN,
    seed: int = 0,
) -> Verdict:
    return judge(
        new,
        champion,
        cultures,
        distinctive_threshold=0.5,
        samples=200,
        seed=seed,
        margin=margin,
    )


def mexico(distinctive: int, agreed: int, chile: int = 4, **options: object) -> PairOutcomes:
    """Eight pairs of Mexico, as many right of four distinctive and four agreed; of Chile four."""
    own = [i < distinctive for i in range(4)] + [i < agreed for i in range(4)]
    return outcomes({"Mexico": own, "Chile": [i < chile for i in range(4)]}, **options)


def holds(verdict: Verdict) -> dict[str, bool | None]:
    return {contest.test_pairs: contest.holds for contest in verdict.contests}


def test_a_model_that_gains_without_loss_is_champion():
    verdict = judged(mexico(3, 4), mexico(1, 4))

    assert verdict.is_champion
    assert holds(verdict) == {
        "all": True,
        "distinctive": None,
        "agreed": True,
        "other cultures": True,
    }
    whole, distinctive, agreed, others = verdict.contests
    assert (whole.accuracy, whole.champion_accuracy) == (7 / 8, 5 / 8)
    assert whole.difference.value == 2 / 8
    assert distinctive.difference.value == 2 / 4
    assert (agreed.difference.value, agreed.difference.low) == (0, 0)
    assert (others.accuracy, others.champion_accuracy, others.difference.num_pairs) == (1, 1, 4)
    assert verdict.reason.startswith("it is not worse, in points: all +25.00 [")
    assert "agreed +0.00 [+0.00, +0.00]; other cultures +0.00 [+0.00, +0.00]" in verdict.reason


def test_an_equal_model_is_champion():
    assert judged(mexico(2, 3, 2), mexico(2, 3, 2)).is_champion


def test_a_model_below_the_champion_on_all_is_not_whatever_else_it_gains():
    verdict = judged(mexico(0, 4), mexico(1, 4))

    assert not verdict.is_champion
    assert holds(verdict)["all"] is False
    assert holds(verdict)["agreed"] is holds(verdict)["other cultures"] is True
    assert verdict.reason == (
        "it may be worse, in points: all -12.50 [-49.70, +0.00], must not be below 0"
    )


def test_what_the_global_model_knew_is_not_traded_for_what_it_did_not():
    verdict = judged(mexico(4, 3), mexico(0, 4))

    assert holds(verdict) == {
        "all": True,
        "distinctive": None,
        "agreed": False,
        "other cultures": True,
    }
    assert not verdict.is_champion
    assert "agreed -25.00 [-99.41, +0.00], whose lower end must be above -2.00" in verdict.reason
    assert "all" not in verdict.reason


def test_the_other_cultures_do_not_pay():
    verdict = judged(mexico(4, 4, chile=3), mexico(0, 4, chile=4))

    assert [name for name, held in holds(verdict).items() if held is False] == ["other cultures"]
    assert "other cultures -25.00 [-99.41, +0.00]" in verdict.reason


def test_a_loss_within_the_margin_is_allowed():
    new, champion = mexico(4, 3), mexico(0, 4)

    # One of four users loses: in one resample of 256 all four are that user.
    assert not judged(new, champion, margin=0.99).is_champion
    assert judged(new, champion, margin=1.0).is_champion


def test_without_other_cultures_that_check_is_skipped_and_said():
    new, champion = (outcomes({"Mexico": [r] * 8}) for r in (True, False))

    verdict = judged(new, champion)

    assert verdict.is_champion
    assert holds(verdict)["other cultures"] is None
    assert verdict.contests[-1].difference.num_pairs == 0
    assert verdict.reason.endswith("other cultures not checked: no test pair of theirs")


@pytest.mark.parametrize("options", [{"with_global": False}, {"global_right": (False,)}])
def test_without_agreed_pairs_that_check_is_skipped_and_said(options):
    verdict = judged(mexico(4, 4, **options), mexico(1, 4, **options))

    assert verdict.is_champion
    assert "agreed not checked: no such test pair" in verdict.reason
    assert holds(verdict).get("agreed") is None


def test_one_user_cannot_show_that_nothing_is_lost():
    verdict = judged(mexico(4, 4, users=1), mexico(0, 4, users=1))

    assert not verdict.is_champion
    assert "without an interval (one user or question), which must be above -2.00" in verdict.reason


def test_a_mixture_is_judged_by_the_mean_over_its_cultures():
    new = outcomes({"Mexico": [True] * 8, "Chile": [True] * 8, "Peru": [True] * 8})
    champion = outcomes({"Mexico": [True] * 8, "Chile": [False] * 8, "Peru": [True] * 8})

    verdict = judged(new, champion, ["Mexico", "Chile"])

    whole, _, _, others = verdict.contests
    assert (whole.accuracy, whole.champion_accuracy) == (1, 1 / 2)
    assert others.difference.num_pairs == 8


@pytest.mark.parametrize(
    ("champion", "reason"),
    [
        (outcomes({"Mexico": [True] * 8, "Peru": [True] * 4}), "their test pairs: row 8 is"),
        (outcomes({"Mexico": [True] * 8}), "their test pairs: row 8 is no pair and"),
        (mexico(4, 4, users=2), "their test pairs: row 2 is"),
        (mexico(4, 4, global_right=(True, False)), "their global model: margins by up to 2"),
        (mexico(4, 4, with_global=False), "their global model: only one has its margins"),
    ],
)
def test_models_tested_on_other_pairs_are_not_compared(champion, reason):
    verdict = judged(mexico(4, 4), champion)

    assert (verdict.is_champion, verdict.contests) == (False, [])
    assert f"it cannot be compared: the two differ in {reason}" in verdict.reason


def test_a_model_not_tested_on_its_culture_is_not_champion():
    verdict = judged(mexico(4, 4), mexico(0, 4), ["Mexico", "Peru"])

    assert verdict.reason == "it cannot be compared: it was not tested on Peru"
    assert not verdict.is_champion


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"margin must be in \[0, 1\], got -0.02"):
        judged(mexico(4, 4), mexico(4, 4), margin=-0.02)


# Properties

PAIRS = st.lists(st.booleans(), min_size=12, max_size=12)
BOTH = st.tuples(PAIRS, PAIRS, PAIRS, PAIRS)


def two_models(values: tuple[list[bool], ...]) -> tuple[PairOutcomes, PairOutcomes]:
    return tuple(
        outcomes({"Mexico": own, "Chile": other}) for own, other in (values[:2], values[2:])
    )


@settings(max_examples=30)
@given(BOTH)
def test_a_model_may_always_follow_itself(values):
    model, _ = two_models(values)

    assert judged(model, model).is_champion


@settings(max_examples=30)
@given(BOTH)
def test_two_models_replace_each_other_only_if_equal_on_all(values):
    one, other = two_models(values)

    if judged(one, other).is_champion and judged(other, one).is_champion:
        assert judged(one, other).contests[0].difference.value == 0


@settings(max_examples=30)
@given(BOTH, st.floats(0, 1), st.floats(0, 1))
def test_a_wider_margin_never_refuses_what_a_narrower_one_allows(values, one, other):
    new, champion = two_models(values)
    low, high = sorted((one, other))

    narrow, wide = (judged(new, champion, margin=margin) for margin in (low, high))

    assert wide.is_champion or not narrow.is_champion


@settings(max_examples=30)
@given(BOTH, st.integers(0, 23))
def test_one_more_pair_ranked_right_never_costs_the_title(values, pair):
    new, champion = two_models(values)
    better = PairOutcomes(**{**vars(new), "margin": new.margin.copy()})
    better.margin[pair] = RIGHT

    assert judged(better, champion).is_champion or not judged(new, champion).is_champion
