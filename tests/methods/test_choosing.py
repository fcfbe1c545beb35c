from dataclasses import replace

import numpy as np
import pytest
import torch

from scpo_ray.experiment import load_inputs, prepare_run
from scpo_ray.inputs import open_run_dir
from scpo_ray.launch.runs import start_run
from scpo_ray.methods.choosing import KEPT_SHARES, CulturePairs, choose_selection
from scpo_ray.methods.selection import select_pairs
from scpo_ray.records import ALONE, InputError
from scpo_ray.settings.naming import result_metrics
from scpo_ray.settings.selection import SelectionConfig
from tests.tiny import tiny_config

AUTO = SelectionConfig(filter_threshold="auto", weight_temperature="auto")


def people(outliers: float, num_users: int = 12, seed: int = 0) -> CulturePairs:
    """Users who choose by the first feature, but for a share who choose by its opposite; the global
    model goes by the second feature, which says little, and is sure where it sees it."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(num_users), 6)
    features = rng.standard_normal((len(users), 4))
    taste = features @ [1.0, 0.6, 0.0, 0.0]
    sign = np.where(users < outliers * num_users, -1.0, 1.0)
    features *= (sign * np.sign(taste))[:, None]
    margins = 2.0 * features[:, 1]
    return CulturePairs(
        torch.from_numpy(features),
        torch.from_numpy(margins.astype(np.float32)),
        torch.zeros(len(users)),
        users,
    )


def choose(pairs, config=AUTO, *, filters=True, weighting="agreement", seed=0):
    return choose_selection([pairs], config, filters=filters, weighting=weighting, seed=seed)


def test_the_values_whose_heads_rank_left_out_people_best_are_chosen():
    found = choose(people(outliers=0.0))

    accuracies = [each.accuracy for each in found.tried]
    assert accuracies == sorted(accuracies, reverse=True)
    assert len(found.tried) == 6 * 4
    best = (found.filter_threshold, found.weight_temperature)
    assert best == (found.tried[0].filter_threshold, found.tried[0].weight_temperature)
    # All agree, so every pair teaches: a filter that leaves contradictions alone is worst.
    assert found.tried[-1].filter_threshold is not None
    assert accuracies[0] > 0.9


def test_what_is_set_stays_and_what_a_method_does_not_do_is_not_varied():
    pairs = people(outliers=0.2)
    fixed = SelectionConfig(filter_threshold=0.7, weight_temperature="auto")

    of_weight = choose(pairs, fixed)
    of_filter = choose(pairs, weighting="none")
    assert choose(pairs, weighting="none") == of_filter

    assert {each.filter_threshold for each in of_weight.tried} == {0.7}
    assert len(of_weight.tried) == 4
    assert {each.weight_temperature for each in of_filter.tried} == {None}
    assert len(of_filter.tried) == 6


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e5])
def test_the_thresholds_tried_keep_their_shares_whatever_the_unit(unit):
    pairs = people(outliers=0.2)
    pairs = replace(pairs, ref_chosen=unit * pairs.ref_chosen)

    found = choose(pairs, weighting="none")

    tried = {each.filter_threshold for each in found.tried} - {None, 0.7}
    chances = torch.sigmoid(pairs.ref_chosen.double())
    kept = sorted(float((chances < tau).double().mean()) for tau in tried)
    if unit <= 1:
        assert kept == pytest.approx(KEPT_SHARES, abs=0.03)
    assert tried and max(tried) <= 1


def test_the_values_tried_follow_the_margins_unit():
    pairs = people(outliers=0.2)
    small = replace(pairs, ref_chosen=pairs.ref_chosen / 100)

    found = choose(small, weighting="none")

    tried = {each.filter_threshold for each in found.tried} - {None, 0.7}
    assert all(abs(tau - 0.5) < 0.02 for tau in tried) and len(tried) == 4


def test_one_user_cannot_choose():
    with pytest.raises(InputError, match="auto needs two training users"):
        choose(people(outliers=0.0, num_users=1))


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("filter_threshold", 1.7, "less than or equal to 1"),
        ("filter_threshold", "automatic", "valid number"),
        ("weight_temperature", 0, "greater than 0"),
        ("weight_temperature", None, "valid number"),
    ],
)
def test_what_is_neither_a_number_nor_auto_is_refused(name, value, rule):
    with pytest.raises(ValueError, match=rule):
        SelectionConfig.model_validate({name: value})


def test_a_run_chooses_trains_with_it_and_says_so(tiny_reward_model, tmp_path):
    config = tiny_config(tiny_reward_model, tmp_path, selection={"filter_threshold": "auto"})

    result, _ = start_run(config)

    chosen = result.chosen_selection
    assert chosen.tried[0].filter_threshold == chosen.filter_threshold
    assert chosen.weight_temperature == 1.1
    assert result.told[0].startswith("Chosen by 5-fold cross-validation over training users")
    task = prepare_run(config, load_inputs(config, open_run_dir(config)), ALONE).task
    again = select_pairs(
        *task.ref_pair_rewards,
        filter_threshold=chosen.filter_threshold,
        weighting="agreement",
        weight_temperature=chosen.weight_temperature,
    )
    assert result.selection["North"].num_selected == int(again.keep.sum())
    assert result_metrics(result)["selection/weight_temperature"] == chosen.weight_temperature
    assert config.run_id != tiny_config(tiny_reward_model, tmp_path).run_id
