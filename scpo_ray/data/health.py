"""What a culture's data holds, and what in it could mislead."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scpo_ray.data.codes import present
from scpo_ray.data.table import FORMAT_MARKS, InteractionTable
from scpo_ray.records import CultureCounts, Pairs

MAX_FORMAT_DIFFERENCE = 0.05
MIN_FORMAT_PAIRS = 50
MAX_ALIKE = 5


# Pairs looked at in one go: the memory that this takes does not grow with the data.
_PAIRS_PER_CHUNK = 65_536


@dataclass(frozen=True)
class ChosenAgainstRejected:
    """Of C cultures: how many pairs there are, in how many the chosen response is longer, and in
    how many the chosen, the rejected one has each of M format marks."""

    num_pairs: NDArray[np.int64]
    num_longer: NDArray[np.int64]
    chosen_marks: NDArray[np.int64]
    rejected_marks: NDArray[np.int64]

    def longer_share(self, code: int) -> float | None:
        """None without pairs."""
        number = int(self.num_pairs[code])
        return int(self.num_longer[code]) / number if number else None

    def format_differences(self, code: int) -> dict[str, float]:
        """Each mark's share of the chosen minus that of the rejected; none without pairs."""
        number = int(self.num_pairs[code])
        marked = zip(FORMAT_MARKS, self.chosen_marks[code], self.rejected_marks[code], strict=True)
        return {mark: int(c) / number - int(r) / number for mark, c, r in marked if number}


def count_cultures(
    table: InteractionTable,
    rows: NDArray[np.int64],
    ties: NDArray[np.int32],
    equal_texts: NDArray[np.int32],
    sides: tuple[Pairs, Pairs, Pairs],
) -> dict[str, CultureCounts]:
    """The counts of each culture of the pairs.

    Users are clusters (users, else questions, else interactions); `train_users`, `dev_users` and
    `test_users` those with a pair, so with a data fraction only what it keeps. Rows that were
    skipped before their culture was known stand under "".

    Args:
        rows: the selected cultures' interactions.
        ties, equal_texts: (len(rows),) what pairing found in them.
        sides: the pairs of train, dev and test.
    """
    compared = compare_responses(table, sides)
    counts = {}
    # The table reads its columns anew at each use.
    row_cultures, clusters = table.culture_codes[rows], table.cluster_codes
    for code, culture in enumerate(sides[0].cultures):
        mine = np.flatnonzero(row_cultures == table.cultures.index(culture))
        my_rows = rows[mine]
        my_pairs = [pairs.culture_codes == code for pairs in sides]
        train_users, dev_users, test_users = (
            int(present(pairs.cluster_codes[is_mine]).sum())
            for pairs, is_mine in zip(sides, my_pairs, strict=True)
        )
        counts[culture] = CultureCounts(
            users=int(present(clusters[my_rows]).sum()),
            train_users=train_users,
            dev_users=dev_users,
            test_users=test_users,
            interactions=len(my_rows),
            responses=int((table.offsets[my_rows + 1] - table.offsets[my_rows]).sum()),
            train_pairs=int(my_pairs[0].sum()),
            dev_pairs=int(my_pairs[1].sum()),
            test_pairs=int(my_pairs[2].sum()),
            ties=int(ties[mine].sum()),
            equal_texts=int(equal_texts[mine].sum()),
            longer_chosen_share=compared.longer_share(code),
            train_test_texts=_num_shared_texts(sides, my_pairs),
            format_differences=compared.format_differences(code),
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


def _num_shared_texts(sides: tuple[Pairs, Pairs, Pairs], mine: Sequence[NDArray[np.bool_]]) -> int:
    """Distinct texts that stand in both train and test pairs, of the pairs where `mine`."""
    train, test = (present(sides[i].chosen[mine[i]], sides[i].rejected[mine[i]]) for i in (0, 2))
    size = min(len(train), len(test))
    return int((train[:size] & test[:size]).sum())


def compare_responses(table: InteractionTable, sides: Sequence[Pairs]) -> ChosenAgainstRejected:
    """Chosen beside rejected responses, of all pairs of all cultures in one go."""
    num_cultures, num_marks = len(sides[0].cultures), len(FORMAT_MARKS)
    num_longer = np.zeros(num_cultures, dtype=np.int64)
    found = np.zeros((2, num_cultures, 1 << num_marks), dtype=np.int64)
    lengths, marks = table.response_lengths, table.format_marks
    for pairs in sides:
        for start in range(0, len(pairs), _PAIRS_PER_CHUNK):
            part = slice(start, start + _PAIRS_PER_CHUNK)
            codes = pairs.culture_codes[part]
            begin = table.offsets[pairs.interactions[part]]
            places = begin + pairs.chosen_responses[part], begin + pairs.rejected_responses[part]
            is_longer = lengths[places[0]] > lengths[places[1]]
            num_longer += np.bincount(codes[is_longer], minlength=num_cultures)
            for which, place in enumerate(places):
                cells = codes.astype(np.int64) << num_marks | marks[place]
                counts = np.bincount(cells, minlength=found[which].size)
                found[which] += counts.reshape(num_cultures, -1)
    # Which of the marks each of their combinations has.
    has = np.arange(1 << num_marks)[:, None] >> np.arange(num_marks) & 1
    chosen_marks, rejected_marks = found @ has
    return ChosenAgainstRejected(found[0].sum(axis=1), num_longer, chosen_marks, rejected_marks)
