"""What a culture's data holds, and what in it could mislead."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scpo_ray.data.pairing import IndexPairs
from scpo_ray.data.table import FORMAT_MARKS, InteractionTable
from scpo_ray.records import CultureCounts, Pairs

MAX_FORMAT_DIFFERENCE = 0.05
MIN_FORMAT_PAIRS = 50
MAX_ALIKE = 5


@dataclass(frozen=True)
class Responses:
    """What is known of each of the table's R responses, and where an interaction's begin."""

    offsets: NDArray[np.int64]
    lengths: NDArray[np.int32]
    format_marks: NDArray[np.uint8]


def count_cultures(
    table: InteractionTable,
    rows: NDArray[np.int64],
    indices: IndexPairs,
    sides: tuple[Pairs, Pairs, Pairs],
) -> dict[str, CultureCounts]:
    """The counts of each culture of the pairs.

    Users are clusters (users, else questions, else interactions); `train_users`, `dev_users` and
    `test_users` those with a pair, so with a data fraction only what it keeps. Rows that were
    skipped before their culture was known stand under "".

    Args:
        rows: the selected cultures' interactions, `indices` what pairing found in them.
        sides: the pairs of train, dev and test.
    """
    responses = Responses(table.offsets, table.response_lengths, table.format_marks)
    counts = {}
    # The table reads its columns anew at each use.
    row_cultures, clusters = table.culture_codes[rows], table.cluster_codes
    for code, culture in enumerate(sides[0].cultures):
        mine = np.flatnonzero(row_cultures == table.cultures.index(culture))
        my_rows = rows[mine]
        my_pairs = [np.flatnonzero(pairs.culture_codes == code) for pairs in sides]
        train_users, dev_users, test_users = (
            len(np.unique(pairs.cluster_codes[numbers]))
            for pairs, numbers in zip(sides, my_pairs, strict=True)
        )
        longer_chosen_share, format_differences = _chosen_against_rejected(
            *_flat_responses(sides, my_pairs, table.offsets), responses
        )
        counts[culture] = CultureCounts(
            users=len(np.unique(clusters[my_rows])),
            train_users=train_users,
            dev_users=dev_users,
            test_users=test_users,
            interactions=len(my_rows),
            responses=int((table.offsets[my_rows + 1] - table.offsets[my_rows]).sum()),
            train_pairs=len(my_pairs[0]),
            dev_pairs=len(my_pairs[1]),
            test_pairs=len(my_pairs[2]),
            ties=int(indices.ties[mine].sum()),
            equal_texts=int(indices.equal_texts[mine].sum()),
            longer_chosen_share=longer_chosen_share,
            train_test_texts=_num_shared_texts(sides, my_pairs),
            format_differences=format_differences,
            skipped=table.skipped.get(culture, {}),
        )
    unplaced = table.skipped.get("")
    if unplaced:
        counts[""] = CultureCounts(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, None, 0, {}, unplaced)
    return counts


def find_warnings(counts: dict[str, CultureCounts], *, dev_size: float) -> list[str]:
    """One line for each thing in the data that could mislead; `dev_size` as it was set."""
    warnings = []
    for culture, count in counts.items():
        num_pairs = count.train_pairs + count.dev_pairs + count.test_pairs
        for mark, difference in count.format_differences.items():
            if abs(difference) > MAX_FORMAT_DIFFERENCE and num_pairs >= MIN_FORMAT_PAIRS:
                more, less = ("chosen", "rejected") if difference > 0 else ("rejected", "chosen")
                warnings.append(
                    f"{culture}: {more} responses have {mark} more often than {less} ones, by "
                    f"{100 * abs(difference):.1f} points: a model may learn the format"
                )
        if count.train_test_texts:
            warnings.append(
                f"{culture}: {count.train_test_texts} texts stand in both training and test pairs"
            )
        if count.test_users == 1:
            warnings.append(f"{culture}: one test user only, so its results have no interval")
        if dev_size and count.train_pairs and not count.dev_pairs:
            warnings.append(
                f"{culture}: {count.train_users} training users (or questions) are too few to hold "
                f"out {100 * dev_size:g} % for choices: nothing can be chosen for it "
                "(data.split.dev_size)"
            )
    return warnings


def find_name_warnings(alike: dict[str, list[list[str]]]) -> list[str]:
    """One line for each kind of names of which some look alike."""
    warnings = []
    for kind, groups in alike.items():
        if groups:
            named = "; ".join(", ".join(map(repr, group)) for group in groups[:MAX_ALIKE])
            more = f" (+{len(groups) - MAX_ALIKE} more)" if len(groups) > MAX_ALIKE else ""
            warnings.append(f"{kind} that look alike, and count apart: {named}{more}")
    return warnings


def _num_shared_texts(sides: tuple[Pairs, Pairs, Pairs], mine: Sequence[NDArray[np.int64]]) -> int:
    """Distinct texts that stand in both train and test pairs, of the pairs at `mine`."""
    train, test = (
        np.unique(np.concatenate([sides[i].chosen[mine[i]], sides[i].rejected[mine[i]]]))
        for i in (0, 2)
    )
    return int(np.isin(test, train, assume_unique=True).sum())


def _flat_responses(
    sides: Sequence[Pairs], mine: Sequence[NDArray[np.int64]], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of the pairs at `mine`, the chosen and the rejected response's number among all R."""
    chosen, rejected = [], []
    for pairs, rows in zip(sides, mine, strict=True):
        starts = offsets[pairs.interactions[rows]]
        chosen.append(starts + pairs.chosen_responses[rows])
        rejected.append(starts + pairs.rejected_responses[rows])
    return np.concatenate(chosen), np.concatenate(rejected)


def _chosen_against_rejected(
    chosen: NDArray[np.int64], rejected: NDArray[np.int64], responses: Responses
) -> tuple[float | None, dict[str, float]]:
    """Of pairs of responses: the share whose chosen one is longer; each format mark's share of
    the chosen minus that of the rejected."""
    if not len(chosen):
        return None, {}
    longer = float(np.mean(responses.lengths[chosen] > responses.lengths[rejected]))
    return longer, {
        mark: float(
            np.mean(responses.format_marks[chosen] >> bit & 1)
            - np.mean(responses.format_marks[rejected] >> bit & 1)
        )
        for bit, mark in enumerate(FORMAT_MARKS)
    }
