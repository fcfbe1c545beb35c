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
    cluster_codes = table.cluster_codes
    counts = {}
    for code, culture in enumerate(sides[0].cultures):
        table_code = table.cultures.index(culture)
        mine = table.culture_codes[rows] == table_code
        my_rows = rows[mine]
        my_sides = [pairs.take(pairs.culture_codes == code) for pairs in sides]
        my_train, my_dev, my_test = my_sides
        counts[culture] = CultureCounts(
            users=len(np.unique(cluster_codes[my_rows])),
            train_users=len(np.unique(my_train.cluster_codes)),
            dev_users=len(np.unique(my_dev.cluster_codes)),
            test_users=len(np.unique(my_test.cluster_codes)),
            interactions=len(my_rows),
            responses=int((table.offsets[my_rows + 1] - table.offsets[my_rows]).sum()),
            train_pairs=len(my_train),
            dev_pairs=len(my_dev),
            test_pairs=len(my_test),
            ties=int(indices.ties[mine].sum()),
            equal_texts=int(indices.equal_texts[mine].sum()),
            longer_chosen_share=_longer_chosen_share(my_sides, responses),
            train_test_texts=len(np.intersect1d(_texts(my_train), _texts(my_test))),
            format_differences=_format_differences(my_sides, responses),
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


def _texts(pairs: Pairs) -> NDArray[np.int64]:
    return np.unique(np.concatenate([pairs.chosen, pairs.rejected]))


def _flat_responses(
    sides: Sequence[Pairs], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of all pairs, the chosen and the rejected response's number among all R."""
    starts = offsets[np.concatenate([pairs.interactions for pairs in sides])]
    return (
        starts + np.concatenate([pairs.chosen_responses for pairs in sides]),
        starts + np.concatenate([pairs.rejected_responses for pairs in sides]),
    )


def _longer_chosen_share(sides: Sequence[Pairs], responses: Responses) -> float | None:
    chosen, rejected = _flat_responses(sides, responses.offsets)
    if not len(chosen):
        return None
    return float(np.mean(responses.lengths[chosen] > responses.lengths[rejected]))


def _format_differences(sides: Sequence[Pairs], responses: Responses) -> dict[str, float]:
    chosen, rejected = _flat_responses(sides, responses.offsets)
    if not len(chosen):
        return {}
    return {
        mark: float(
            np.mean(responses.format_marks[chosen] >> bit & 1)
            - np.mean(responses.format_marks[rejected] >> bit & 1)
        )
        for bit, mark in enumerate(FORMAT_MARKS)
    }
