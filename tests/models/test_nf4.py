"""A base in 4 bits under adapters: one number in training, saved, served and merged."""
# ruff: noqa: F401, F811 (the fixtures with models are imported)

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from scpo_ray.models.adapters import _over_whole_weights, merged_adapters
from scpo_ray.models.export import exported_config, load_exported, save_reward_model
from scpo_ray.models.loading import check_weights_fit
from scpo_ray.models.precision import check_can_compute, check_dtype, stored_bytes
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.models.scoring import score_texts
from scpo_ray.models.shapes import network_shape
from scpo_ray.records import ALONE, InputError
from scpo_ray.serve.core import CultureRewards, RewardItem
from scpo_ray.settings.model import LoraConfig, ModelConfig
from scpo_ray.settings.train import TrainConfig
from scpo_ray.training.engine import TorchEngine
from tests.models.test_reward_model import (
    TEXTS,
    loaded,
    saved,
    tiny_deberta,
    tiny_llama,
)
from tests.tiny import tiny_config

NF4 = {"dtype": "nf4"}
LORA = LoraConfig(rank=2)

installed = pytest.mark.skipif(
    find_spec("bitsandbytes") is None or find_spec("accelerate") is None,
    reason="bitsandbytes and accelerate (the extra nf4) are not installed",
)


@pytest.fixture(scope="module")
def trained(tiny_llama) -> RewardModel:
    """Three large steps, so that adapters and head are far from where they began."""
    model = loaded(tiny_llama, lora=LORA, **NF4)
    engine = TorchEngine(model, TrainConfig(learning_rate=0.02, dropout=False), ALONE)
    batch = model.batch(model.renderer.encode(TEXTS), np.arange(4))
    for _ in range(3):
        rewards = engine.rewards(batch)
        engine.backward((rewards[0] - rewards[1:]).sum(), last=True)
        engine.step()
    model.network.eval()
    return model


@installed
def test_linear_layers_are_in_4_bits_and_the_head_is_read_unrounded(tiny_llama):
    model = loaded(tiny_llama, **NF4)

    kinds = {name: type(module).__name__ for name, module in model.network.named_modules()}
    assert {kind for name, kind in kinds.items() if name.endswith("_proj")} == {"Linear4bit"}
    head = model.network.score
    assert head.weight.equal(load_file(tiny_llama / "model.safetensors")["score.weight"])
    assert (kinds["score"], model.dtype_name) == ("ExactLinear", "nf4")
    rewards = score_texts(model, TEXTS)
    assert not np.array_equal(rewards, torch.from_numpy(rewards).bfloat16().float().numpy())
    np.testing.assert_allclose(rewards, score_texts(loaded(tiny_llama), TEXTS), atol=0.1)


@installed
@pytest.mark.parametrize("kind", ["tiny_reward_model", "tiny_deberta"])
def test_poolers_of_encoders_are_not_rounded(kind, request):
    model = loaded(request.getfixturevalue(kind), **NF4)

    layers = {n: m for n, m in model.network.named_modules() if isinstance(m, nn.Linear)}
    exact = {n for n, m in layers.items() if type(m).__name__ != "Linear4bit"}
    assert exact and all("pooler" in name or "classifier" in name for name in exact)
    assert all(layers[name].weight.dtype == torch.float32 for name in exact)
    assert np.isfinite(score_texts(model, TEXTS)).all()


@installed
def test_only_adapters_and_head_are_trained_in_float32(trained):
    learned = {n: p for n, p in trained.network.named_parameters() if p.requires_grad}

    assert {p.dtype for p in learned.values()} == {torch.float32}
    assert all("lora_" in name or "score" in name for name in learned)


@installed
def test_gradients_reach_the_lowest_layer_as_through_whole_weights(tiny_llama):
    model = loaded(tiny_llama, lora=LORA, **NF4)
    score_texts(model, TEXTS)
    through_4_bits = lowest_gradient(model)

    whole = replace(model, network=_over_whole_weights(model.network))

    expected = lowest_gradient(whole)
    largest = expected.abs().max().item()
    torch.testing.assert_close(through_4_bits, expected, rtol=0.05, atol=0.02 * largest)


def lowest_gradient(model: RewardModel) -> Tensor:
    """Of the adapters in the lowest layer, as training computes it."""
    for name, parameter in model.network.train().named_parameters():
        parameter.grad = None
        if "lora_B" in name:
            nn.init.constant_(parameter, 0.01)
    model.rewards(model.batch(model.renderer.encode(TEXTS), np.arange(4))).sum().backward()
    weights = model.network.named_parameters()
    return torch.cat([p.grad.flatten() for n, p in weights if "layers.0" in n and "lora_A" in n])


@installed
def test_a_saved_model_comes_back_with_the_same_rewards(trained, tmp_path):
    folder = saved(trained, tmp_path / "saved")

    assert exported_config(folder).dtype == "nf4"
    again = load_exported(folder, device="cpu")
    np.testing.assert_array_equal(score_texts(again, TEXTS), score_texts(trained, TEXTS))


@installed
def test_the_core_serves_what_training_saw(trained, tmp_path):
    folder = saved(trained, tmp_path / "saved")

    core = CultureRewards.load({"Chile": str(folder)})
    found = core.rewards([RewardItem(t.response, t.prompt, culture="Chile") for t in TEXTS])

    expected = score_texts(trained, TEXTS)
    assert [reward.value for reward in found] == pytest.approx(expected, abs=5e-3)


@installed
def test_merged_adapters_lie_over_whole_weights(trained, tmp_path):
    expected = score_texts(trained, TEXTS)
    model = load_exported(saved(trained, tmp_path / "adapters"), device="cpu")

    merged = merged_adapters(model)

    folder = saved(merged, tmp_path / "merged")
    assert (merged.dtype_name, exported_config(folder).dtype) == ("bfloat16", "bfloat16")
    again = score_texts(load_exported(folder, device="cpu"), TEXTS)
    np.testing.assert_array_equal(again, score_texts(merged, TEXTS))
    # What was learned is rounded to bfloat16 once.
    np.testing.assert_allclose(again, expected, atol=0.03 * np.abs(expected).max())


@installed
def test_a_whole_model_is_saved_as_what_it_is_computed_with(tiny_llama, tmp_path):
    model = loaded(tiny_llama, **NF4)
    expected = score_texts(model, TEXTS)

    save_reward_model(model, tmp_path / "saved")

    again = load_exported(tmp_path / "saved", device="cpu")
    assert again.dtype_name == "bfloat16"
    np.testing.assert_allclose(score_texts(again, TEXTS), expected, atol=1e-3)


@installed
def test_the_estimate_knows_4_bits(tiny_llama):
    base = loaded(tiny_llama, **NF4).network
    adapted = loaded(tiny_llama, lora=LORA, **NF4).network
    config = ModelConfig(path=str(tiny_llama), lora=LORA, max_length=48, **NF4)

    shape = network_shape(tiny_llama, config, texts=2, width=8, autocast=False)

    states = [p.quant_state for p in base.parameters() if hasattr(p, "quant_state")]
    held = sum(p.nbytes for p in base.parameters())
    held += sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states)
    assert shape.trained == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert shape.frozen_bytes == pytest.approx(held, rel=0.02)


def test_numbers_of_4_bits():
    config = ModelConfig(**NF4)

    assert stored_bytes(8 * 10**9, 7 * 10**9, config) == pytest.approx(5.6e9, rel=0.01)
    check_weights_fit({"body": (10**6, 8_000)}, 7 * 10**9, config, 6 * 10**9)
    with pytest.raises(InputError, match=r"need 5.6 GB in nf4, and 5.0 GB are free"):
        check_weights_fit({"body": (10**6, 8_000)}, 7 * 10**9, config, 5 * 10**9)


@installed
def test_a_model_that_is_trained_whole_is_refused(tmp_path):
    check_dtype(tmp_path, ModelConfig(lora=LORA, **NF4), "cpu")
    with pytest.raises(InputError, match="model.dtype = nf4: all weights are trained"):
        check_dtype(tmp_path, ModelConfig(**NF4), "cpu")


@installed
def test_a_device_that_the_library_lacks_is_refused(monkeypatch):
    monkeypatch.setattr("bitsandbytes.supported_torch_devices", {"cuda"})

    with pytest.raises(InputError, match="nf4: bitsandbytes cannot compute on cpu here"):
        check_can_compute(ModelConfig(**NF4), "cpu")


def test_without_the_library_nothing_is_loaded(tiny_llama, monkeypatch):
    monkeypatch.setattr("scpo_ray.models.precision.find_spec", lambda name: None)

    with pytest.raises(
        InputError, match="nf4: bitsandbytes and accelerate not installed"
    ) as caught:
        loaded(tiny_llama, lora=LORA, **NF4)

    assert caught.value.problems == ('pip install -e ".[nf4]"',)


def test_zero_3_is_refused(tmp_path):
    settings = {"model": {"path": "m", "lora": {}, **NF4}}
    train = {"engine": "deepspeed", "zero_stage": 3}

    with pytest.raises(ValueError, match="model.dtype nf4: weights in 4 bits are not divided"):
        tiny_config(tmp_path, tmp_path, **settings, train=train)
