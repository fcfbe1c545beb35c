import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import t

from scpo_ray.evaluation.layers import evaluate_pairs, example_pairs, pair_ids
from scpo_ray.records import LAYERS, Pairs, Text, TextSource
from scpo_ray.results import CultureEvaluation, Estimate
from scpo_ray.settings.evaluation import EvaluationConfig

CONFIG = EvaluationConfig(bootstrap_samples=200)


def make_pairs(culture_codes: Sequence[int], clusters: Sequence[int], cultures=("A", "B")) -> Pairs:
    """Pair p is text 2p over text 2p + 1, the two responses of interaction p."""
    num_pairs = len(culture_codes)
    index = np.arange(num_pairs, dtype=np.int64)
    return Pairs(
        interactions=index,
        chosen=2 * index,
        rejected=2 * index + 1,
        chosen_responses=np.zeros(num_pairs, np.int16),
        rejected_responses=np.ones(num_pairs, np.int16),
        chosen_scores=np.ones(num_pairs, np.float32),
        rejected_scores=np.zeros(num_pairs, np.float32),
        culture_codes=np.array(culture_codes, np.int32),
        cluster_codes=np.array(clusters, np.int64),
        cultures=tuple(cultures),
    )


def rewards_of(margins: Sequence[float]) -> np.ndarray:
    """(T,) rewards that give pair p the margin at p."""
    rewards = np.zeros(2 * len(margins), np.float32)
    rewards[::2] = margins
    return rewards


def evaluate(
    test: Pairs, after: Sequence[float], before: Sequence[float] | None, lengths=None, seed=0
) -> dict[str, CultureEvaluation]:
    return evaluate_pairs(
        test,
        rewards_of(after),
        None if before is None else rewards_of(before),
        np.ones(2 * len(after), int) if lengths is None else np.array(lengths),
        CONFIG,
        seed=seed,
    )


def values(estimates: dict[str, Estimate]) -> dict[str, float | None]:
    return {layer: estimate.value for layer, estimate in estimates.items()}


def test_layers_before_after_and_their_difference():
    test = make_pairs([0] * 5, [0, 0, 1, 1, 2], cultures=["A"])

    # The global model: two wrong, one tied, two right. The trained one: 1 of those 3, 1 of 2.
    [result] = evaluate(test, after=[1, -1, -1, 1, -1], before=[-1, -2, 0, 1, 2]).values()

    assert values(result.before) == {"all": 2 / 5, "distinctive": 0, "agreed": 1}
    assert values(result.after) == {"all": 2 / 5, "distinctive": 1 / 3, "agreed": 1 / 2}
    assert {layer: d.value for layer, d in result.difference.items()} == {
        "all": 0,
        "distinctive": pytest.approx(1 / 3),
        "agreed": -1 / 2,
    }
    assert [result.after[layer].num_pairs for layer in LAYERS] == [5, 3, 2]
    assert [result.after[layer].num_clusters for layer in LAYERS] == [3, 2, 2]


def test_the_distinctive_threshold_is_the_settings():
    test = make_pairs([0] * 2, [0, 1], cultures=["A"])
    config = EvaluationConfig(distinctive_threshold=0.7, bootstrap_samples=100)

    [result] = evaluate_pairs(
        test, rewards_of([1, 1]), rewards_of([0.5, 2]), np.ones(4, int), config, seed=0
    ).values()

    assert result.before["distinctive"].value == 1.0
    assert [result.before[layer].num_pairs for layer in LAYERS] == [2, 1, 1]


def test_a_layer_without_pairs_has_no_value_and_stays_visible():
    test = make_pairs([0, 0], [0, 1], cultures=["A", "empty"])

    results = evaluate(test, after=[1, -1], before=[1, 1])

    assert results["A"].after["distinctive"] == Estimate(None, None, None, 0, 0)
    assert results["A"].difference["distinctive"].value is None
    assert results["empty"].after["all"] == Estimate(None, None, None, 0, 0)
    assert results["empty"].controls["random"]["agreed"].value is None


def test_without_a_global_model_there_is_one_layer_and_no_before():
    test = make_pairs([0] * 4, range(4), cultures=["A"])

    [result] = evaluate(test, after=[1, 1, 1, -1], before=None).values()

    assert values(result.after) == {"all": 3 / 4}
    assert (result.before, result.difference) == ({}, {})
    assert {name: set(layers) for name, layers in result.controls.items()} == {
        "random": {"all"},
        "longer": {"all"},
    }


def test_longer_wins_by_characters_and_equal_lengths_are_wrong():
    test = make_pairs([0] * 3, range(3), cultures=["A"])

    [result] = evaluate(
        test, after=[1, 1, 1], before=[1, 1, -1], lengths=[9, 3, 5, 5, 2, 8]
    ).values()

    assert values(result.controls["longer"]) == {"all": 1 / 3, "distinctive": 0, "agreed": 1 / 2}


def test_random_is_a_coin_on_every_layer():
    generator = np.random.default_rng(0)
    before = generator.standard_normal(4_000)
    test = make_pairs([0] * 4_000, range(4_000), cultures=["A"])

    [result] = evaluate(test, after=before, before=before).values()

    for layer in LAYERS:
        assert result.controls["random"][layer].value == pytest.approx(0.5, abs=0.04)


def test_noise_is_as_large_as_what_training_changed_without_its_mean():
    generator = np.random.default_rng(0)
    num_pairs = 4_000
    test = make_pairs([0] * num_pairs, range(num_pairs), cultures=["A"])
    before = generator.standard_normal(2 * num_pairs).astype(np.float32)
    after = before + 5 + 0.5 * generator.standard_normal(2 * num_pairs).astype(np.float32)

    [result] = evaluate_pairs(
        test, after, before, np.ones(2 * num_pairs, int), CONFIG, seed=0
    ).values()

    # Margins have standard deviation sqrt(2), their noise sqrt(2) * 0.5: they keep their sign
    # with probability 1/2 + atan(1 / 0.5) / pi. The change was noise too, so training did alike.
    kept = 0.5 + math.atan(2) / math.pi
    assert result.controls["global_noise"]["agreed"].value == pytest.approx(kept, abs=0.03)
    assert result.after["agreed"].value == pytest.approx(kept, abs=0.03)


def test_a_change_is_set_against_noise_as_large_as_it():
    # The global model is unsure everywhere, and right on every other pair. One model turns half of
    # those that it ranks wrong, another half of those that it ranks right.
    test = make_pairs([0] * 400, np.arange(400) // 10, cultures=["A"])
    place = np.arange(400) % 4
    before = np.where(place % 2, 0.1, -0.1)

    [learned] = evaluate(test, after=np.where(place == 0, 0.1, before), before=before).values()
    [lost] = evaluate(test, after=np.where(place == 1, -0.1, before), before=before).values()

    # A quarter is turned: b = 3/4 - 1/4 = 1/2. What is left is 0.05 on three quarters and 0.15 on
    # one: sqrt(0.0075) / b = 0.173, and Phi(-0.1 / 0.173) is 28.2 %.
    assert learned.scale == lost.scale == pytest.approx(0.5)
    noise = learned.controls["global_noise"]
    assert noise["distinctive"].value == pytest.approx(0.282, abs=0.001)
    assert noise["agreed"].value == pytest.approx(0.718, abs=0.001)
    assert learned.minus_noise["distinctive"].value == pytest.approx(0.218, abs=0.001)
    assert learned.minus_noise["distinctive"].p_holm < 0.001
    assert lost.minus_noise["agreed"].value == pytest.approx(-0.218, abs=0.001)
    assert lost.minus_noise["agreed"].high < 0
    assert lost.minus_noise["all"].high < 0


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_a_model_that_did_not_change_has_no_noise_beside_it(shift: float):
    test = make_pairs([0] * 2, range(2), cultures=["A"])
    before = rewards_of([1, -1])

    [result] = evaluate_pairs(
        test, before + np.float32(shift), before, np.ones(4, int), CONFIG, seed=0
    ).values()

    assert set(result.controls) == {"random", "longer"}
    assert result.minus_noise == {}
    assert result.difference["all"].p_value == 1.0


def test_one_more_culture_changes_no_other_cultures_numbers_but_holms():
    generator = np.random.default_rng(0)
    after, before = generator.standard_normal((2, 60)).astype(np.float32)
    lengths = generator.integers(1, 9, 60)
    alone = make_pairs([0] * 30, np.arange(30) // 3, cultures=["A"])
    # The same pairs of A after 30 of B, so that A's texts are numbered otherwise.
    both = make_pairs([1] * 30 + [0] * 30, np.arange(60) // 3, cultures=["A", "B"])
    other_after, other_before = generator.standard_normal((2, 60)).astype(np.float32)

    [expected] = evaluate_pairs(alone, after, before, lengths, CONFIG, seed=1).values()
    result = evaluate_pairs(
        both,
        np.concatenate([other_after, after]),
        np.concatenate([other_before, before]),
        np.concatenate([lengths, lengths]),
        CONFIG,
        seed=1,
    )["A"]

    assert (result.before, result.after, result.controls) == (
        expected.before,
        expected.after,
        expected.controls,
    )
    for layer in LAYERS:
        ours, theirs = result.difference[layer], expected.difference[layer]
        assert (ours.value, ours.low, ours.p_value) == (theirs.value, theirs.low, theirs.p_value)


def test_p_values_are_corrected_over_the_cultures_of_each_layer():
    # Both cultures: six users whose one pair turns from wrong to right; B has two that turn back.
    test = make_pairs([0] * 6 + [1] * 8, range(14))
    before = [-1] * 12 + [1] * 2
    after = [1] * 12 + [-1] * 2

    results = evaluate(test, after=after, before=before)

    # Six pairs that all changed alike; eight of mean 1/2 and variance 6/7, an ordinary t-test.
    smaller = 2 * t.sf(6**0.5, 5)
    larger = 2 * t.sf(0.5 / (6 / 7 / 8) ** 0.5, 7)
    assert smaller < larger
    a, b = results["A"].difference, results["B"].difference
    assert (a["all"].p_value, a["all"].p_holm) == pytest.approx((smaller, 2 * smaller))
    assert b["all"].p_value == pytest.approx(larger)
    assert b["all"].p_holm == pytest.approx(max(larger, 2 * smaller))
    assert (a["agreed"].p_value, a["agreed"].p_holm) == (None, None)
    assert b["agreed"].p_holm == b["agreed"].p_value == pytest.approx(2 * t.sf(2**0.5, 1))


def test_the_seed_decides_the_draws():
    generator = np.random.default_rng(0)
    after, before = generator.standard_normal((2, 40))
    test = make_pairs([0] * 40, range(40), cultures=["A"])

    first, same, other = (evaluate(test, after, before, seed=seed) for seed in (0, 0, 1))

    assert first == same
    assert first["A"].controls["random"] != other["A"].controls["random"]
    assert first["A"].after["all"].value == other["A"].after["all"].value


@pytest.mark.parametrize("side", ["after", "before"])
def test_nan_rewards_stop_the_evaluation(side: str):
    margins = {"after": [1.0, 1.0], "before": [1.0, 1.0]} | {side: [1.0, math.nan]}

    with pytest.raises(ValueError, match="rewards must be finite, got 1 pairs that are not"):
        evaluate(make_pairs([0, 0], [0, 1], cultures=["A"]), **margins)


def test_arrays_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match=r"must be \(T,\) alike, got \[\(4,\), \(6,\), \(4,\)\]"):
        evaluate(make_pairs([0, 0], [0, 1]), after=[1, 1], before=[1, 1], lengths=[1] * 6)


class ListedTexts(TextSource):
    def __init__(self, texts: list[Text]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index):
        return self._texts[index]


def numbered_texts(num_pairs: int) -> ListedTexts:
    return ListedTexts(
        [Text((), f"prompt {t // 2}", f"response {t}") for t in range(2 * num_pairs)]
    )


def examples(num_pairs=40, num_examples=3, seed=0, texts: TextSource | None = None):
    train = make_pairs([0] * num_pairs + [1] * num_pairs, range(2 * num_pairs))
    kept = np.arange(2 * num_pairs) % 4 != 0
    # Odd rows have weight 1; among the even ones that are kept, later rows have smaller weights.
    weights = np.where(np.arange(2 * num_pairs) % 2, 1, 1 / (2 + np.arange(2 * num_pairs)))
    return example_pairs(
        train,
        rewards_of(np.log(weights)),
        kept,
        weights.astype(np.float32),
        numbered_texts(2 * num_pairs) if texts is None else texts,
        [f"int{i}" for i in range(2 * num_pairs)],
        num_examples=num_examples,
        seed=seed,
    )


def test_examples_show_every_kind_of_every_culture():
    kinds = [(example.culture, example.kind) for example in examples()]

    assert kinds == [
        (culture, kind)
        for culture in ("A", "B")
        for kind in ("kept", "dropped", "down-weighted")
        for _ in range(3)
    ]


def test_an_example_carries_its_texts_and_what_the_global_model_thought():
    example = next(e for e in examples() if e.kind == "down-weighted")

    # Row 38 is the last kept even row of culture A: weight 1/40, margin log(1/40).
    assert (example.pair_id, example.prompt) == ("int38:0>1", "prompt 38")
    assert (example.chosen, example.rejected) == ("response 76", "response 77")
    assert example.weight == pytest.approx(1 / 40)
    assert example.ref_margin == pytest.approx(math.log(1 / 40))
    assert example.win_probability == pytest.approx(1 / 41)


def test_down_weighted_examples_have_the_smallest_weights_and_the_others_are_drawn():
    shown = [e for e in examples(num_pairs=400) if e.culture == "A"]

    rows = {
        kind: [int(e.pair_id.removeprefix("int").split(":")[0]) for e in shown if e.kind == kind]
        for kind in ("kept", "dropped", "down-weighted")
    }
    assert rows["down-weighted"] == [398, 394, 390]
    assert max(rows["kept"]) > 10 and max(rows["dropped"]) > 10
    assert all(row % 2 for row in rows["kept"])
    assert not any(row % 4 for row in rows["dropped"])


def test_examples_are_the_same_for_the_same_seed_and_others_for_another():
    assert examples(num_pairs=400) == examples(num_pairs=400)
    assert examples(num_pairs=400) != examples(num_pairs=400, seed=1)


@pytest.mark.parametrize(("num_examples", "expected"), [(0, 0), (4, 2 * (2 + 1 + 1))])
def test_no_more_examples_than_asked_for_and_than_there_are(num_examples: int, expected: int):
    assert len(examples(num_pairs=4, num_examples=num_examples)) == expected


def test_long_texts_are_cut_with_an_ellipsis():
    long = ListedTexts([Text((), "é" * 601, "x" * 600)] * 8)

    example = examples(num_pairs=2, texts=long)[0]

    assert example.prompt == "é" * 599 + "…"
    assert example.chosen == "x" * 600


def test_examples_need_a_decision_for_every_pair():
    with pytest.raises(ValueError, match=r"kept and weights must be \(2,\): \(1,\), \(2,\)"):
        example_pairs(
            make_pairs([0, 0], [0, 1]),
            rewards_of([1, 1]),
            np.ones(1, bool),
            np.ones(2, np.float32),
            numbered_texts(2),
            ["a", "b"],
            num_examples=1,
            seed=0,
        )


def test_pair_ids_name_the_interaction_and_the_responses():
    pairs = make_pairs([0, 0, 1], [0, 1, 2]).take(np.array([2, 0]))

    assert pair_ids(pairs, ["a", "b", "c:d"]) == ["c:d:0>1", "a:0>1"]
