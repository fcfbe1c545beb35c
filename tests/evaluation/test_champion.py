from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t

from scpo_ray.data.hashes import pair_hashes
from scpo_ray.evaluation.champion import MARGIN, Judgement, judge
from scpo_ray.evaluation.comparable import PairOutcomes

RIGHT, WRONG = 1.0, -1.0
USERS = 20


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
    first: PairOutcomes | None = None,
) -> Judgement:
    return judge(
        new,
        champion,
        cultures,
        first=first,
        distinctive_threshold=0.5,
        margin=margin,
    )


def mexico(
    gained: int = 0, lost: int = 0, others: int = 0, *, pairs: int = 30, **options: object
) -> PairOutcomes:
    """Mexico's users have 30 distinctive and 30 agreed pairs each, Chile's as many as `pairs`.

    Of each user's the model ranks right as many distinctive ones as it `gained`, and wrong as many
    agreed ones as it `lost`, and as many of Chile's as `others`.
    """
    users = options.get("users", USERS)
    own = [
        i // users // 2 < gained if i // users % 2 == 0 else i // users // 2 >= lost
        for i in range(60 * users)
    ]
    chile = [i // users >= others for i in range(pairs * users)]
    return outcomes({"Mexico": own, "Chile": chile}, **options)


def holds(judgement: Judgement, against: str = "champion") -> dict[str, bool | None]:
    return {c.test_pairs: c.holds for c in judgement.contests if c.against == against}


def test_a_model_that_gains_without_loss_is_champion():
    judgement = judged(mexico(6), mexico())

    assert judgement.is_champion
    assert holds(judgement) == {
        "all": True,
        "distinctive": None,
        "agreed": True,
        "other cultures": True,
    }
    whole, distinctive, agreed, others = judgement.contests
    assert (whole.accuracy, whole.champion_accuracy) == (36 / 60, 30 / 60)
    assert whole.difference.value == pytest.approx(6 / 60)
    assert distinctive.difference.value == pytest.approx(6 / 30)
    # 600 pairs of 20 users, worth 600 / (1 + 0.05 * 29): t^2 / (n + t^2) of them may be others.
    square = t.ppf(0.975, 19) ** 2 * (1 + 0.05 * 29) / 600
    assert agreed.difference.value == 0
    assert agreed.difference.low == pytest.approx(-square / (1 + square))
    assert (others.accuracy, others.champion_accuracy, others.difference.num_pairs) == (1, 1, 600)
    assert judgement.reason.startswith(
        "it is better and loses nowhere else, in points: all +10.00 ["
    )


def test_an_equal_model_gains_nothing_and_is_not_champion():
    judgement = judged(mexico(6), mexico(6))

    assert not judgement.is_champion
    assert "all +0.00" in judgement.reason and ", must be above 0" in judgement.reason


def test_a_gain_that_may_as_well_be_a_loss_beyond_the_margin_is_none():
    # Eight of 20 users gain 30 pairs of 60 and twelve lose 18: 2 points, give or take far more.
    champion = outcomes({"Mexico": [False] * 600 + [True] * 600})
    right = [i % 20 < 8 or i >= 960 for i in range(1_200)]
    new = outcomes({"Mexico": right})

    whole = judged(new, champion).contests[0]

    assert whole.difference.value == pytest.approx(24 / 1_200)
    assert whole.difference.low < -MARGIN and whole.holds is False


def test_what_the_global_model_knew_is_not_traded_for_what_it_did_not():
    judgement = judged(mexico(12, lost=1), mexico())

    assert holds(judgement) == {
        "all": True,
        "distinctive": None,
        "agreed": False,
        "other cultures": True,
    }
    assert not judgement.is_champion
    assert judgement.reason.startswith("it is not shown to be as good, in points: agreed -3.33 [")
    assert "whose lower end must be above -2.00" in judgement.reason
    assert "all" not in judgement.reason


def test_the_other_cultures_do_not_pay():
    judgement = judged(mexico(6, others=1), mexico())

    assert [n for n, held in holds(judgement).items() if held is False] == ["other cultures"]


def test_a_loss_within_the_margin_is_allowed():
    new, champion = mexico(6, lost=1), mexico()

    # 3.3 points lost, and 1.7 more that may be.
    assert not judged(new, champion, margin=0.05).is_champion
    assert judged(new, champion, margin=0.06).is_champion


def test_losses_add_up_against_the_first_champion_of_the_line():
    line = [mexico(6 * step, others=step) for step in range(4)]
    steps = [judged(line[i + 1], line[i], margin=0.06, first=line[0]) for i in range(3)]

    # Every step loses 3.3 points elsewhere, which the margin allows once.
    assert [step.is_champion for step in steps] == [True, False, False]
    assert all(judged(line[i + 1], line[i], margin=0.06).is_champion for i in range(3))
    assert holds(steps[1])["other cultures"] is True
    assert holds(steps[1], "first champion") == {
        "all": True,
        "agreed": True,
        "other cultures": False,
    }
    assert "other cultures against the first champion -6.67 [" in steps[1].reason


def test_a_first_champion_that_comes_back_is_no_rival_of_itself():
    first, last = mexico(6), mexico()
    again = PairOutcomes(**{**vars(first), "margin": first.margin.copy()})

    judgement = judged(again, last, first=first)

    assert judgement == judged(first, last)
    assert judgement.is_champion


def test_small_losses_that_many_questions_can_show_do_not_drift():
    rng = np.random.default_rng(3)
    clusters = 120
    champion = mexico(users=clusters)
    first, promoted = champion, 0
    elsewhere = np.flatnonzero(champion.culture == "Chile")
    mine = np.flatnonzero((champion.culture == "Mexico") & (champion.ref_margin < 0))
    for step in range(1, 7):
        # One point more lost elsewhere, two points more gained at home.
        margins = champion.margin.copy()
        right = elsewhere[margins[elsewhere] > 0]
        margins[rng.choice(right, len(elsewhere) // 100, replace=False)] = WRONG
        wrong = mine[margins[mine] < 0]
        margins[rng.choice(wrong, len(mine) // 25, replace=False)] = RIGHT
        new = PairOutcomes(**{**vars(champion), "margin": margins})
        if not judged(new, champion, first=first if step > 1 else None).is_champion:
            break
        champion, promoted = new, promoted + 1

    lost = (first.margin[elsewhere] > 0).mean() - (champion.margin[elsewhere] > 0).mean()
    assert promoted == 1 and lost == pytest.approx(0.01)


@pytest.mark.parametrize("users", [2, 7])
def test_few_users_cannot_show_that_nothing_is_lost(users: int):
    judgement = judged(mexico(30, users=users), mexico(users=users), margin=0.9)

    assert not judgement.is_champion
    assert f"from {users} users (or questions), must be from 8" in judgement.reason


def test_without_other_cultures_that_check_is_skipped_and_said():
    new, champion = (outcomes({"Mexico": [r] * 1_200}) for r in (True, False))

    judgement = judged(new, champion)

    assert judgement.is_champion
    assert holds(judgement)["other cultures"] is None
    assert judgement.contests[-1].difference.num_pairs == 0
    assert judgement.reason.endswith("other cultures not checked: no pair of theirs")


@pytest.mark.parametrize("options", [{"with_global": False}, {"global_right": (False,)}])
def test_without_agreed_pairs_that_check_is_skipped_and_said(options):
    judgement = judged(mexico(6, **options), mexico(**options))

    assert judgement.is_champion
    assert "agreed not checked: no such pair" in judgement.reason
    assert holds(judgement).get("agreed") is None


def test_a_mixture_is_judged_by_the_mean_over_its_cultures():
    new = outcomes({"Mexico": [True] * 8, "Chile": [True] * 8, "Peru": [True] * 8})
    champion = outcomes({"Mexico": [True] * 8, "Chile": [False] * 8, "Peru": [True] * 8})

    judgement = judged(new, champion, ["Mexico", "Chile"])

    whole, _, _, others = judgement.contests
    assert (whole.accuracy, whole.champion_accuracy) == (1, 1 / 2)
    assert others.difference.num_pairs == 8


@pytest.mark.parametrize(
    ("champion", "reason"),
    [
        (outcomes({"Mexico": [True] * 1_200, "Peru": [True]}), "their pairs: row 1200 is"),
        (outcomes({"Mexico": [True] * 1_200}), "their pairs: row 1200 is no pair and"),
        (mexico(users=10), "their pairs: row 10 is"),
        (mexico(global_right=(True, False)), "their global model: margins by up to 2"),
        (mexico(with_global=False), "their global model: only one has its margins"),
    ],
)
def test_models_tested_on_other_pairs_are_not_compared(champion, reason):
    judgement = judged(mexico(), champion)

    assert (judgement.is_champion, judgement.contests) == (False, [])
    assert f"it cannot be compared: the two differ in {reason}" in judgement.reason


def with_texts(pairs: PairOutcomes, *, turned: bool = False) -> PairOutcomes:
    chosen = np.arange(len(pairs.margin), dtype=np.uint64) << np.uint64(40)
    rejected = chosen + np.uint64(7)
    hashes = pair_hashes(rejected, chosen) if turned else pair_hashes(chosen, rejected)
    return replace(pairs, pair_hash=hashes)


def test_the_same_pairs_with_other_labels_are_other_pairs():
    new, champion = with_texts(mexico(6)), with_texts(mexico())

    assert judged(new, champion) == judged(mexico(6), mexico())
    # Nor are pairs of an earlier version refused, which say nothing of their texts.
    assert judged(new, mexico()) == judged(mexico(6), mexico())
    assert judged(new, with_texts(mexico(), turned=True)).reason == (
        "it cannot be compared: the two differ in their texts: in 1800 of 1800 pairs these are "
        "others, or the other one is chosen; the first is 'Mexico0:0>1' of 'Mexico'"
    )


@pytest.mark.parametrize("size", [1e-5, 0.002, 1.0, 300.0])
@pytest.mark.parametrize(("change", "is_same"), [(1.0001, True), (1.1, False), (-1, False)])
def test_global_models_are_told_apart_in_any_unit(size, change, is_same):
    ref = size * mexico().ref_margin
    new, champion = replace(mexico(6), ref_margin=ref), replace(mexico(), ref_margin=change * ref)

    judgement = judged(new, champion)

    assert bool(judgement.contests) == is_same
    assert ("their global model: margins by up to" in judgement.reason) != is_same


def test_a_model_not_tested_on_its_culture_is_not_champion():
    judgement = judged(mexico(6), mexico(), ["Mexico", "Peru"])

    assert judgement.reason == "it cannot be compared: it was not tested on Peru"
    assert not judgement.is_champion


def test_a_first_champion_tested_on_other_pairs_is_not_compared():
    first = mexico(users=10)

    judgement = judged(mexico(6), mexico(), first=first)

    assert (judgement.is_champion, judgement.contests) == (False, [])
    assert "it and the first champion differ in their pairs" in judgement.reason


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"margin must be in \[0, 1\], got -0.02"):
        judged(mexico(), mexico(), margin=-0.02)
    with pytest.raises(ValueError, match="cultures must name one at least, got none"):
        judged(mexico(), mexico(), [])


# Properties

PAIRS = st.lists(st.booleans(), min_size=24, max_size=24)
BOTH = st.tuples(PAIRS, PAIRS, PAIRS, PAIRS)


def two_models(values: tuple[list[bool], ...]) -> tuple[PairOutcomes, PairOutcomes]:
    return tuple(
        outcomes({"Mexico": own, "Chile": other}, users=8)
        for own, other in (values[:2], values[2:])
    )


@settings(max_examples=30)
@given(BOTH, st.floats(0, 1))
def test_two_models_never_replace_each_other(values, margin):
    one, other = two_models(values)

    both = [judged(*pair, margin=margin).is_champion for pair in ((one, other), (other, one))]
    assert not all(both)


@settings(max_examples=30)
@given(BOTH, st.floats(0, 1), st.floats(0, 1))
def test_a_wider_margin_never_refuses_what_a_narrower_one_allows(values, one, other):
    new, champion = two_models(values)
    low, high = sorted((one, other))

    narrow, wide = (judged(new, champion, margin=margin) for margin in (low, high))

    assert wide.is_champion or not narrow.is_champion
