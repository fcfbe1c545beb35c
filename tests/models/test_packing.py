"""Texts in one row without padding: the rewards and gradients of each text alone."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from scpo_ray.models import reading
from scpo_ray.models.packing import fit_for_rows, fit_to_read_alone
from scpo_ray.models.reading import ScoredNetwork, near_equal_runs
from scpo_ray.models.reward_model import RewardModel, turn_off_dropout
from scpo_ray.settings.model import LoraConfig
from scpo_ray.settings.train import TrainConfig
from scpo_ray.training.optimization import prepare_network
from tests.models.test_reading import (
    BOS,
    END,
    GROUPED,
    HALF,
    PAD,
    ROWS,
    USUAL,
    network_of,
    tokens_of,
)
from tests.models.test_reward_model import TEXTS, loaded

WINDOW = {**GROUPED, "sliding_window": 4}
# Narrow windows and strong soft-capping, which short texts and small weights would hide.
IN_ROWS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"pad_token_id": 1},
    "xlm-roberta": {**USUAL, **HALF},
    "electra": {},
    "distilbert": {},
    "modernbert": {"local_attention": 8, "classifier_pooling": "cls"},
    "modernbert mean": {"local_attention": 8, "classifier_pooling": "mean"},
    "llama": {},
    "qwen2": {},
    "qwen3": {**GROUPED, "head_dim": 8},
    "mistral": {"sliding_window": 4},
    "gemma": {},
    "gemma2": {**WINDOW, "head_dim": 8, "attn_logit_softcapping": 0.5},
    "gemma3_text": {**WINDOW, "head_dim": 8},
    "gpt_neox": {},
    "gpt2": {},
    "opt": {},
    "phi": {},
}
# Their last feed-forward network is of layers of another kind, is one for all layers, or all of its
# states are read.
READ_WHOLE = {"gpt2", "modernbert mean", "albert", "xlnet"}
LENGTHS = (3, 17, 9, 30)


@pytest.fixture(autouse=True)
def quiet(caplog):
    from scpo_ray.models.rendering import quiet_transformers

    quiet_transformers()


def network_in_family(name: str) -> Any:
    return network_of(name.partition(" ")[0], **IN_ROWS.get(name, {}))


def texts_of(lengths: tuple[int, ...]) -> Any:
    """Texts that end with the end token; the third holds a pad token as well."""
    rng = np.random.default_rng(1)
    texts = [[*rng.integers(BOS + 2, ROWS, n - 1), END] for n in lengths]
    texts[2][3] = PAD
    return tokens_of(*texts)


def rewards_alone(network: nn.Module, tokens: Any) -> Tensor:
    """Of transformers itself: one text, nothing padded."""
    rewards = []
    for start, stop in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
        ids = torch.from_numpy(tokens.input_ids[start:stop].astype(np.int64))[None]
        logits = network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        rewards.append(logits.reshape(-1))
    return torch.cat(rewards)


def gradients(network: nn.Module, rewards: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    (rewards * torch.arange(1.0, len(rewards) + 1)).sum().backward()
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def rewards_in_row(network: nn.Module, tokens: Any, *, only_read: bool = False) -> Tensor:
    return rewards_of(
        RewardModel(network, None, "cpu", 99, in_rows=True, only_read=only_read), tokens
    )


def rewards_of(model: RewardModel, tokens: Any) -> Tensor:
    return model.rewards(model.batch(tokens, np.arange(len(tokens.lengths))))


def assert_same(network: nn.Module, rewards: Tensor, expected: Tensor) -> None:
    """The rewards, and their gradients."""
    theirs, ours = gradients(network, expected), gradients(network, rewards)
    torch.testing.assert_close(rewards, expected, rtol=1e-5, atol=1e-5)
    assert ours.keys() == theirs.keys()
    # Of the largest: some weights have a gradient of rounding alone.
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for weight, gradient in theirs.items():
        torch.testing.assert_close(ours[weight], gradient, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("name", IN_ROWS)
def test_rewards_and_gradients_in_a_row_are_those_of_each_text_alone(name):
    network, tokens = network_in_family(name), texts_of(LENGTHS)
    expected = rewards_alone(network, tokens)

    assert fit_for_rows(ScoredNetwork(network))

    assert_same(network, rewards_in_row(network, tokens), expected)
    # Outside of rows the network computes as it did, to the bit.
    assert torch.equal(rewards_alone(network, tokens), expected)


@pytest.mark.parametrize("name", [*IN_ROWS, "deberta-v2", "albert", "xlnet", "bloom", "bart", "t5"])
def test_what_nobody_reads_need_not_be_computed(name):
    network, tokens = network_in_family(name), texts_of(LENGTHS)
    expected = rewards_alone(network, tokens)
    scored = ScoredNetwork(network)
    in_rows = fit_for_rows(scored)

    assert fit_to_read_alone(scored, in_rows=in_rows) == (name not in READ_WHOLE)

    if name not in READ_WHOLE:
        model = RewardModel(network, None, "cpu", 99, in_rows=in_rows, only_read=True)
        assert_same(network, rewards_of(model, tokens), expected)
        assert torch.equal(rewards_alone(network, tokens), expected)


@given(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=7))
def test_texts_are_padded_together_where_that_costs_fewest_tokens(lengths):
    runs = near_equal_runs(np.array(lengths))

    assert sorted(np.concatenate(runs)) == list(range(len(lengths)))
    in_order = sorted(lengths, reverse=True)
    assert [lengths[place] for run in runs for place in run] == in_order
    ways = (
        np.split(np.array(in_order), np.flatnonzero(cuts) + 1)
        for cuts in product([False, True], repeat=len(lengths) - 1)
    )
    fewest = min(sum(len(run) * run[0] + 128 for run in way) for way in ways)
    assert sum(len(run) * lengths[run[0]] + 128 for run in runs) == fewest


@pytest.mark.parametrize("only_read", [False, True])
@pytest.mark.parametrize("name", ["deberta-v2", "bert", "llama", "bart", "t5"])
def test_passes_of_near_equal_lengths_give_each_texts_rewards_and_gradients(
    name, only_read, monkeypatch
):
    # Each length in a pass of its own.
    monkeypatch.setattr(reading, "_PASS_TOKENS", 1)
    network, tokens = network_in_family(name), texts_of(LENGTHS)
    expected = rewards_alone(network, tokens)
    model = RewardModel(network, None, "cpu", 99, only_read=only_read)
    widths = []

    def see(layer: nn.Module, args: Any, given: Any) -> None:
        widths.append((args[0] if args else given["input_ids"]).shape[1])

    network.base_model.register_forward_pre_hook(see, with_kwargs=True)

    rewards = model.rewards(model.batch(tokens, np.arange(len(LENGTHS)), by_length=True))

    assert widths == sorted(LENGTHS, reverse=True)
    assert_same(network, rewards, expected)


def test_the_last_feed_forward_network_gets_the_read_tokens_alone():
    network, tokens = network_of("bert"), texts_of(LENGTHS)
    given = []
    dense = network.bert.encoder.layer[-1].output.dense
    dense.register_forward_hook(lambda layer, args, output: given.append(args[0].shape[:2]))

    for in_rows in (False, True):
        model = RewardModel(network, None, "cpu", 99, in_rows=in_rows, only_read=True)
        assert not in_rows or fit_for_rows(ScoredNetwork(network))
        given.clear()
        rewards_of(model, tokens)
        assert given == [(1, len(LENGTHS))]


@pytest.mark.parametrize("name", ["bert", "modernbert", "mistral", "gemma2"])
def test_rounded_to_bfloat16_a_row_is_near_the_unrounded_one(name):
    network, tokens = network_in_family(name), texts_of(LENGTHS)
    expected = rewards_alone(network, tokens)
    assert fit_for_rows(ScoredNetwork(network))

    model = RewardModel(network, None, "cpu", 99, in_rows=True, precision="bf16")

    rewards = rewards_of(model, tokens)
    assert not torch.equal(rewards, expected)
    atol = 0.05 * float(expected.detach().abs().max())
    torch.testing.assert_close(rewards, expected, rtol=0, atol=atol)
    assert all(torch.isfinite(g).all() for g in gradients(network, rewards).values())


def test_token_types_go_into_the_row_with_their_tokens():
    network = network_of("bert")
    types = [0, 0, 1, 1, *[0] * 3, *[1] * 5]
    tokens = tokens_of([5, 6, 7, END], [9, 10, 11, 12, 13, 14, 15, END], types=types)
    model = RewardModel(network, None, "cpu", 99)
    padded = model.rewards(model.batch(tokens, np.arange(2)))

    assert fit_for_rows(model.scored)

    torch.testing.assert_close(rewards_in_row(network, tokens), padded, rtol=1e-5, atol=1e-5)
    plain = replace(tokens, token_type_ids=None)
    assert (rewards_in_row(network, plain) - padded).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["deberta-v2", "albert", "xlnet", "bloom", "bart", "t5"])
def test_what_cannot_be_computed_in_a_row_is_left_as_it_was(name):
    network, tokens = network_of(name), texts_of(LENGTHS)
    kind = network.config._attn_implementation
    expected = rewards_alone(network, tokens)

    assert not fit_for_rows(ScoredNetwork(network))

    assert network.config._attn_implementation == kind
    assert torch.equal(rewards_alone(network, tokens), expected)


@pytest.mark.parametrize(
    "leak",
    [
        lambda states: states + 1e-6 * states.mean(dim=1, keepdim=True),
        lambda states: states + 1e-3 * states.roll(1, dims=1),
    ],
    ids=["a mean over the row", "the token before"],
)
def test_a_layer_that_mixes_neighbours_is_found_however_little_it_does(leak):
    network = network_of("llama")
    network.model.layers[0].mlp.register_forward_hook(lambda m, given, states: leak(states))

    assert not fit_for_rows(ScoredNetwork(network))
    network.model.layers[-1].mlp.register_forward_hook(lambda m, given, states: leak(states))
    assert not fit_to_read_alone(ScoredNetwork(network), in_rows=False)


def test_a_network_that_counts_positions_by_itself_is_found():
    network = network_of("gpt2")
    forward = network.transformer.wpe.forward
    network.transformer.wpe.forward = lambda ids: forward(torch.arange(ids.shape[-1])[None])

    assert not fit_for_rows(ScoredNetwork(network))


def test_activations_computed_again_in_the_backward_pass_are_the_same():
    network, tokens = network_of("mistral", sliding_window=4), texts_of(LENGTHS)
    turn_off_dropout(network)
    assert fit_for_rows(ScoredNetwork(network))
    expected = gradients(network, rewards_in_row(network, tokens))

    model = RewardModel(network, None, "cpu", 99, in_rows=True)
    prepare_network(model, TrainConfig(gradient_checkpointing=True, dropout=False))

    rewards = rewards_in_row(network, tokens, only_read=True)
    for weight, gradient in gradients(network, rewards).items():
        assert torch.equal(gradient, expected[weight]), weight


def test_threads_that_share_a_network_get_each_their_own_rewards():
    network, tokens = network_of("bert"), texts_of(LENGTHS)
    assert fit_for_rows(ScoredNetwork(network))
    model = RewardModel(network, None, "cpu", 99, in_rows=True, only_read=True)
    groups = [np.array(texts) for texts in ([0, 1], [2], [3, 1, 0], [1, 2, 3])] * 5

    def rewards(texts):
        with torch.no_grad():
            return model.rewards(model.batch(tokens, texts))

    expected = [rewards(texts) for texts in groups]
    with ThreadPoolExecutor(4) as threads:
        for ours, theirs in zip(threads.map(rewards, groups), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_adapters_are_computed_in_rows_too(tiny_reward_model):
    model = loaded(tiny_reward_model, lora=LoraConfig(rank=2))
    assert model.in_rows and model.only_read
    for name, weight in model.network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    tokens, texts = model.renderer.encode(TEXTS), np.arange(len(TEXTS))

    padded = replace(model, in_rows=False, only_read=False)

    rewards = model.rewards(model.batch(tokens, texts))
    torch.testing.assert_close(rewards, padded.rewards(padded.batch(tokens, texts)))
