"""Runs of the heads on frozen features: learned from all cultures, kept as whole models."""

from typing import Any

import numpy as np
import pytest
import torch

from scpo_ray.experiment import load_inputs, prepare_run
from scpo_ray.inputs import open_run_dir
from scpo_ray.launch.runs import compare, start_run
from scpo_ray.launch.worker import work
from scpo_ray.models.export import load_exported
from scpo_ray.models.reading import score_head
from scpo_ray.models.scoring import score_tokens
from scpo_ray.records import ALONE, InputError, Worker
from scpo_ray.settings.comparison import ComparisonConfig, SpaceConfig
from scpo_ray.settings.methods import method_order
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.run_dir import load_test_pairs
from tests.tiny import tiny_config, tiny_document

HEADS = ["shared_offset", "lore"]


def run_inputs(config: RunConfig):
    run_dir = open_run_dir(config)
    return load_inputs(config, run_dir), run_dir


def features_of(config: RunConfig) -> np.ndarray:
    inputs, _ = run_inputs(config)
    features = inputs.global_model.features(inputs.data.texts)
    assert features is not None
    return features


def test_features_times_head_are_the_rewards_and_are_stored(tiny_reward_model, tmp_path, caplog):
    config = tiny_config(tiny_reward_model, tmp_path)
    caplog.set_level("INFO", logger="scpo_ray")

    features = features_of(config)
    again = features_of(config)

    inputs, _ = run_inputs(config)
    model = load_exported(tiny_reward_model, device="cpu")
    _, head = score_head(model.network)
    rewards = score_tokens(model, inputs.tokens)
    assert features.shape == (len(inputs.data.texts), 64)
    weight, bias = head.weight[0].detach().numpy(), head.bias[0].item()
    np.testing.assert_allclose(features @ weight + bias, rewards, atol=1e-5)
    np.testing.assert_array_equal(again, features)
    assert f"features: {len(features)} texts read from" in caplog.text


@pytest.mark.parametrize("method", HEADS)
def test_the_saved_model_gives_the_rewards_that_were_evaluated(tiny_reward_model, tmp_path, method):
    config = tiny_config(tiny_reward_model, tmp_path, method=method)

    result, folder = start_run(config)

    inputs, _ = run_inputs(config)
    model = load_exported(folder / "model", device="cpu")
    rewards = score_tokens(model, inputs.tokens)
    columns, test = load_test_pairs(folder), inputs.data.test
    margins = rewards[test.chosen] - rewards[test.rejected]
    # In float32, at a common level of all rewards that lies far from 0 in this untrained model.
    np.testing.assert_allclose(margins, columns["margin"], atol=2e-3)
    assert np.abs(margins - columns["ref_margin"]).max() > 0.01
    # Nothing but the head has changed.
    before = load_exported(tiny_reward_model, device="cpu").network.state_dict()
    changed = [n for n, t in model.network.state_dict().items() if not torch.equal(t, before[n])]
    assert changed == ["classifier.weight"]
    assert result.model_dir == str(folder / "model")
    assert result.culture_weights == {"North": 1.0}
    assert set(result.selection) == {"North", "South"}
    assert {s.kept_share for s in result.selection.values()} == {1.0}
    assert result.num_pairs_seen == result.num_steps * sum(
        s.num_pairs for s in result.selection.values()
    )


@pytest.mark.parametrize("method", HEADS)
def test_a_mixture_of_cultures_has_the_weighted_mean_of_their_rewards(
    tiny_reward_model, tmp_path, method
):
    def changes(weights):
        config = tiny_config(tiny_reward_model, tmp_path, method=method, culture_weights=weights)
        columns = load_test_pairs(start_run(config)[1])
        return columns["margin"] - columns["ref_margin"]

    north, south = changes({"North": 1.0}), changes({"North": 0.0, "South": 1.0})

    assert np.abs(north - south).max() > 1e-3
    mixed = changes({"North": 0.5, "South": 1.5})
    np.testing.assert_allclose(mixed, 0.25 * north + 0.75 * south, atol=2e-3)


def test_a_run_has_one_models_name_whatever_the_other_methods_settings(tiny_reward_model, tmp_path):
    config = tiny_config(tiny_reward_model, tmp_path, method="lore")
    other = tiny_config(
        tiny_reward_model, tmp_path, method="lore", methods={"shared_offset": {"offset_ridge": 1.0}}
    )

    assert other.run_id == config.run_id


@pytest.mark.parametrize("method", ["pooled", "group_dro", *HEADS])
def test_one_culture_alone_is_refused(tiny_reward_model, tmp_path, method):
    config = tiny_config(tiny_reward_model, tmp_path, method=method, data={"cultures": ["North"]})
    inputs, run_dir = run_inputs(config)

    with pytest.raises(InputError, match=f"method = {method}: learns from several cultures") as e:
        prepare_run(config, inputs, ALONE)

    assert "got ['North']" in str(e.value)


def test_more_mixed_heads_than_cultures_are_refused(tiny_reward_model, tmp_path):
    config = tiny_config(tiny_reward_model, tmp_path, method="lore", methods={"lore": {"rank": 3}})
    inputs, run_dir = run_inputs(config)

    with pytest.raises(InputError, match="lore: rank must be at most the 2 cultures, got 3"):
        prepare_run(config, inputs, ALONE)


@pytest.mark.parametrize("method", HEADS)
def test_heads_need_a_global_model(tiny_backbone, tmp_path, method):
    with pytest.raises(ValueError, match=f"method '{method}' needs a trained global model"):
        tiny_config(tiny_backbone, tmp_path, method=method, model={"new_head": True})


def test_a_network_with_two_score_layers_is_refused(tiny_reward_model):
    model = load_exported(tiny_reward_model, device="cpu")
    model.network.second = torch.nn.Linear(64, 1)

    with pytest.raises(InputError, match="no single linear score head") as caught:
        score_head(model.network)

    assert caught.value.problems[0] == "layers with one output: classifier, second"


def test_all_rivals_are_compared_and_what_is_pooled_is_trained_once(tiny_reward_model, tmp_path):
    methods = ["global", "finetune", "pooled", "group_dro", *HEADS]
    comparison = ComparisonConfig(
        run=tiny_config(tiny_reward_model, tmp_path),
        space=SpaceConfig(method=methods),
    )

    summary, folder = compare(comparison)

    assert summary.methods == sorted(methods, key=method_order)
    assert not summary.failures
    cells = {(s.method, s.culture) for s in summary.summaries}
    assert cells == {(m, c) for m in methods for c in ("", "North", "South")}
    # Two cultures each, but for the two that pool.
    assert len(summary.run_ids) == 4 * 2 + 2
    names = sorted(path.name.rpartition("-")[0] for path in folder.glob("*-s0-*"))
    assert [name for name in names if name.startswith(("pooled", "group"))] == [
        "group_dro-North+South-s0",
        "pooled-North+South-s0",
    ]


def run_on(worker: Worker, document: dict[str, Any]) -> None:
    work(RunConfig.model_validate(document), worker)


@pytest.mark.parametrize("method", HEADS)
def test_two_workers_share_the_features_and_find_the_same_head(
    groups, tiny_reward_model, tmp_path, method
):
    margins = []
    for workers in (1, 2):
        # An output folder each, so that neither finds the other's features.
        document = tiny_document(tiny_reward_model, tmp_path / str(workers), method=method)
        groups.run(workers, run_on, document)
        folder = open_run_dir(RunConfig.model_validate(document)).path
        margins.append(load_test_pairs(folder)["margin"])

    np.testing.assert_allclose(*margins, atol=0.02)
