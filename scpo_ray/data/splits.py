"""Who is trained on and who is held out. Pure."""

import math

import numpy as np
from numpy.typing import NDArray

from scpo_ray.data.codes import present


def split_users(num_users: int, test_size: float, seed: int) -> NDArray[np.bool_]:
    """Which users are held out: those of `datasets.Dataset.train_test_split` over their rows.

    Args:
        num_users: over the whole data, in file order.
        test_size: share held out, in (0, 1), rounded up.

    Returns: (num_users,) bool, true for test.
    Raises: ValueError if nobody is left to train on.
    Source: datasets 5.2, `train_test_split(test_size=, seed=)`; the paper's split.
    """
    num_test = math.ceil(test_size * num_users)
    if num_test >= num_users:
        raise ValueError(f"test_size {test_size} of {num_users} leaves none to train on")
    held_out = np.zeros(num_users, dtype=np.bool_)
    held_out[np.random.default_rng(seed).permutation(num_users)[:num_test]] = True
    return held_out


def assign_folds(num_units: int, num_folds: int, seed: int) -> NDArray[np.int64]:
    """(num_units,) int64: the fold that holds each unit out; sizes differ by at most one."""
    folds = np.empty(num_units, dtype=np.int64)
    order = np.random.default_rng(seed).permutation(num_units)
    folds[order] = np.arange(num_units) % num_folds
    return folds


def fold_within_cultures(
    unit_codes: NDArray[np.int64],
    culture_codes: NDArray[np.int32],
    num_folds: int,
    fold: int,
    seed: int,
) -> NDArray[np.bool_]:
    """Which interactions a fold holds out, each culture's units dealt on their own.

    Args:
        unit_codes, culture_codes: (N,) of each interaction; units are users.

    Returns: (N,) bool. Other cultures in the data do not change it.
    """
    held_out = np.zeros(len(unit_codes), dtype=np.bool_)
    for culture in np.flatnonzero(present(culture_codes)):
        rows = np.flatnonzero(culture_codes == culture)
        is_mine = present(unit_codes[rows])
        is_drawn = np.zeros(len(is_mine), dtype=np.bool_)
        is_drawn[is_mine] = assign_folds(int(is_mine.sum()), num_folds, seed) == fold
        held_out[rows] = is_drawn[unit_codes[rows]]
    return held_out


def hold_out_dev(
    unit_codes: NDArray[np.int64],
    culture_codes: NDArray[np.int32],
    dev_size: float,
    seed: int,
) -> NDArray[np.bool_]:
    """Which of the interactions that are not tested are held out for choices.

    A unit of one culture is drawn among those of its culture, so that each culture has its share;
    one that several cultures share (a question) among all such, and is on one side in all of them.

    Args:
        unit_codes, culture_codes: (N,) of the interactions; units are users or questions.
        dev_size: share of the units, in [0, 1), rounded to whole ones: of three at 0.15, none.

    Returns: (N,) bool. No data fraction changes it.
    """
    if not len(unit_codes) or not dev_size:
        return np.zeros(len(unit_codes), dtype=np.bool_)
    num_units = int(unit_codes.max()) + 1
    # Its own stream: neither the split's nor the fractions' order.
    ranks = np.random.default_rng([seed, 2]).permutation(num_units)
    # Of each unit a culture that it is in, whichever; 0 where it is in several, and -1 in none.
    groups = np.full(num_units, -1, dtype=np.int64)
    groups[unit_codes] = culture_codes + 1
    groups[unit_codes[groups[unit_codes] != culture_codes + 1]] = 0
    is_drawn = np.zeros(num_units, dtype=np.bool_)
    for group in np.flatnonzero(present(groups[groups >= 0])):
        mine = np.flatnonzero(groups == group)
        num_dev = math.floor(dev_size * len(mine) + 0.5)
        is_drawn[mine[np.argsort(ranks[mine])][:num_dev]] = True
    return is_drawn[unit_codes]


def keep_fraction(
    unit_codes: NDArray[np.int64],
    culture_codes: NDArray[np.int32],
    fraction: float,
    seed: int,
) -> NDArray[np.bool_]:
    """Which training interactions remain when each culture keeps a fraction of its units.

    Args:
        unit_codes, culture_codes: (N,) of the training interactions; units are users or questions.
        fraction: in (0, 1], rounded to whole units, at least one.

    Returns: (N,) bool. A smaller fraction's units are among a larger one's; cultures that share
        units (questions) prefer the same ones.
    """
    kept = np.zeros(len(unit_codes), dtype=np.bool_)
    if not len(unit_codes):
        return kept
    # Its own stream, so that the order is not the split's, which already sorted test from train.
    ranks = np.random.default_rng([seed, 1]).permutation(int(unit_codes.max()) + 1)
    for culture in np.flatnonzero(present(culture_codes)):
        rows = np.flatnonzero(culture_codes == culture)
        units = np.flatnonzero(present(unit_codes[rows]))
        first = units[np.argsort(ranks[units])][: max(1, math.floor(fraction * len(units) + 0.5))]
        kept[rows] = present(first, size=len(ranks))[unit_codes[rows]]
    return kept
