import math
from itertools import islice

import numpy as np
import pytest

from scpo_ray.data.rows import Notes
from scpo_ray.data.synthetic import (
    SyntheticConfig,
    best_accuracy,
    culture_tastes,
    margins_of_culture,
    margins_of_pairs,
    open_synthetic,
    vocabulary,
)


def _config(**settings):
    return SyntheticConfig.model_validate({"source": "synthetic", **settings})


def _interactions(config):
    return [interaction for _, interaction in open_synthetic(config).read(Notes())]


def test_interactions_have_the_configured_shape():
    config = _config(users={"A": 3, "B": 2}, interactions_per_user=4, responses_per_interaction=5)

    interactions = _interactions(config)

    assert len(interactions) == (3 + 2) * 4
    assert len({i.interaction_id for i in interactions}) == len(interactions)
    assert [i.culture for i in interactions] == ["A"] * 12 + ["B"] * 8
    for interaction in interactions:
        assert len(interaction.responses) == len(interaction.human_scores) == 5
        assert all(s == round(s) and 1 <= s <= 100 for s in interaction.human_scores)
        assert all(6 <= len(r.split()) <= 12 for r in interaction.responses)
        assert 5 <= len(interaction.prompt.split()) <= 8


def test_every_word_is_in_the_vocabulary_and_every_word_is_used():
    words = set()
    for interaction in _interactions(_config()):
        words.update(interaction.prompt.split(), *(r.split() for r in interaction.responses))

    assert words == set(vocabulary())
    assert len(vocabulary()) == len(set(vocabulary()))


def test_the_same_seed_gives_the_same_data_and_another_seed_other_data():
    first = _interactions(_config(users={"A": 2}))
    assert first == _interactions(_config(users={"A": 2}))
    assert first != _interactions(_config(users={"A": 2}, seed=1))


def test_more_people_leave_the_others_as_they_were():
    few, many = _config(users={"A": 2, "B": 2}), _config(users={"A": 3, "B": 2})
    of_b = [i for i in _interactions(many) if i.culture == "B"]
    assert of_b == [i for i in _interactions(few) if i.culture == "B"]
    assert list(islice(_interactions(many), 24)) == _interactions(few)[:24]


@pytest.mark.parametrize("distance", [0.0, 0.3, 1.0, 2.0])
def test_tastes_leave_the_majority_by_the_configured_angle(distance):
    tastes = culture_tastes(_config(taste_distance=distance))

    np.testing.assert_allclose(np.linalg.norm(tastes, axis=1), 1)
    np.testing.assert_allclose(tastes[1:] @ tastes[0], 1 - distance, atol=1e-12)


def test_without_noise_and_outliers_the_true_taste_ranks_every_pair_right():
    config = _config(person_noise=0.0, outlier_share=0.0)
    assert best_accuracy(config) == dict.fromkeys(config.users, 1.0)


def test_the_best_accuracy_is_near_its_closed_form():
    # A person's taste is t + noise, noise . x of variance noise^2 / 6 per feature; along a random
    # x the two orders agree with probability 1 - angle / pi, angle between taste and person.
    config = _config(users={"A": 1500}, person_noise=0.5, outlier_share=0.2)
    rng = np.random.default_rng(0)
    noise = 0.5 * rng.standard_normal((20_000, 6)) / math.sqrt(6)
    cosine = (1 + noise[:, 0]) / np.sqrt((1 + noise[:, 0]) ** 2 + (noise[:, 1:] ** 2).sum(1))
    expected = 0.8 * (1 - np.arccos(cosine) / math.pi).mean() + 0.2 * 0.5

    assert best_accuracy(config)["A"] == pytest.approx(expected, abs=0.015)


def test_the_majoritys_taste_is_a_coin_for_an_unrelated_culture_and_wrong_for_an_opposed_one():
    def agreement(distance):
        tastes = culture_tastes(_config(taste_distance=distance))
        x = np.random.default_rng(0).standard_normal((4_000, 6))
        return float(np.mean((x @ tastes[0] > 0) == (x @ tastes[1] > 0)))

    assert agreement(1.0) == pytest.approx(0.5, abs=0.03)
    assert agreement(2.0) == 0.0


def test_true_margins_are_those_of_the_pairs_that_people_made():
    config = _config(users={"New-Major": 3, "B-side": 4}, taste_distance=0.5)
    pairs = [
        (interaction, chosen, rejected)
        for interaction in _interactions(config)
        for chosen in range(3)
        for rejected in range(3)
        if interaction.human_scores[chosen] > interaction.human_scores[rejected]
    ]
    ids = [f"{interaction.interaction_id}:{c}>{r}" for interaction, c, r in pairs]

    found = margins_of_pairs(config, ids)

    of_b = np.array([interaction.culture == "B-side" for interaction, _, _ in pairs])
    assert (found.culture[of_b] > 0).mean() == best_accuracy(config)["B-side"]
    # The majority's taste is the first culture's own.
    np.testing.assert_array_equal(found.culture[~of_b], found.majority[~of_b])
    whole = margins_of_culture(config, "B-side")
    np.testing.assert_allclose(np.sort(whole.majority), np.sort(found.majority[of_b]))


@pytest.mark.parametrize("pair_id", ["", "Chile-0000-000:0>1", "A-0-0"])
def test_a_pair_of_another_source_has_no_true_margin(pair_id):
    with pytest.raises(ValueError, match="is no pair of this synthetic source"):
        margins_of_pairs(_config(users={"A": 1}), [pair_id])


def test_people_who_agree_with_their_culture_leave_all_of_distinctive_to_be_learned():
    united = _config(users={"M": 40, "A": 40}, person_noise=0.0, outlier_share=0.0)
    divided = united.model_copy(update={"person_noise": 0.6, "outlier_share": 0.3})

    shares = []
    for config in (united, divided):
        found = margins_of_culture(config, "A")
        shares.append((found.culture[found.majority <= 0] > 0).mean())

    assert shares[0] == 1.0
    assert 0.5 < shares[1] < 0.9


def test_a_culture_without_pairs_has_no_best_accuracy():
    config = _config(users={"A": 1}, interactions_per_user=1, responses_per_interaction=2, seed=0)
    tied = [
        seed
        for seed in range(200)
        if len(set(_interactions(config.model_copy(update={"seed": seed}))[0].human_scores)) == 1
    ]
    assert tied
    assert math.isnan(best_accuracy(config.model_copy(update={"seed": tied[0]}))["A"])


def test_the_second_language_says_the_same_of_the_same_people_in_other_words():
    first, second = (
        _interactions(_config(users={"A": 2}, language=language))
        for language in ("first", "second")
    )

    assert [i.human_scores for i in first] == [i.human_scores for i in second]
    assert [i.prompt for i in first] == [i.prompt for i in second]
    words = [
        {word for i in interactions for text in i.responses for word in text.split()}
        for interactions in (first, second)
    ]
    assert set.union(*words) <= set(vocabulary())
    pairs = {
        (a, b)
        for one, other in zip(first, second, strict=True)
        for text, again in zip(one.responses, other.responses, strict=True)
        for a, b in zip(text.split(), again.split(), strict=True)
    }
    assert ("warm", "polite") in pairs or ("kind", "formal") in pairs
    assert len({b for _, b in pairs}) == len({a for a, _ in pairs}) == len(pairs)
