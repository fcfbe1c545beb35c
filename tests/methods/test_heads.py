"""Heads on frozen features: closed forms where there are any, planted structures found again."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import expit

import scpo_ray.methods.heads
from scpo_ray.methods.heads import TaughtPairs, check_pairs, learned_changes, mean_loss
from scpo_ray.methods.lore import Settings as LoreSettings
from scpo_ray.methods.lore import low_rank_heads, rank_of
from scpo_ray.methods.shared_offset import Settings as OffsetSettings
from scpo_ray.methods.shared_offset import shared_offset_heads
from scpo_ray.storage.stores import MappedRows, ScoreStore
from scpo_ray.training.loss import bradley_terry_losses, labelled_losses
from tests.models.test_same_tokens import pairs_of

NOTHING = 1e-10
"""A penalty too small to matter."""


def taught(differences, ref_margins=None) -> TaughtPairs:
    rows = torch.tensor(np.asarray(differences), dtype=torch.float64)
    margins = torch.zeros(len(rows)) if ref_margins is None else torch.tensor(ref_margins)
    return TaughtPairs(rows, margins.double())


def one_feature(right: int, wrong: int) -> TaughtPairs:
    """Pairs whose chosen response has more of the one feature in `right` of all cases."""
    return taught([[1.0]] * right + [[-1.0]] * wrong)


def offset(cultures, *, shared=NOTHING, own=NOTHING) -> np.ndarray:
    config = OffsetSettings(shared_ridge=shared, offset_ridge=own)
    return shared_offset_heads(cultures, config).changes


def test_heads_learn_shares_as_if_each_person_had_a_pair():
    shared = [
        TaughtPairs(torch.ones(2, 1).double(), torch.zeros(2).double(), torch.tensor(s).double())
        for s in ([0.75, 0.75], [0.9, 0.3])
    ]

    heads = offset(shared)

    np.testing.assert_allclose(heads, offset([one_feature(3, 1), one_feature(6, 4)]), atol=1e-5)
    np.testing.assert_allclose(heads[:, 0], np.log([3, 1.5]), atol=1e-4)


@pytest.mark.parametrize("rows_in_one_go", [1, 3, 100])
def test_the_loss_in_blocks_and_its_gradient_are_those_of_all_pairs_at_once(
    rows_in_one_go, monkeypatch
):
    rng, num_features = np.random.default_rng(0), 4
    monkeypatch.setattr(scpo_ray.methods.heads, "_BLOCK_BYTES", 8 * num_features * rows_in_one_go)
    cultures = [
        TaughtPairs(*(torch.from_numpy(rng.normal(size=size)) for size in ((n, 4), n)), shares)
        for n, shares in ((7, None), (10, torch.from_numpy(rng.random(10))))
    ]
    plain, ours = (torch.ones(2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    losses = [
        labelled_losses(
            c.ref_margins + c.differences @ head, c.shares, losses=bradley_terry_losses
        ).mean()
        for c, head in zip(cultures, plain, strict=True)
    ]
    whole = (3 * torch.stack(losses).mean()).square()
    whole.backward()

    loss = (3 * mean_loss(cultures, ours)).square()
    loss.backward()

    torch.testing.assert_close(loss, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-10, atol=1e-14)


def stored_features(folder, values: np.ndarray) -> MappedRows:
    """Kept in two parts, the second one's texts standing between the first one's."""
    store, hashes = ScoreStore(folder), np.arange(len(values), dtype=np.uint64)
    for first in (0, 1):
        store.put("key", hashes[first::2], values[first::2])
    return store.mapped("key", hashes)


def test_heads_from_features_on_the_disk_are_those_from_features_in_memory(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(80, 4)).astype(np.float32)
    rewards = rng.normal(size=80).astype(np.float32)
    pairs = pairs_of(*rng.permutation(80).reshape(40, 2).tolist(), cultures=(0, 1) * 20)
    features = stored_features(tmp_path, values)
    monkeypatch.setattr(scpo_ray.methods.heads, "_BLOCK_BYTES", 8 * 4 * 7)

    def changes(features):
        in_memory = []

        def learn(cultures):
            in_memory.extend(isinstance(c.differences, torch.Tensor) for c in cultures)
            return shared_offset_heads(cultures, OffsetSettings())

        found, _ = learned_changes(pairs, features, rewards, learn, method="-", shares=None)
        return in_memory, np.stack(list(found.values()))

    in_memory = changes(values)
    monkeypatch.setattr(scpo_ray.methods.heads, "_MOST_KEPT_BYTES", 8 * 4 * 40 - 1)
    on_disk = changes(features)

    assert (in_memory[0], on_disk[0]) == ([True, True], [False, False])
    np.testing.assert_array_equal(on_disk[1], in_memory[1])


def test_without_penalties_each_head_is_the_log_odds_of_its_culture():
    heads = offset([one_feature(3, 1), one_feature(1, 4)])

    np.testing.assert_allclose(heads, [[math.log(3)], [math.log(1 / 4)]], rtol=1e-4)


def test_opposed_cultures_share_nothing_and_agreeing_ones_pay_both_penalties():
    shared, own = 0.3, 0.2

    opposed = offset([one_feature(3, 1), one_feature(1, 3)], shared=shared, own=own)
    agreeing = offset([one_feature(3, 1), one_feature(3, 1)], shared=shared, own=own)

    # The slope of the mean loss at head h is sigmoid(h) - 3/4. Opposed: u = 0 and own v = -slope.
    v = brentq(lambda h: own * h + expit(h) - 0.75, 0, 2)
    np.testing.assert_allclose(opposed, [[v], [-v]], rtol=1e-6)
    # Agreeing: shared u = -slope and own v = -slope, so h = u + v.
    h = brentq(lambda h: h + (expit(h) - 0.75) * (1 / shared + 1 / own), 0, 2)
    np.testing.assert_allclose(agreeing, [[h], [h]], rtol=1e-6)


def test_a_heavy_penalty_on_offsets_gives_one_head_for_all():
    heads = offset([one_feature(3, 1), one_feature(1, 4)], own=1e6)

    # Each culture counts alike: the mean of 3/4 and 1/5.
    np.testing.assert_allclose(heads, np.full((2, 1), math.log(0.475 / 0.525)), rtol=1e-3)


def test_the_global_models_margins_are_built_upon():
    known = math.log(3)
    cultures = [taught([[1.0]] * 3 + [[-1.0]], [known] * 3 + [-known]), one_feature(1, 1)]

    np.testing.assert_allclose(offset(cultures), np.zeros((2, 1)), atol=1e-6)


def test_the_scale_of_the_features_changes_no_reward():
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(30, 4)), rng.normal(size=(20, 4))]

    small = offset([taught(r) for r in rows], shared=0.1, own=0.1)
    large = offset([taught(100 * r) for r in rows], shared=0.1, own=0.1)

    np.testing.assert_allclose(large * 100, small, rtol=1e-5, atol=1e-8)


@settings(max_examples=25)
@given(st.integers(0, 1_000), st.integers(2, 4), st.floats(1e-3, 1), st.floats(1e-3, 1))
def test_the_shared_head_is_the_offsets_mean_in_the_ratio_of_the_penalties(
    seed, num_cultures, shared, own
):
    rng = np.random.default_rng(seed)
    cultures = [taught(rng.normal(size=(rng.integers(5, 30), 3))) for _ in range(num_cultures)]
    config = OffsetSettings(shared_ridge=shared, offset_ridge=own)

    found = shared_offset_heads(cultures, config)

    # shared u = own mean(v) at the minimum, and mean(u + v) = u + mean(v).
    u = found.changes.mean(axis=0) * own / (own + shared)
    scale, _ = check_pairs(cultures)
    for culture, change in zip(cultures, found.changes, strict=True):
        rows = culture.differences.numpy()
        slope = -(expit(-rows @ change)[:, None] * rows).mean(axis=0) / scale
        np.testing.assert_allclose(own * (change - u) * scale, -slope, atol=1e-6)
    assert found.slope < 1e-6


def planted(rng, heads, num_pairs):
    """Pairs of each culture whose people choose by its head, with the noise of the model."""
    cultures = []
    for head in heads:
        rows = rng.normal(size=(num_pairs, len(head)))
        is_right = rng.random(num_pairs) < expit(rows @ head)
        cultures.append(taught(np.where(is_right[:, None], rows, -rows)))
    return cultures


def agreement(found, heads) -> float:
    """Mean cosine of the heads found and those planted."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(heads, axis=1)
    return float(((found * heads).sum(axis=1) / norms).mean())


RIDGES = (1e-4, 1e-3, 1e-2)


def best_rivals(cultures, heads) -> tuple[float, float]:
    """What one head for all, and a head of each culture's pairs alone, reach at their best."""
    one = max(agreement(offset(cultures, shared=r, own=1e6), heads) for r in RIDGES)
    apart = max(agreement(offset(cultures, shared=1e6, own=r), heads) for r in RIDGES)
    return one, apart


def test_lore_finds_planted_mixtures_better_than_one_head_or_heads_apart():
    rng = np.random.default_rng(0)
    basis = 3 * rng.normal(size=(2, 16)) / 4
    shares = np.linspace(0, 1, 10)[:, None]
    heads = shares * basis[0] + (1 - shares) * basis[1]
    cultures = planted(rng, heads, 60)

    mixed = low_rank_heads(cultures, LoreSettings(rank=2), seed=0).changes

    assert np.linalg.matrix_rank(mixed, tol=1e-6) == 2
    assert agreement(mixed, heads) > max(best_rivals(cultures, heads)) + 0.05


def test_shared_offset_finds_planted_offsets_better_than_one_head_or_heads_apart():
    rng = np.random.default_rng(1)
    heads = rng.normal(size=16) + 0.6 * rng.normal(size=(8, 16))
    cultures = planted(rng, heads, 30)

    both = offset(cultures, shared=3e-3, own=3e-2)

    assert agreement(both, heads) > max(best_rivals(cultures, heads)) + 0.05


def test_lore_is_the_same_for_one_seed_and_mixes_within_the_basis():
    rng = np.random.default_rng(2)
    cultures = planted(rng, rng.normal(size=(3, 5)), 40)

    first = low_rank_heads(cultures, LoreSettings(), seed=4)
    again = low_rank_heads(cultures, LoreSettings(), seed=4)

    np.testing.assert_array_equal(first.changes, again.changes)
    assert first.num_evaluations == again.num_evaluations
    # Mixtures of two heads lie on a line.
    assert np.linalg.matrix_rank(first.changes - first.changes[0], tol=1e-6) == 1


@pytest.mark.parametrize(("cultures", "rank"), [(2, 2), (3, 2), (4, 2), (5, 3), (7, 4)])
def test_lore_mixes_one_head_for_every_two_cultures(cultures, rank):
    assert rank_of(LoreSettings(), cultures) == rank
    assert rank_of(LoreSettings(rank=1), cultures) == 1


def test_more_heads_than_cultures_are_refused():
    with pytest.raises(ValueError, match="rank must be at most the 3 cultures, got 4"):
        rank_of(LoreSettings(rank=4), 3)


@pytest.mark.parametrize(
    ("cultures", "problem"),
    [
        ([one_feature(1, 1)], "at least 2 cultures, got 1"),
        ([one_feature(1, 1), taught(np.empty((0, 1)))], "P_c > 0"),
        ([one_feature(1, 1), taught([[1.0, 2.0]])], r"must be \(P_c, D\)"),
        ([one_feature(1, 1), taught([[math.nan]])], "must be finite"),
        ([taught([[0.0]]), taught([[0.0]])], "no pair's chosen and rejected response differ"),
    ],
)
def test_bad_pairs_are_told(cultures, problem):
    with pytest.raises(ValueError, match=problem):
        check_pairs(cultures)
