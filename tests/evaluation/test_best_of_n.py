"""Best of n: what is picked, what it is worth, and beside whose pick."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.evaluation.best_of_n import candidates, evaluate_best_of_n, picks
from scpo_ray.records import Pairs


def pairs_of(prompts: list[tuple[int, list[float]]], cultures=("A",), codes=None) -> Pairs:
    """(user, scores of the responses) of each prompt; texts are numbered one after the other."""
    rows = []
    start = 0
    for prompt, (user, scores) in enumerate(prompts):
        for i, j in combinations(range(len(scores)), 2):
            if scores[i] != scores[j]:
                best, other = (i, j) if scores[i] > scores[j] else (j, i)
                rows.append((prompt, start, best, other, scores[best], scores[other], user))
        start += len(scores)
    prompt, start_of, chosen, rejected, high, low, user = np.array(rows).T
    return Pairs(
        interactions=prompt.astype(np.int64),
        chosen=(start_of + chosen).astype(np.int64),
        rejected=(start_of + rejected).astype(np.int64),
        chosen_responses=chosen.astype(np.int16),
        rejected_responses=rejected.astype(np.int16),
        chosen_scores=high.astype(np.float32),
        rejected_scores=low.astype(np.float32),
        culture_codes=np.array(codes or [0] * len(rows), np.int32),
        cluster_codes=user.astype(np.int64),
        cultures=cultures,
    )


PROMPTS = [(0, [90.0, 50.0, 10.0]), (1, [20.0, 80.0])]


def test_regret_is_the_best_score_minus_the_picks():
    found = evaluate_best_of_n(
        pairs_of(PROMPTS),
        np.array([1, 3, 2, 5, 9], np.float32),
        np.array([0, 1, 2, 5, 4], np.float32),
    )["A"]

    # The model picks 50 of 90 and 80 of 80, the global one 10 of 90 and 20 of 80.
    assert found.regret["model"].value == pytest.approx((40 + 0) / 2)
    assert found.regret["global"].value == pytest.approx((80 + 60) / 2)
    assert found.regret["random"].value == pytest.approx((40 + 30) / 2)
    assert found.regret_minus_global.value == pytest.approx(-50)
    assert found.regret_minus_global.low < -50 < found.regret_minus_global.high
    # 50 beats one of the two others, 80 the other one.
    assert found.win_rate["random"].value == pytest.approx((0.5 + 1) / 2)
    assert found.win_rate["global"].value == 1
    # Standard deviations of the users' scores: 40, and 42.43.
    assert found.regret_sd["model"].value == pytest.approx((40 / 40 + 0) / 2)
    assert (found.num_prompts, found.mean_responses) == (2, 2.5)


def test_of_equal_rewards_each_is_picked_as_often():
    among = candidates(pairs_of(PROMPTS))

    shares = picks(np.array([1, 1, 0, 2, 2], np.float32), among)

    np.testing.assert_allclose(shares, [[0.5, 0.5, 0], [0.5, 0.5, 0]])


def test_the_same_pick_as_the_global_models_counts_half_and_without_one_it_is_absent():
    rewards = np.array([3, 2, 1, 1, 2], np.float32)

    same = evaluate_best_of_n(pairs_of(PROMPTS), rewards, rewards)["A"]
    alone = evaluate_best_of_n(pairs_of(PROMPTS), rewards, None)["A"]

    assert same.win_rate["global"].value == 0.5
    assert same.regret_minus_global.value == 0
    assert alone.win_rate.keys() == {"random"}
    assert (alone.regret_minus_global, alone.regret.keys()) == (None, {"model", "random"})


def test_a_response_that_ties_with_all_others_is_no_candidate_and_cultures_stay_apart():
    test = pairs_of([(0, [5.0, 5.0]), *PROMPTS], ("A", "B", "C"), codes=[0, 0, 0, 1])

    found = evaluate_best_of_n(test, np.arange(7, dtype=np.float32), None)

    assert {c: (b.num_prompts, b.mean_responses) for c, b in found.items()} == {
        "A": (1, 3.0),
        "B": (1, 2.0),
    }


def test_a_reward_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="rewards must be finite"):
        evaluate_best_of_n(pairs_of(PROMPTS), np.full(5, np.nan, np.float32), None)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=2, max_size=5)
        ).filter(lambda prompt: len(set(prompt[1])) > 1),
        min_size=2,
        max_size=6,
    ),
    st.integers(0, 10),
)
def test_regret_and_wins_are_what_a_plain_loop_counts(prompts, seed):
    rewards = np.random.default_rng(seed).permutation(30).astype(np.float32)
    start, regrets, wins = 0, [], []
    for _, scores in prompts:
        own = rewards[start : start + len(scores)]
        pick = int(np.argmax(own))
        others = [s for place, s in enumerate(scores) if place != pick]
        regrets.append(max(scores) - scores[pick])
        wins.append(np.mean([(np.sign(scores[pick] - s) + 1) / 2 for s in others]))
        start += len(scores)

    found = evaluate_best_of_n(pairs_of(prompts), rewards, None)["A"]

    assert found.regret["model"].value == pytest.approx(np.mean(regrets), abs=1e-6)
    assert found.win_rate["random"].value == pytest.approx(np.mean(wins))
    for estimate in (*found.regret.values(), *found.win_rate.values()):
        if estimate.low is not None:
            assert (
                0 <= estimate.low <= estimate.value + 1e-9
                and estimate.value <= estimate.high + 1e-9
            )


@pytest.mark.parametrize("high", [16777218.0, float(np.nextafter(np.float32(1), np.float32(2)))])
def test_scores_as_near_as_a_pairs_can_be_have_a_spread(high):
    low = 16777216.0 if high > 2 else 1.0
    test = pairs_of([(user, [high, low]) for user in range(3)])

    found = evaluate_best_of_n(test, np.tile([0, 1], 3).astype(np.float32), None)["A"]

    # The model picks the worse one: all of the gap, which is sqrt(2) standard deviations.
    assert found.regret["model"].value == pytest.approx(high - low)
    assert found.regret_sd["model"].value == pytest.approx(2**0.5)
