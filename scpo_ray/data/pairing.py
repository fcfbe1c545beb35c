"""Which responses of an interaction are preferred to which, in index pairs. Pure."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

CHUNK_ROWS = 65_536
MAX_PAIRS = 500_000_000


@dataclass(frozen=True)
class IndexPairs:
    """P pairs in the order of `rows`, then of the two responses, and what made no pair.

    Attributes:
        interactions: (P,) int64, row of the interaction in its table.
        chosen_responses, rejected_responses: (P,) int16, number within the interaction.
        ties, equal_texts: (len(rows),) int32, response pairs with scores no further apart than
            the smallest gap, or equal in float32; with equal texts; one with both is in both.
    """

    interactions: NDArray[np.int64]
    chosen_responses: NDArray[np.int16]
    rejected_responses: NDArray[np.int16]
    ties: NDArray[np.int32]
    equal_texts: NDArray[np.int32]


def make_pairs(
    offsets: NDArray[np.int64],
    human_scores: NDArray[np.float64],
    text_hashes: NDArray[np.uint64],
    rows: NDArray[np.int64],
    *,
    min_gap: float,
) -> IndexPairs:
    """Every (i, j) of an interaction with score_i > score_j + min_gap and different texts.

    Scores that are one number in float32, as `Pairs` keeps them, are equal and make no pair: so a
    pair's two scores differ wherever they are read.

    Args:
        offsets: (N + 1,); interaction n has the responses offsets[n] to offsets[n + 1].
        human_scores, text_hashes: (R,), R = offsets[N]; scores without NaN.
        rows: the interactions to pair.
        min_gap: in units of the scores, 0 or more; a gap that only rounding lifts above it is one
            at it, and makes no pair.

    Raises: ValueError if the responses make more than `MAX_PAIRS`.
    Source: docs/method.md, "pairs".
    """
    sizes = offsets[rows + 1] - offsets[rows]
    num_pairs = int((sizes * (sizes - 1) // 2).sum())
    if num_pairs > MAX_PAIRS:
        raise ValueError(f"{num_pairs} response pairs: must be at most {MAX_PAIRS}")
    chunks = [
        _pair_chunk(offsets, human_scores, text_hashes, rows[start : start + CHUNK_ROWS], min_gap)
        for start in range(0, max(len(rows), 1), CHUNK_ROWS)
    ]
    return IndexPairs(
        interactions=np.concatenate([c.interactions for c in chunks]),
        chosen_responses=np.concatenate([c.chosen_responses for c in chunks]),
        rejected_responses=np.concatenate([c.rejected_responses for c in chunks]),
        ties=np.concatenate([c.ties for c in chunks]),
        equal_texts=np.concatenate([c.equal_texts for c in chunks]),
    )


def _pair_chunk(
    offsets: NDArray[np.int64],
    human_scores: NDArray[np.float64],
    text_hashes: NDArray[np.uint64],
    rows: NDArray[np.int64],
    min_gap: float,
) -> IndexPairs:
    sizes = offsets[rows + 1] - offsets[rows]
    ties = np.zeros(len(rows), dtype=np.int32)
    equal_texts = np.zeros(len(rows), dtype=np.int32)
    members, chosen, rejected = [], [], []
    # Interactions of one size are one matrix, so the loop runs over sizes, not interactions.
    for size in np.unique(sizes):
        same = np.flatnonzero(sizes == size)
        flat = offsets[rows[same]][:, None] + np.arange(size)
        scores, hashes = human_scores[flat], text_hashes[flat]
        for i, j in combinations(range(int(size)), 2):
            tied = _are_tied(scores[:, i], scores[:, j], min_gap)
            equal = hashes[:, i] == hashes[:, j]
            ties[same] += tied
            equal_texts[same] += equal
            kept = np.flatnonzero(~(tied | equal))
            first_wins = scores[kept, i] > scores[kept, j]
            members.append(same[kept])
            chosen.append(np.where(first_wins, i, j).astype(np.int16))
            rejected.append(np.where(first_wins, j, i).astype(np.int16))
    if not members:
        none = np.zeros(0, dtype=np.int16)
        return IndexPairs(none.astype(np.int64), none, none, ties, equal_texts)
    member = np.concatenate(members)
    # Stable: within an interaction the pairs stay in the order of `combinations`.
    order = np.argsort(member, kind="stable")
    return IndexPairs(
        interactions=rows[member[order]],
        chosen_responses=np.concatenate(chosen)[order],
        rejected_responses=np.concatenate(rejected)[order],
        ties=ties,
        equal_texts=equal_texts,
    )


def _are_tied(
    first: NDArray[np.float64], second: NDArray[np.float64], min_gap: float
) -> NDArray[np.bool_]:
    kept_alike = np.equal(first.astype(np.float32), second.astype(np.float32))
    if min_gap == 0:
        return kept_alike
    return kept_alike | np.less_equal(np.abs(first - second), min_gap * (1 + 1e-9))
