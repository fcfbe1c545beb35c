import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.data.splits import (
    assign_folds,
    fold_within_cultures,
    hold_out_dev,
    keep_fraction,
    split_users,
)

CODES = st.lists(st.integers(0, 9), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("num_users", "test_size", "seed"),
    [(1500, 0.15, 0), (176, 0.15, 0), (2, 0.15, 3), (7, 0.5, 1), (100, 0.29, 42)],
)
def test_the_users_held_out_are_those_of_the_library(num_users, test_size, seed):
    rows = Dataset.from_dict({"user": list(range(num_users))})
    library = rows.train_test_split(test_size=test_size, seed=seed)

    held_out = split_users(num_users, test_size, seed)

    assert sorted(library["test"]["user"]) == np.flatnonzero(held_out).tolist()
    assert sorted(library["train"]["user"]) == np.flatnonzero(~held_out).tolist()


@pytest.mark.parametrize(("num_users", "test_size"), [(1, 0.15), (2, 0.9), (0, 0.5)])
def test_a_split_that_leaves_none_to_train_on_is_refused(num_users, test_size):
    with pytest.raises(ValueError, match=f"test_size {test_size} of {num_users} leaves none"):
        split_users(num_users, test_size, seed=0)


@given(st.integers(0, 60), st.integers(2, 8), st.integers(0, 5))
def test_every_unit_is_in_one_fold_and_folds_are_even(num_units, num_folds, seed):
    folds = assign_folds(num_units, num_folds, seed)

    sizes = np.bincount(folds, minlength=num_folds)
    assert sizes.sum() == num_units
    assert len(sizes) == num_folds
    assert sizes.max() - sizes.min() <= 1


@given(CODES, st.integers(2, 4), st.integers(0, 5))
def test_folds_hold_out_each_user_once_and_whole(users, num_folds, seed):
    units = np.array(users)
    cultures = units % 3

    held_out = [
        fold_within_cultures(units, cultures, num_folds, fold, seed) for fold in range(num_folds)
    ]

    assert np.sum(held_out, axis=0).tolist() == [1] * len(units)
    for fold in held_out:
        assert not set(units[fold]) & set(units[~fold])


def test_folds_of_a_culture_do_not_depend_on_the_others():
    units, cultures = np.arange(20), np.repeat([0, 1], 10)

    together = fold_within_cultures(units, cultures, num_folds=3, fold=1, seed=4)
    alone = fold_within_cultures(units[10:], cultures[10:], num_folds=3, fold=1, seed=4)

    np.testing.assert_array_equal(together[10:], alone)


@given(CODES, st.floats(0, 0.9), st.integers(0, 5))
def test_each_culture_holds_out_its_share_of_whole_users_for_choices(users, dev_size, seed):
    units = np.array(users)
    cultures = units % 3

    held_out = hold_out_dev(units, cultures, dev_size, seed)

    assert not set(units[held_out]) & set(units[~held_out])
    for culture in set(cultures.tolist()):
        mine = cultures == culture
        num_units = len(set(units[mine].tolist()))
        assert len(set(units[mine & held_out].tolist())) == int(dev_size * num_units + 0.5)
        alone = hold_out_dev(units[mine], cultures[mine], dev_size, seed)
        if units.max() == units[mine].max():  # The order is drawn for as many units.
            np.testing.assert_array_equal(held_out[mine], alone)


def test_a_question_is_held_out_for_choices_in_all_cultures_or_none():
    units = np.repeat(np.arange(20), 3)
    cultures = np.tile([0, 1, 2], 20)

    held_out = hold_out_dev(units, cultures, 0.2, seed=1)

    assert held_out.reshape(20, 3).sum(axis=1).tolist().count(3) == 4
    assert held_out.sum() == 12


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1), st.integers(0, 5))
def test_units_of_several_cultures_are_held_out_apart_from_the_others(cells, seed):
    units, cultures = np.array(cells).T
    ranks = np.random.default_rng([seed, 2]).permutation(units.max() + 1)
    groups: dict[int, set[int]] = {}
    for unit in set(units.tolist()):
        among = set(cultures[units == unit].tolist())
        groups.setdefault(min(among) if len(among) == 1 else -1, set()).add(unit)
    drawn = set()
    for mine in groups.values():
        drawn |= set(sorted(mine, key=lambda unit: ranks[unit])[: int(0.4 * len(mine) + 0.5)])

    held_out = hold_out_dev(units, cultures, 0.4, seed)

    assert held_out.tolist() == [unit in drawn for unit in units.tolist()]


@given(CODES, st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 5))
def test_smaller_fractions_are_nested_and_keep_whole_users(users, one, other, seed):
    units = np.array(users)
    cultures = units % 3
    small, large = sorted([one, other])

    few = keep_fraction(units, cultures, small, seed)
    many = keep_fraction(units, cultures, large, seed)

    assert not (few & ~many).any()
    assert not set(units[few]) & set(units[~few])
    for culture in set(cultures.tolist()):
        num_units = len(set(units[cultures == culture].tolist()))
        num_kept = len(set(units[few & (cultures == culture)].tolist()))
        assert num_kept == max(1, int(small * num_units + 0.5))


def test_a_fraction_of_nothing_is_nothing():
    empty = np.zeros(0, dtype=np.int64)
    assert keep_fraction(empty, empty, 0.5, seed=0).tolist() == []
