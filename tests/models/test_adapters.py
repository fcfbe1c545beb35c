"""Low-rank adapters: what is trained, saved and merged gives the same rewards again."""
# ruff: noqa: F401, F811 (the fixtures with models are imported)

import re
from pathlib import Path

import numpy as np
import pytest

from scpo_ray.models.adapters import merged_adapters
from scpo_ray.models.export import load_exported
from scpo_ray.models.scoring import score_texts
from scpo_ray.records import InputError
from scpo_ray.settings.model import LoraConfig
from tests.models.test_reward_model import (
    TEXTS,
    assert_close,
    folders,
    loaded,
    saved,
    tiny_causal,
    tiny_deberta,
    tiny_deberta_backbone,
    tiny_llama,
    train_a_little,
)

LORA = LoraConfig(rank=4, alpha=8.0)
LORA_CASES = [
    ("bert", {}),
    ("llama", {}),
    ("deberta", {}),
    ("bert", {"num_layers": 1}),
    ("llama", {"num_layers": 1}),
    ("bert backbone", {"new_head": True}),
    ("causal llama", {"new_head": True, "num_layers": 1}),
    ("deberta backbone", {"new_head": True}),
]


@pytest.mark.parametrize(("name", "settings"), LORA_CASES)
def test_adapters_and_head_are_trained_saved_and_merged(folders, tmp_path, name, settings):
    model = loaded(folders[name], lora=LORA, seed=3, **settings)
    start = {key: value.clone() for key, value in model.network.state_dict().items()}
    before = score_texts(model, TEXTS)

    train_a_little(model)

    rewards = score_texts(model, TEXTS)
    changed = {
        key for key, value in model.network.state_dict().items() if not value.equal(start[key])
    }
    assert np.abs(rewards - before).max() > 1e-3
    assert all(re.search(r"lora_|modules_to_save", key) for key in changed)
    assert any("lora_" in key for key in changed)
    assert any(re.search(r"(score|classifier)\.modules_to_save", key) for key in changed)

    folder = saved(model, tmp_path / "adapters")
    again = load_exported(folder, device="cpu")
    assert not (folder / "model.safetensors").exists()
    assert_close(score_texts(again, TEXTS), rewards, 1e-5)

    plain = load_exported(saved(merged_adapters(again), tmp_path / "merged"), device="cpu")
    assert not hasattr(plain.network, "peft_config")
    assert_close(score_texts(plain, TEXTS), rewards, 1e-5)


def test_a_merged_export_is_a_plain_hugging_face_folder(tiny_reward_model, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = loaded(tiny_reward_model, lora=LORA)
    train_a_little(model)
    rewards = score_texts(model, TEXTS[:1])

    folder = saved(merged_adapters(model), tmp_path / "merged")

    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer([TEXTS[0].prompt], [TEXTS[0].response], return_tensors="pt")
    assert network.config.problem_type == "regression"
    assert_close(network(**inputs).logits[0].detach().numpy(), rewards, 1e-5)


def test_adapters_saved_from_a_relative_path_load_from_another_folder(
    tiny_reward_model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tiny_reward_model.parent)
    model = loaded(Path(tiny_reward_model.name), lora=LORA)
    folder = saved(model, tmp_path / "adapters")
    monkeypatch.chdir(tmp_path)

    again = load_exported(folder, device="cpu")

    assert_close(score_texts(again, TEXTS), score_texts(model, TEXTS), 1e-5)


def test_the_seed_decides_a_new_head_and_new_adapters(tiny_backbone):
    def weights(seed):
        model = loaded(tiny_backbone, new_head=True, lora=LORA, seed=seed)
        return {k: v for k, v in model.network.named_parameters() if v.requires_grad}

    one, same, other = weights(1), weights(1), weights(2)

    assert all(one[key].equal(same[key]) for key in one)
    assert any("lora_A" in key and not one[key].equal(other[key]) for key in one)
    assert any("classifier" in key and not one[key].equal(other[key]) for key in one)


def test_adapters_on_adapters_are_refused(tiny_reward_model, tmp_path):
    folder = saved(loaded(tiny_reward_model, lora=LORA), tmp_path / "adapters")

    with pytest.raises(InputError, match="has adapters already; export it merged first"):
        loaded(folder, lora=LORA)


def test_adapter_targets_that_the_model_has_not_are_refused(tiny_reward_model):
    lora = LoraConfig(target_modules=["nowhere"])

    with pytest.raises(InputError, match=r"model.lora.target_modules = \['nowhere'\]"):
        loaded(tiny_reward_model, lora=lora)


def test_merging_a_model_without_adapters_is_refused(tiny_reward_model):
    with pytest.raises(InputError, match="no adapters to merge"):
        merged_adapters(loaded(tiny_reward_model))
