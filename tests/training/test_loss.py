import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from scpo_ray.training.loss import (
    bradley_terry_losses,
    labelled_losses,
    pair_margins,
    weighted_loss,
)


def loss_of(rewards, pairs, weights, *, normalizer):
    """As a training step puts the pieces together."""
    losses = bradley_terry_losses(pair_margins(rewards, pairs))
    return weighted_loss(losses, weights, normalizer=normalizer)


def plain_loss(chosen, rejected, weights, normalizer):
    """The formula itself, with Python's numbers."""
    terms = [
        -w * math.log(1 / (1 + math.exp(b - a)))
        for a, b, w in zip(chosen, rejected, weights, strict=True)
    ]
    return sum(terms) / normalizer


def test_loss_is_the_weighted_mean_of_minus_log_sigmoid():
    rewards = torch.tensor([2.0, 1.0, 0.5])
    pairs = torch.tensor([[0, 1], [2, 0]])
    weights = torch.tensor([1.0, 0.25])

    loss = loss_of(rewards, pairs, weights, normalizer=2)

    # margins 1 and -1.5: (1 * 0.31326 + 0.25 * 1.70141) / 2
    assert loss.item() == pytest.approx((0.31326 + 0.25 * 1.70141) / 2, abs=1e-5)
    assert loss.item() == pytest.approx(plain_loss([2.0, 0.5], [1.0, 2.0], [1.0, 0.25], 2))


def test_loss_is_divided_by_the_normalizer_and_not_by_the_weights():
    rewards, pairs = torch.tensor([0.0, 0.0]), torch.tensor([[0, 1]])

    def loss(weight, normalizer):
        weights = torch.tensor([weight])
        return loss_of(rewards, pairs, weights, normalizer=normalizer).item()

    assert loss(1.0, 1) == pytest.approx(math.log(2))
    assert loss(0.5, 1) == pytest.approx(math.log(2) / 2)
    assert loss(1.0, 8) == pytest.approx(math.log(2) / 8)
    assert loss(0.5, 0.5) == pytest.approx(math.log(2))
    assert loss(0.0, 1) == 0


@given(st.data())
def test_parts_of_any_division_add_up_to_the_loss_and_gradient_of_the_whole(data):
    seed = data.draw(st.integers(0, 999), label="seed")
    size = data.draw(st.integers(1, 12), label="pairs")
    cuts = data.draw(st.lists(st.integers(0, size), max_size=4), label="cuts")
    generator = torch.Generator().manual_seed(seed)
    rewards = (3 * torch.randn(6, generator=generator)).requires_grad_()
    pairs = torch.randint(0, 6, (size, 2), generator=generator)
    weights = torch.rand(size, generator=generator)

    def loss(rows):
        return loss_of(rewards, pairs[rows], weights[rows], normalizer=size)

    edges = [0, *sorted(cuts), size]
    parts = [loss(slice(a, b)) for a, b in zip(edges, edges[1:], strict=False)]
    whole = loss(slice(None))

    torch.testing.assert_close(sum(parts), whole)
    (whole_gradient,) = torch.autograd.grad(whole, rewards)
    (parts_gradient,) = torch.autograd.grad(sum(parts), rewards)
    torch.testing.assert_close(parts_gradient, whole_gradient)


@pytest.mark.parametrize("margin", [1e4, -1e4, 1e30, -1e30])
def test_loss_and_gradient_are_finite_at_huge_margins(margin):
    rewards = torch.tensor([margin, 0.0], requires_grad=True)

    loss = loss_of(rewards, torch.tensor([[0, 1]]), torch.ones(1), normalizer=1)
    loss.backward()

    # The loss is the margin's negative part, the gradient -sigmoid(-margin) on the chosen one.
    assert loss.item() == pytest.approx(max(-margin, 0.0))
    slope = -1.0 if margin < 0 else 0.0
    torch.testing.assert_close(rewards.grad, torch.tensor([slope, -slope]))


def test_the_gradient_raises_the_chosen_reward_in_proportion_to_the_weight():
    rewards = torch.zeros(4, requires_grad=True)
    pairs, weights = torch.tensor([[0, 1], [2, 3]]), torch.tensor([1.0, 0.5])

    loss_of(rewards, pairs, weights, normalizer=2).backward()

    # w * sigmoid(0) / 2
    torch.testing.assert_close(rewards.grad, torch.tensor([-0.25, 0.25, -0.125, 0.125]))


def test_loss_is_float32_whatever_the_forward_pass_was_in():
    rewards = torch.tensor([1.0, 0.0], dtype=torch.bfloat16)

    loss = loss_of(rewards, torch.tensor([[0, 1]]), torch.ones(1), normalizer=1)

    assert loss.dtype == torch.float32
    assert loss.shape == ()


def test_a_nan_reward_stays_visible():
    rewards = torch.tensor([math.nan, 0.0])

    loss = loss_of(rewards, torch.tensor([[0, 1]]), torch.ones(1), normalizer=1)

    assert loss.isnan()


@pytest.mark.parametrize("normalizer", [0, -1.0, math.nan])
def test_normalizer_must_be_positive(normalizer):
    with pytest.raises(ValueError, match=f"normalizer must be > 0, got {normalizer}"):
        loss_of(torch.zeros(2), torch.tensor([[0, 1]]), torch.ones(1), normalizer=normalizer)


@pytest.mark.parametrize(
    ("rewards", "pairs", "weights", "message"),
    [
        ((2, 1), (1, 2), (1,), r"rewards must be \(R,\), got \(2, 1\)"),
        ((2,), (2,), (2,), r"pairs must be \(B, 2\), got \(2,\)"),
        ((2,), (1, 3), (1,), r"pairs must be \(B, 2\), got \(1, 3\)"),
        ((2,), (1, 2), (2,), r"weights must be \(B,\) alike, got \(1,\) and \(2,\)"),
        ((2,), (1, 2), (1, 1), r"weights must be \(B,\) alike, got \(1,\) and \(1, 1\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(rewards, pairs, weights, message):
    with pytest.raises(ValueError, match=message):
        loss_of(
            torch.zeros(rewards),
            torch.zeros(pairs, dtype=torch.int64),
            torch.ones(weights),
            normalizer=1,
        )


def soft_losses(margins, shares):
    return labelled_losses(margins, shares, losses=bradley_terry_losses)


numbers = st.floats(-(2.0**100), 2.0**100, width=32)


@given(st.lists(st.tuples(st.floats(-80, 80, width=32), st.floats(0, 1, width=32)), min_size=1))
def test_soft_labels_are_the_targets_of_a_binary_cross_entropy(pairs):
    margins, shares = torch.tensor(pairs, dtype=torch.float64).T

    expected = binary_cross_entropy_with_logits(margins, shares, reduction="none")
    torch.testing.assert_close(soft_losses(margins, shares), expected)
    in_float32 = soft_losses(margins.float(), shares.float())
    torch.testing.assert_close(in_float32.double(), expected, rtol=1e-6, atol=1e-6)


@given(st.lists(numbers, min_size=1, max_size=8))
def test_soft_labels_of_1_are_the_plain_loss_and_gradient_to_the_bit(margins):
    plain, soft = (torch.tensor(margins, requires_grad=True) for _ in range(2))

    losses = bradley_terry_losses(plain)
    labelled = soft_losses(soft, torch.ones(len(margins)))
    losses.sum().backward()
    labelled.sum().backward()

    assert labelled.equal(losses)
    assert soft.grad.equal(plain.grad)
    assert soft_losses(plain, None).equal(losses)


@given(st.floats(0.01, 0.99), st.floats(-5, 5))
def test_the_loss_is_least_where_the_win_probability_is_the_share(share, distance):
    best = torch.tensor([math.log(share / (1 - share))], dtype=torch.float64, requires_grad=True)
    shares = torch.tensor([share], dtype=torch.float64)

    least = soft_losses(best, shares)
    least.sum().backward()

    # The share's entropy.
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert least.item() == pytest.approx(entropy, abs=1e-9)
    assert abs(best.grad.item()) < 1e-9
    assert soft_losses(best + distance, shares).item() >= least.item() - 1e-12


def test_margins_without_a_share_each_are_refused():
    with pytest.raises(ValueError, match=r"\(B,\) alike, got \(2,\) and \(1,\)"):
        soft_losses(torch.zeros(2), torch.ones(1))
