"""Rewards batched by length."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.models.export import load_exported
from scpo_ray.models.reading import pad_texts
from scpo_ray.models.scoring import length_batches, score_texts, score_tokens
from scpo_ray.records import Text, Tokens

TEXTS = [
    Text((), "about art", "answer"),
    Text((), "a", "art about a"),
    Text((), "art", "a " * 30),
]


def test_scoring_is_without_dropout_and_leaves_the_mode_as_it_was(tiny_reward_model):
    model = load_exported(tiny_reward_model, device="cpu")
    rewards = score_texts(model, TEXTS)
    model.network.train()

    again = score_texts(model, TEXTS)

    np.testing.assert_array_equal(again, rewards)
    assert model.network.training


def test_scored_texts_keep_the_order_asked_for(tiny_reward_model):
    model = load_exported(tiny_reward_model, device="cpu")
    tokens = model.renderer.encode(TEXTS)

    rewards = score_tokens(model, tokens, text_ids=np.array([2, 0, 2]))

    everything = score_tokens(model, tokens)
    np.testing.assert_allclose(rewards, everything[[2, 0, 2]], atol=1e-6)
    assert score_tokens(model, tokens, text_ids=np.empty(0, dtype=np.int64)).shape == (0,)


@given(
    lengths=st.lists(st.integers(1, 600), max_size=80),
    batch_tokens=st.integers(64, 2_000),
    in_rows=st.booleans(),
)
def test_length_batches_hold_every_row_once_within_the_budget(lengths, batch_tokens, in_rows):
    array = np.array(lengths, dtype=np.int64)

    batches = list(length_batches(array, batch_tokens, in_rows=in_rows))

    rows = [int(row) for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    for batch in batches:
        computed = array[batch].sum() if in_rows else len(batch) * array[batch].max()
        assert len(batch) == 1 or computed <= batch_tokens
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
