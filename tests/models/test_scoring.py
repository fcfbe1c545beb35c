"""Rewards batched by length, and the global model's rewards: once, under the right key."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import scpo_ray.models.scoring
from scpo_ray.models.loading import load_reward_model
from scpo_ray.models.reading import pad_texts
from scpo_ray.models.rendering import Renderer, load_renderer
from scpo_ray.models.scoring import (
    length_batches,
    reference_rewards,
    score_key,
    score_texts,
    score_tokens,
    tokenize,
)
from scpo_ray.records import ALONE, Text, TextSource, Tokens
from scpo_ray.settings.model import LoraConfig, ModelConfig
from scpo_ray.storage.stores import ScoreStore, TokenStore
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


def parts(folder: Path, **settings) -> tuple[ModelConfig, Renderer]:
    config = ModelConfig(path=str(folder), **{"max_length": 48} | settings)
    return config, load_renderer(folder, config)


def rewards_of(folder: Path, texts: TextSource, cache: Path, **settings):
    config, renderer = parts(folder, **settings)
    tokens = tokenize(renderer, texts, TokenStore(cache / "tokens"))
    store = ScoreStore(cache / "scores")
    return reference_rewards(folder, config, renderer, texts, tokens, store, ALONE)


def no_loading(*arguments, **settings):
    raise AssertionError("the model was loaded")


def test_the_second_call_reads_the_rewards_and_loads_no_model(
    tiny_reward_model, tmp_path, monkeypatch
):
    rewards = rewards_of(tiny_reward_model, ListedTexts(*TEXTS), tmp_path)
    monkeypatch.setattr(scpo_ray.models.scoring, "load_reward_model", no_loading)

    again = ListedTexts(*TEXTS)

    np.testing.assert_array_equal(rewards_of(tiny_reward_model, again, tmp_path), rewards)
    assert again.num_reads == 0
    with pytest.raises(AssertionError, match="the model was loaded"):
        rewards_of(tiny_reward_model, ListedTexts(*TEXTS[:2]), tmp_path)


def test_the_stored_rewards_are_the_models(tiny_reward_model, tmp_path):
    config, renderer = parts(tiny_reward_model)
    model = load_reward_model(tiny_reward_model, config, renderer, device="cpu", seed=0)
    texts = ListedTexts(*TEXTS)

    rewards = rewards_of(tiny_reward_model, texts, tmp_path)

    assert rewards.dtype == np.float32
    np.testing.assert_allclose(rewards, score_texts(model, texts.rows), atol=1e-6)


@pytest.mark.parametrize("spoil", ["cut", "empty", "garbage"])
def test_a_store_that_a_crash_damaged_is_computed_again(tiny_reward_model, tmp_path, caplog, spoil):
    rewards = rewards_of(tiny_reward_model, ListedTexts(*TEXTS), tmp_path)
    [file] = (tmp_path / "scores").glob("*/part-*.parquet")
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "garbage": b"x" * 99}[spoil])

    again = rewards_of(tiny_reward_model, ListedTexts(*TEXTS), tmp_path)

    np.testing.assert_array_equal(again, rewards)
    assert f"scores in {file} are damaged" in caplog.text
    assert file.read_bytes() == whole


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
    def key(folder=tiny_reward_model, texts=TEXTS, **settings):
        config, renderer = parts(folder, **settings)
        return score_key(folder, config, renderer, ListedTexts(*texts))

    chat = changed_tokenizer(tiny_reward_model, tmp_path / "chat", chat_template=CHAT_TEMPLATE)
    other = changed_tokenizer(tiny_reward_model, tmp_path / "other", chat_template="{{ 1 }}")
    keys = {
        "as it is": key(),
        "text": key(texts=[*TEXTS[:2], ("art", "a " * 31)]),
        "fewer texts": key(texts=TEXTS[:2]),
        "order": key(texts=TEXTS[::-1]),
        "tokenizer": key(with_other_word(tiny_reward_model, tmp_path / "word")),
        "template": key(chat),
        "another template": key(other),
        "maximum length": key(max_length=47),
        "one byte of the weights": key(with_other_byte(tiny_reward_model, tmp_path / "byte")),
        "layers": key(num_layers=1),
    }

    assert len(set(keys.values())) == len(keys)


def test_what_does_not_change_the_rewards_keeps_the_key(tiny_reward_model, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_reward_model, copy)
    config, renderer = parts(tiny_reward_model)
    key = score_key(tiny_reward_model, config, renderer, ListedTexts(*TEXTS))

    for folder, settings in [
        (copy, {}),
        (tiny_reward_model, {"lora": LoraConfig(), "inference_batch_tokens": 64}),
    ]:
        config, renderer = parts(folder, **settings)
        assert score_key(folder, config, renderer, ListedTexts(*TEXTS)) == key


def test_adapters_to_train_are_not_part_of_the_reference(tiny_reward_model, tmp_path):
    plain = rewards_of(tiny_reward_model, ListedTexts(*TEXTS), tmp_path / "plain")

    lora = rewards_of(tiny_reward_model, ListedTexts(*TEXTS), tmp_path / "lora", lora=LoraConfig())

    np.testing.assert_array_equal(lora, plain)


def test_texts_are_rendered_once_and_anew_for_another_length(tiny_reward_model, tmp_path):
    store = TokenStore(tmp_path)
    first, second, third = (ListedTexts(*TEXTS) for _ in range(3))
    _, renderer = parts(tiny_reward_model)
    _, shorter = parts(tiny_reward_model, max_length=16)

    tokens = tokenize(renderer, first, store)
    again = tokenize(renderer, second, store)
    cut = tokenize(shorter, third, store)

    assert (first.num_reads, second.num_reads, third.num_reads) == (3, 0, 3)
    np.testing.assert_array_equal(again.input_ids, tokens.input_ids)
    assert cut.truncated.tolist() == [False, False, True]


def test_scoring_is_without_dropout_and_leaves_the_mode_as_it_was(tiny_reward_model):
    config, renderer = parts(tiny_reward_model)
    model = load_reward_model(tiny_reward_model, config, renderer, device="cpu", seed=0)
    texts = ListedTexts(*TEXTS).rows
    rewards = score_texts(model, texts)
    model.network.train()

    again = score_texts(model, texts)

    np.testing.assert_array_equal(again, rewards)
    assert model.network.training


def test_scored_texts_keep_the_order_asked_for(tiny_reward_model):
    config, renderer = parts(tiny_reward_model)
    model = load_reward_model(tiny_reward_model, config, renderer, device="cpu", seed=0)
    tokens = renderer.encode(ListedTexts(*TEXTS).rows)

    rewards = score_tokens(model, tokens, text_ids=np.array([2, 0, 2]))

    everything = score_tokens(model, tokens)
    np.testing.assert_allclose(rewards, everything[[2, 0, 2]], atol=1e-6)
    assert score_tokens(model, tokens, text_ids=np.empty(0, dtype=np.int64)).shape == (0,)


@given(
    lengths=st.lists(st.integers(1, 600), max_size=80),
    batch_tokens=st.integers(64, 2_000),
)
def test_length_batches_hold_every_row_once_within_the_budget(lengths, batch_tokens):
    array = np.array(lengths, dtype=np.int64)

    batches = list(length_batches(array, batch_tokens))

    rows = [int(row) for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * array[batch].max() <= batch_tokens
    # Near-equal lengths together: no batch reaches into the lengths of the one before.
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)


def test_padding_is_on_the_right_and_masked():
    tokens = Tokens(
        input_ids=np.array([7, 8, 9, 5], dtype=np.int32),
        token_type_ids=np.array([0, 1, 1, 1], dtype=np.int8),
        offsets=np.array([0, 3, 4]),
        truncated=np.zeros(2, dtype=np.bool_),
    )

    inputs = pad_texts(tokens, np.array([1, 0]), 99, "cpu")

    assert {name: values.tolist() for name, values in inputs.items()} == {
        "input_ids": [[5, 99, 99], [7, 8, 9]],
        "attention_mask": [[1, 0, 0], [1, 1, 1]],
        "token_type_ids": [[1, 0, 0], [0, 1, 1]],
    }
    assert all(values.dtype == torch.int64 for values in inputs.values())
