"""Pairs whose two sides are one and the same to a model, and texts that are none to it. Pure."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scpo_ray.records import CultureCounts, InputError, Pairs, PreferenceData, Tokens

# Tokens looked at in one go: the memory that this takes does not grow with the data.
_TOKENS_PER_CHUNK = 4_000_000


def have_same_tokens(pairs: Pairs, tokens: Tokens) -> NDArray[np.bool_]:
    """(P,) bool, whether the chosen and the rejected text became the same tokens."""
    lengths = tokens.lengths
    same = np.equal(lengths[pairs.chosen], lengths[pairs.rejected])
    rows = np.flatnonzero(same)
    for start, stop in _chunks(lengths[pairs.chosen[rows]]):
        part = rows[start:stop]
        sizes = lengths[pairs.chosen[part]]
        chosen = _places(tokens.offsets[pairs.chosen[part]], sizes)
        rejected = _places(tokens.offsets[pairs.rejected[part]], sizes)
        differs = tokens.input_ids[chosen] != tokens.input_ids[rejected]
        if tokens.token_type_ids is not None:
            differs |= tokens.token_type_ids[chosen] != tokens.token_type_ids[rejected]
        same[part] = _counts(differs, sizes) == 0
    return same


def mostly_unknown(tokens: Tokens, unknown_id: int | None) -> NDArray[np.bool_]:
    """(T,) bool, whether more than half of a text's tokens stand for what the vocabulary lacks."""
    lengths = tokens.lengths
    unknown = np.zeros(len(lengths), dtype=np.bool_)
    if unknown_id is None:
        return unknown
    for start, stop in _chunks(lengths):
        ids = tokens.input_ids[tokens.offsets[start] : tokens.offsets[stop]]
        counts = _counts(ids == unknown_id, lengths[start:stop])
        unknown[start:stop] = 2 * counts > lengths[start:stop]
    return unknown


def told_apart(data: PreferenceData, tokens: Tokens, unknown_id: int | None) -> PreferenceData:
    """The data without the pairs that `have_same_tokens`, which are counted and warned of, as is
    a culture most of whose texts are unknown to the tokenizer.

    Such pairs teach nothing, and in a test no model can rank them. The fingerprint changes with
    what is left out, and stays where nothing is.
    """
    warnings = [*data.warnings, *_unknown_warnings(data, tokens, unknown_id)]
    same = [have_same_tokens(pairs, tokens) for pairs in data.sides]
    if not any(rows.any() for rows in same):
        return replace(data, warnings=tuple(warnings))
    train, dev, test = (pairs.take(~rows) for pairs, rows in zip(data.sides, same, strict=True))
    counts = dict(data.counts)
    for code, culture in enumerate(data.cultures):
        left_out = [
            int((rows & (pairs.culture_codes == code)).sum())
            for pairs, rows in zip(data.sides, same, strict=True)
        ]
        counts[culture] = _recounted(counts[culture], code, (train, dev, test), left_out)
        if any(left_out):
            warnings.append(
                f"{culture}: {left_out[0]} training, {left_out[1]} dev and {left_out[2]} test "
                "pairs are left out, for both sides become the same tokens (what differs is cut, "
                "dropped by the chat template, or unknown to the tokenizer)"
            )
    digest = hashlib.sha256(data.fingerprint.encode())
    for rows in same:
        digest.update(np.packbits(rows).tobytes())
    return replace(
        data,
        train=train,
        dev=dev,
        test=test,
        counts=counts,
        warnings=tuple(warnings),
        fingerprint=digest.hexdigest()[: len(data.fingerprint)],
    )


def _unknown_warnings(data: PreferenceData, tokens: Tokens, unknown_id: int | None) -> list[str]:
    """One line for each culture most of whose texts are mostly unknown to the tokenizer."""
    unknown = mostly_unknown(tokens, unknown_id)
    warnings = []
    for code, culture in enumerate(data.cultures):
        texts = np.unique(
            np.concatenate(
                [
                    side[pairs.culture_codes == code]
                    for pairs in data.sides
                    for side in (pairs.chosen, pairs.rejected)
                ]
            )
        )
        num_unknown = int(unknown[texts].sum())
        if 2 * num_unknown > len(texts):
            warnings.append(
                f"{culture}: {num_unknown} of {len(texts)} texts are mostly unknown tokens: the "
                "model's vocabulary is not of their language or script"
            )
    return warnings


def check_pairs_left(data: PreferenceData) -> None:
    """Raises: InputError naming each culture all of whose training or test pairs are left out."""
    problems, usable = [], []
    for culture in data.cultures:
        count = data.counts[culture]
        if count.train_pairs and count.test_pairs:
            usable.append(culture)
            continue
        problems.append(
            f"{culture}: {count.same_tokens_train} of "
            f"{count.same_tokens_train + count.train_pairs} training pairs and "
            f"{count.same_tokens_test} of {count.same_tokens_test + count.test_pairs} test pairs "
            "become the same tokens: must have others on both sides"
        )
    if problems:
        problems.append("a model with another vocabulary or a higher model.max_length may help")
        if usable:
            named = ", ".join(usable)
            problems.append(f"name in data.cultures only cultures that have both: {named}")
        raise InputError("cultures without pairs that the model can tell apart", problems)


def _recounted(
    count: CultureCounts, code: int, sides: tuple[Pairs, Pairs, Pairs], left_out: list[int]
) -> CultureCounts:
    """A culture's counts with `left_out` training, dev and test pairs gone from it."""
    mine = [pairs.take(pairs.culture_codes == code) for pairs in sides]
    users = [len(np.unique(pairs.cluster_codes)) for pairs in mine]
    in_train, _, in_test = (np.concatenate([pairs.chosen, pairs.rejected]) for pairs in mine)
    return replace(
        count,
        train_users=users[0],
        dev_users=users[1],
        test_users=users[2],
        train_pairs=len(mine[0]),
        dev_pairs=len(mine[1]),
        test_pairs=len(mine[2]),
        train_test_texts=len(np.intersect1d(in_train, in_test)),
        same_tokens_train=left_out[0],
        same_tokens_dev=left_out[1],
        same_tokens_test=left_out[2],
    )


def _chunks(sizes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of rows of about `_TOKENS_PER_CHUNK` tokens; none without rows."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = ends[start] - sizes[start]
        stop = int(np.searchsorted(ends, before + _TOKENS_PER_CHUNK, side="right"))
        stop = max(stop, start + 1)
        yield start, stop
        start = stop


def _places(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of rows that begin at `starts`, every token's place, one row after the other."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))


def _counts(flags: NDArray[np.bool_], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many flags are set in each row; rows may be empty."""
    sums = np.concatenate([[0], np.cumsum(flags, dtype=np.int64)])
    ends = np.cumsum(sizes)
    return np.asarray(sums[ends] - sums[ends - sizes])
