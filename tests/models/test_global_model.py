"""The global model's tokens, rewards and features: once, under the right key."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

import scpo_ray.models.global_model
from scpo_ray.models.global_model import GlobalModel, open_global_model
from scpo_ray.models.scoring import score_texts
from scpo_ray.records import Text, TextSource
from scpo_ray.settings.model import LoraConfig, ModelConfig
from scpo_ray.storage.stores import Stores
from tests.models.test_rendering import CHAT_TEMPLATE, changed_tokenizer


class ListedTexts(TextSource):
    """Prompts and responses in memory; it counts how often one is read."""

    def __init__(self, *texts: tuple[str, str]) -> None:
        self.rows = [Text((), prompt, response) for prompt, response in texts]
        digests = [hashlib.sha256("\0".join(t).encode()).digest()[:8] for t in texts]
        self.hashes = np.array([int.from_bytes(d, "little") for d in digests], dtype=np.uint64)
        self.num_reads = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        self.num_reads += 1
        return self.rows[index]


TEXTS = [("about art", "answer"), ("a", "art about a"), ("art", "a " * 30)]


def model_in(folder: Path, cache: Path, **settings) -> GlobalModel:
    config = ModelConfig(path=str(folder), **{"max_length": 48} | settings)
    return open_global_model(config, Stores(cache), device="cpu", precision="fp32")


def no_loading(*arguments, **settings):
    raise AssertionError("the model was loaded")


def test_the_second_call_reads_the_rewards_and_loads_no_model(
    tiny_reward_model, tmp_path, monkeypatch
):
    model = model_in(tiny_reward_model, tmp_path)
    rewards = model.rewards(ListedTexts(*TEXTS))
    monkeypatch.setattr(scpo_ray.models.global_model, "load_reward_model", no_loading)

    again = ListedTexts(*TEXTS)

    np.testing.assert_array_equal(model.rewards(again), rewards)
    assert again.num_reads == 0


def test_a_part_of_the_texts_in_any_order_has_the_same_rewards_to_the_bit(
    tiny_reward_model, tmp_path, monkeypatch
):
    model = model_in(tiny_reward_model, tmp_path)
    rewards, features = (ask(ListedTexts(*TEXTS)) for ask in (model.rewards, model.features))
    monkeypatch.setattr(scpo_ray.models.global_model, "load_reward_model", no_loading)
    some = ListedTexts(TEXTS[2], TEXTS[0])

    np.testing.assert_array_equal(model.rewards(some), rewards[[2, 0]])
    np.testing.assert_array_equal(model.features(some)[np.arange(2)], features[np.array([2, 0])])
    assert (
        model.tokens(some).lengths.tolist()
        == model.tokens(ListedTexts(*TEXTS)).lengths[[2, 0]].tolist()
    )
    assert some.num_reads == 0


def test_of_more_texts_only_the_new_ones_are_rendered_and_scored(
    tiny_reward_model, tmp_path, caplog
):
    model, more = model_in(tiny_reward_model, tmp_path), ListedTexts(*TEXTS, ("new", "answer"))
    rewards = model.rewards(ListedTexts(*TEXTS))
    caplog.set_level("INFO", logger="scpo_ray")

    again = model.rewards(more)

    assert more.num_reads == 1
    np.testing.assert_array_equal(again[:3], rewards)
    np.testing.assert_allclose(again[3], score_texts(model.frozen(), more.rows)[3], atol=1e-6)
    assert "scores: 1 texts computed, 3 read, kept in" in caplog.text


def test_the_stored_rewards_are_the_models(tiny_reward_model, tmp_path):
    model, texts = model_in(tiny_reward_model, tmp_path), ListedTexts(*TEXTS)

    rewards = model.rewards(texts)

    assert rewards.dtype == np.float32
    np.testing.assert_allclose(rewards, score_texts(model.frozen(), texts.rows), atol=1e-6)


def test_a_store_that_a_crash_damaged_is_computed_again(tiny_reward_model, tmp_path, caplog):
    model = model_in(tiny_reward_model, tmp_path)
    rewards = model.rewards(ListedTexts(*TEXTS))
    [part] = (tmp_path / "scores").glob("*/part-*")
    (part / "values.npy").write_bytes(b"x" * 99)

    again = model.rewards(ListedTexts(*TEXTS))

    np.testing.assert_array_equal(again, rewards)
    fault = "(values.npy is not what was written): computing again"
    assert f"scores in {part} are damaged {fault}" in caplog.text


def with_other_byte(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def with_other_word(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"about"', '"abaut"'))
    return folder


def test_whatever_changes_the_rewards_changes_the_key(tiny_reward_model, tmp_path):
    def key(folder=tiny_reward_model, **settings):
        return model_in(folder, tmp_path, **settings).score_key

    chat = changed_tokenizer(tiny_reward_model, tmp_path / "chat", chat_template=CHAT_TEMPLATE)
    other = changed_tokenizer(tiny_reward_model, tmp_path / "other", chat_template="{{ 1 }}")
    keys = {
        "as it is": key(),
        "tokenizer": key(with_other_word(tiny_reward_model, tmp_path / "word")),
        "template": key(chat),
        "another template": key(other),
        "maximum length": key(max_length=47),
        "one byte of the weights": key(with_other_byte(tiny_reward_model, tmp_path / "byte")),
        "layers": key(num_layers=1),
        "precision": replace(model_in(tiny_reward_model, tmp_path), precision="bf16").score_key,
    }

    assert len(set(keys.values())) == len(keys)


def test_what_does_not_change_the_rewards_keeps_the_key(tiny_reward_model, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_reward_model, copy)
    key = model_in(tiny_reward_model, tmp_path).score_key

    for folder, settings in [
        (copy, {}),
        (tiny_reward_model, {"lora": LoraConfig(), "inference_batch_tokens": 64}),
    ]:
        assert model_in(folder, tmp_path, **settings).score_key == key


def test_adapters_to_train_are_not_part_of_the_reference(tiny_reward_model, tmp_path):
    texts = ListedTexts(*TEXTS)
    plain = model_in(tiny_reward_model, tmp_path / "plain").rewards(texts)

    lora = model_in(tiny_reward_model, tmp_path / "lora", lora=LoraConfig()).rewards(texts)

    np.testing.assert_array_equal(lora, plain)


def test_texts_are_rendered_once_and_anew_for_another_length(tiny_reward_model, tmp_path):
    first, second, third = (ListedTexts(*TEXTS) for _ in range(3))
    model = model_in(tiny_reward_model, tmp_path)

    tokens = model.tokens(first)
    again = model.tokens(second)
    cut = model_in(tiny_reward_model, tmp_path, max_length=16).tokens(third)

    assert (first.num_reads, second.num_reads, third.num_reads) == (3, 0, 3)
    np.testing.assert_array_equal(again.input_ids, tokens.input_ids)
    assert cut.truncated.tolist() == [False, False, True]


def test_each_dtype_has_rewards_of_its_own(tiny_reward_model, tmp_path):
    one = model_in(tiny_reward_model, tmp_path)
    other = model_in(tiny_reward_model, tmp_path, dtype="bfloat16")

    assert one.score_key == model_in(tiny_reward_model, tmp_path, dtype="float32").score_key
    assert one.score_key != other.score_key
    assert one.fingerprint == other.fingerprint
    assert not np.array_equal(one.rewards(ListedTexts(*TEXTS)), other.rewards(ListedTexts(*TEXTS)))
