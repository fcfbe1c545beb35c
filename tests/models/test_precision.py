"""Weights in the dtype asked for, the head never rounded, and refusals with their reason."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from scpo_ray.models.export import exported_config, load_exported
from scpo_ray.models.precision import ExactLinear, check_dtype, with_dtype
from scpo_ray.models.scoring import score_texts
from scpo_ray.records import InputError
from scpo_ray.settings.model import LoraConfig, ModelConfig
from scpo_ray.settings.train import TrainConfig
from scpo_ray.training.engine import TorchEngine
from tests.models.test_reading import network_of
from tests.models.test_reward_model import TEXTS, loaded, save_tiny, saved

HALF = {"dtype": "bfloat16"}


def dtypes_of(network: nn.Module, *, trained: bool) -> set[torch.dtype]:
    return {p.dtype for p in network.parameters() if p.requires_grad == trained}


@pytest.mark.parametrize("lora", [None, LoraConfig()])
@pytest.mark.parametrize(
    ("asked", "expected"),
    [("auto", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")],
)
def test_on_a_cpu_nothing_is_rounded_unasked(asked, expected, lora):
    config = with_dtype(ModelConfig(dtype=asked, lora=lora), "cpu")

    assert (config.dtype, config.lora) == (expected, lora)


def test_the_head_is_read_and_computed_unrounded(tiny_reward_model):
    model, whole = loaded(tiny_reward_model, **HALF), loaded(tiny_reward_model)

    rewards = score_texts(model, TEXTS)

    file = load_file(tiny_reward_model / "model.safetensors")
    weights = dict(model.network.named_parameters())
    for name in ("classifier.weight", "bert.pooler.dense.weight"):
        assert weights[name].equal(file[name])
    assert weights["bert.embeddings.word_embeddings.weight"].dtype == torch.bfloat16
    assert not np.array_equal(rewards, torch.from_numpy(rewards).bfloat16().float().numpy())
    np.testing.assert_allclose(rewards, score_texts(whole, TEXTS), atol=5e-3)


def test_autocast_does_not_round_a_score():
    layer, features = nn.Linear(64, 1), torch.randn(8, 64)
    layer.__class__ = ExactLinear

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        scores = layer(features)

    torch.testing.assert_close(scores, features @ layer.weight.T + layer.bias)


def test_a_frozen_base_is_halved_and_what_is_trained_is_not(tiny_reward_model):
    model = loaded(tiny_reward_model, lora=LoraConfig(rank=2), **HALF)
    engine = TorchEngine(model, TrainConfig(), None)

    assert dtypes_of(model.network, trained=True) == {torch.float32}
    frozen = [n for n, p in model.network.named_parameters() if p.dtype == torch.bfloat16]
    assert all(".base_layer." in n or "norm" in n.lower() or "embed" in n for n in frozen)
    engine.rewards(model.batch(model.renderer.encode(TEXTS), np.arange(2))).sum().backward()
    assert all(
        p.grad.dtype == torch.float32 for p in engine.parameters.values() if p.grad is not None
    )


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_a_saved_model_records_its_dtype_and_comes_back_in_it(tiny_reward_model, tmp_path, lora):
    model = loaded(tiny_reward_model, lora=lora, **HALF)

    folder = saved(model, tmp_path / "saved")

    assert exported_config(folder).dtype == "bfloat16"
    np.testing.assert_array_equal(
        score_texts(load_exported(folder, device="cpu"), TEXTS), score_texts(model, TEXTS)
    )
    if lora is None:
        assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
        file = load_file(folder / "model.safetensors")
        assert file["classifier.weight"].dtype == torch.float32
        assert file["bert.embeddings.word_embeddings.weight"].dtype == torch.bfloat16


def test_a_family_that_cannot_compute_in_bfloat16_is_refused(tiny_backbone, tmp_path):
    folder = save_tiny(network_of("xlnet"), tiny_backbone, tmp_path / "xlnet")

    with pytest.raises(InputError, match="model.dtype = bfloat16: .*xlnet cannot compute in it"):
        loaded(folder, renderer="pair", **HALF)


def test_all_weights_are_not_trained_in_bfloat16(tmp_path):
    with pytest.raises(InputError, match="model.dtype = bfloat16: all weights are trained"):
        check_dtype(tmp_path, ModelConfig(dtype="bfloat16"), "cpu")

    check_dtype(tmp_path, ModelConfig(dtype="float32"), "cpu")
    check_dtype(tmp_path, ModelConfig(dtype="bfloat16", lora=LoraConfig()), "cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"attention": "flash_attention_2"},
            "model.attention = flash_attention_2: needs a GPU and model.dtype = bfloat16, got cpu",
        ),
        ({"attention": "sdpa"}, "model.attention = sdpa: .*deberta-v2 cannot use it here"),
    ],
)
def test_an_attention_that_is_not_there_is_refused(tiny_backbone, tmp_path, settings, message):
    folder = save_tiny(network_of("deberta-v2"), tiny_backbone, tmp_path / "deberta-v2")

    with pytest.raises(InputError, match=message):
        loaded(folder, renderer="pair", **settings)


def test_attention_changes_rounding_alone(tiny_reward_model):
    one, other = (loaded(tiny_reward_model, attention=a) for a in ("eager", "sdpa"))

    assert one.network.config._attn_implementation.endswith("eager")
    np.testing.assert_allclose(score_texts(one, TEXTS), score_texts(other, TEXTS), atol=1e-6)
