"""A data section of the config into pairs: read once, split, paired, counted."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scpo_ray.data.codes import present
from scpo_ray.data.health import count_cultures, find_name_warnings, find_warnings
from scpo_ray.data.pairing import IndexPairs, make_pairs
from scpo_ray.data.rows import InteractionSource, Notes
from scpo_ray.data.splits import (
    assign_folds,
    fold_within_cultures,
    hold_out_dev,
    keep_fraction,
    split_users,
)
from scpo_ray.data.table import (
    FORMAT_NUMBER,
    SPLIT_LABELS,
    CorruptTableError,
    InteractionTable,
    TableIds,
    TableTexts,
    open_table,
    write_table,
)
from scpo_ray.records import InputError, Opinions, Pairs, PreferenceData
from scpo_ray.settings.data import SOURCES, DataSection, SplitConfig
from scpo_ray.settings.files import check_culture_names
from scpo_ray.storage.disk import file_digest

log = logging.getLogger(__name__)

TRAIN, DEV, TEST, UNUSED = 0, 1, 2, -1

# Pairs hashed in one go: the memory that this takes does not grow with the data.
_PAIRS_PER_CHUNK = 65_536


def load_preferences(config: DataSection, cache_dir: Path) -> PreferenceData:
    """The pairs of the configured cultures, split into train, dev and test, with their texts.

    The interactions of all cultures are kept in one file below `cache_dir`, named by the contents
    they were read from; with it in place nothing is parsed again.

    Raises: InputError naming the bad rows, an unknown culture, or each culture without training
        or test pairs.
    """
    data = read_preferences(config, cache_dir)
    if data.refusals:
        raise InputError("the data cannot be trained on", data.refusals)
    return data


def read_preferences(config: DataSection, cache_dir: Path) -> PreferenceData:
    """As `load_preferences`, but what makes training on the data impossible is told, not raised.

    Unknown cultures are left out; what cannot be split is on the training side.

    Raises: InputError naming the bad rows, or that no culture is known.
    """
    table = _cached_table(config, cache_dir)
    cultures, unknown = _cultures(table, config)
    culture_codes = np.full(len(table.cultures), -1, dtype=np.int32)
    culture_codes[[table.cultures.index(culture) for culture in cultures]] = range(len(cultures))
    sides, no_split = _sides_or_why_not(table, config)

    rows = np.flatnonzero(culture_codes[table.culture_codes] >= 0)
    indices = _paired(table, rows, config.min_score_gap)
    # An option in no pair has a share all the same.
    opinion_rows = rows[sides[rows] != UNUSED] if config.holds_opinions else None
    train, dev, test, texts, opinions = _numbered(
        table, indices, sides, opinion_rows, cultures, culture_codes
    )
    refusals = [*unknown, *(no_split or _one_sided(table, sides, train, test, config.split))]

    ties, equal_texts = indices.ties, indices.equal_texts
    del indices, sides
    counts = count_cultures(table, rows, ties, equal_texts, (train, dev, test))
    warnings = [
        *find_name_warnings(table.alike),
        *find_warnings(counts, dev_size=config.split.dev_size),
    ]
    for warning in warnings:
        log.warning("%s", warning)
    log.info(
        "%d cultures: %d interactions, %d training, %d dev and %d test pairs, %d texts",
        len(cultures),
        len(rows),
        len(train),
        len(dev),
        len(test),
        len(texts),
    )
    return PreferenceData(
        train=train,
        dev=dev,
        test=test,
        texts=texts,
        interaction_ids=TableIds(table),
        cultures=cultures,
        counts=counts,
        warnings=tuple(warnings),
        fingerprint=_fingerprint(
            (train, dev, test), texts, opinions if config.holds_opinions else None
        ),
        opinions=opinions,
        scores_are_votes=config.scores_are_votes,
        refusals=tuple(refusals),
    )


def _cultures(table: InteractionTable, config: DataSection) -> tuple[tuple[str, ...], list[str]]:
    """The configured cultures that the data has, and a line for each that it has not."""
    if config.cultures is None:
        return table.cultures, []
    known = tuple(culture for culture in config.cultures if culture in table.cultures)
    try:
        check_culture_names(config.cultures, table.cultures, "data.cultures")
    except InputError as error:
        if not known:
            raise
        return known, list(error.problems)
    return known, []


def _cached_table(config: DataSection, cache_dir: Path) -> InteractionTable:
    source = SOURCES[config.source]
    opened: InteractionSource = source.open(config)
    key = _cache_key(opened, [FORMAT_NUMBER, source.name, source.version])
    path = cache_dir / f"interactions-{key}.arrow"
    if path.exists():
        try:
            return open_table(path)
        except CorruptTableError as error:
            log.warning("the cached interactions are damaged and read anew: %s", error)
    notes = Notes()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_table(opened.read(notes), path, notes)
    except OSError as error:
        raise InputError(f"{cache_dir}: the interactions cannot be written", [str(error)]) from None
    table = open_table(path)
    log.info("read %d interactions of %d cultures", len(table), len(table.cultures))
    return table


def _cache_key(source: InteractionSource, format: list[Any]) -> str:
    contents = []
    for file in source.files:
        try:
            contents.append(file_digest(file))
        except OSError as error:
            raise InputError(f"{file}: cannot be read", [str(error)]) from None
    document = json.dumps([*format, source.settings, contents], sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()[:20]


def _sides(table: InteractionTable, config: DataSection) -> NDArray[np.int8]:
    """(N,) int8 of every interaction, whatever its culture: TRAIN, DEV, TEST or UNUSED."""
    split = config.split
    if split.by == "source":
        unit_codes, held_out = table.cluster_codes, _labelled_test(table, split)
    else:
        unit_codes, held_out = _drawn_test(table, split)
    sides = np.where(held_out, TEST, TRAIN).astype(np.int8)
    if split.num_folds is not None and split.dev_size:
        fold = (split.fold + 1) % split.num_folds
        sides[_drawn_test(table, split.model_copy(update={"fold": fold}))[1]] = DEV
    else:
        rest = np.flatnonzero(~held_out)
        codes = unit_codes[rest], table.culture_codes[rest]
        sides[rest[hold_out_dev(*codes, split.dev_size, split.seed)]] = DEV
    if config.data_fraction < 1:
        train = np.flatnonzero(sides == TRAIN)
        kept = keep_fraction(
            unit_codes[train], table.culture_codes[train], config.data_fraction, split.seed
        )
        sides[train[~kept]] = UNUSED
    return sides


def _sides_or_why_not(
    table: InteractionTable, config: DataSection
) -> tuple[NDArray[np.int8], list[str]]:
    """As `_sides`; all TRAIN, and a line that says why, where the data cannot be split."""
    try:
        return _sides(table, config), []
    except InputError as error:
        why = ": ".join([error.title, *error.problems])
        return np.full(len(table), TRAIN, dtype=np.int8), [why]


def _paired(table: InteractionTable, rows: NDArray[np.int64], min_gap: float) -> IndexPairs:
    try:
        return make_pairs(
            table.offsets, table.human_scores, table.text_hashes, rows, min_gap=min_gap
        )
    except ValueError as error:
        raise InputError("the data cannot be paired", [str(error)]) from None


def _labelled_test(table: InteractionTable, split: SplitConfig) -> NDArray[np.bool_]:
    if split.num_folds is not None:
        raise InputError("data.split: num_folds needs by: user or question, got source")
    if (table.split_labels < 0).any():
        raise InputError('data.split.by = source: this data does not say which part is "test"')
    return np.equal(table.split_labels, SPLIT_LABELS.index("test"))


def _drawn_test(
    table: InteractionTable, split: SplitConfig
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(N,) the unit (user or question) of each interaction, and whether it is held out."""
    by_user = split.by == "user"
    unit_codes = table.user_codes if by_user else table.question_codes
    num_units = len(table.users if by_user else table.questions)
    if (unit_codes < 0).any():
        raise InputError(f"data.split.by = {split.by}: this data names no {split.by}s")
    if num_units < 2:
        raise InputError(f"data.split: one {split.by} only, cannot be split into train and test")
    if split.num_folds is None:
        try:
            return unit_codes, split_users(num_units, split.test_size, split.seed)[unit_codes]
        except ValueError as error:
            raise InputError("data.split", [str(error)]) from None
    if not by_user:
        folds = assign_folds(num_units, split.num_folds, split.seed)
        return unit_codes, (folds == split.fold)[unit_codes]
    held_out = fold_within_cultures(
        unit_codes, table.culture_codes, split.num_folds, split.fold, split.seed
    )
    return unit_codes, held_out


def _numbered(
    table: InteractionTable,
    indices: IndexPairs,
    sides: NDArray[np.int8],
    opinion_rows: NDArray[np.int64] | None,
    cultures: tuple[str, ...],
    culture_codes: NDArray[np.int32],
) -> tuple[Pairs, Pairs, Pairs, TableTexts, Opinions | None]:
    """The pairs of train, dev and test, the texts that they number from 0, and the opinions of
    `opinion_rows`, whose responses are all numbered, whether in a pair or not."""
    used = np.flatnonzero(sides[indices.interactions] != UNUSED)
    is_used = np.zeros(int(table.offsets[-1]), dtype=np.bool_)
    starts = table.offsets[indices.interactions[used]]
    for responses in (indices.chosen_responses, indices.rejected_responses):
        is_used[starts + responses[used]] = True
    del used, starts
    if opinion_rows is not None:
        is_used[_response_places(table, opinion_rows)] = True
    positions, numbers = _number_texts(table.text_hashes, np.flatnonzero(is_used))
    del is_used
    scores = table.human_scores.astype(np.float32)
    train, dev, test = (
        _pairs(table, indices, sides == side, numbers, scores, cultures, culture_codes)
        for side in (TRAIN, DEV, TEST)
    )
    del scores
    opinions = None
    if opinion_rows is not None:
        opinions = _opinions(table, opinion_rows, numbers, sides, cultures, culture_codes)
    return train, dev, test, TableTexts(table, positions), opinions


def _number_texts(
    text_hashes: NDArray[np.uint64], places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(T,) the first of `places` where each distinct text stands; (R,) the number of each
    response's text, -1 where it is at none of the places.

    Texts are numbered by hash, so the numbering depends on the texts alone. As `np.unique` does
    it, in half the memory.
    """
    hashes = text_hashes[places]
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    is_first = np.ones(len(hashes), dtype=np.bool_)
    np.not_equal(hashes[1:], hashes[:-1], out=is_first[1:])
    del hashes
    places = places[order]
    del order
    numbers = np.full(len(text_hashes), -1, dtype=np.int32)
    numbers[places] = np.cumsum(is_first, dtype=np.int32) - 1
    return places[is_first], numbers


def _pairs(
    table: InteractionTable,
    indices: IndexPairs,
    is_mine: NDArray[np.bool_],
    numbers: NDArray[np.int32],
    scores: NDArray[np.float32],
    cultures: tuple[str, ...],
    culture_codes: NDArray[np.int32],
) -> Pairs:
    """The pairs of the interactions where `is_mine`; `numbers` and `scores`: (R,), of the
    responses."""
    mine = np.flatnonzero(is_mine[indices.interactions])
    interactions = indices.interactions[mine]
    chosen_responses = indices.chosen_responses[mine]
    rejected_responses = indices.rejected_responses[mine]
    del mine
    starts = table.offsets[interactions]
    chosen_places, rejected_places = starts + chosen_responses, starts + rejected_responses
    return Pairs(
        interactions=interactions,
        chosen=numbers[chosen_places].astype(np.int64),
        rejected=numbers[rejected_places].astype(np.int64),
        chosen_responses=chosen_responses,
        rejected_responses=rejected_responses,
        chosen_scores=scores[chosen_places],
        rejected_scores=scores[rejected_places],
        culture_codes=culture_codes[table.culture_codes[interactions]],
        cluster_codes=table.cluster_codes[interactions],
        cultures=cultures,
    )


def _response_places(table: InteractionTable, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of the interactions at `rows`, each response's number among all R, in order."""
    sizes = table.offsets[rows + 1] - table.offsets[rows]
    before = np.cumsum(sizes) - sizes
    return np.repeat(table.offsets[rows] - before, sizes) + np.arange(int(sizes.sum()))


def _opinions(
    table: InteractionTable,
    rows: NDArray[np.int64],
    numbers: NDArray[np.int32],
    sides: NDArray[np.int8],
    cultures: tuple[str, ...],
    culture_codes: NDArray[np.int32],
) -> Opinions:
    """The distributions of the interactions at `rows`."""
    places = _response_places(table, rows)
    sizes = table.offsets[rows + 1] - table.offsets[rows]
    # The orders of one question follow each other, the one with the source's first option ahead.
    is_first_order = table.option_numbers[table.offsets[rows]] == 0
    return Opinions(
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        texts=numbers[places].astype(np.int64),
        shares=table.human_scores[places],
        option_numbers=table.option_numbers[places],
        refusals=table.refusals[places],
        culture_codes=culture_codes[table.culture_codes[rows]],
        question_codes=table.question_codes[rows],
        groups=np.cumsum(is_first_order) - 1,
        is_train=sides[rows] == TRAIN,
        is_test=sides[rows] == TEST,
        cultures=cultures,
    )


def _one_sided(
    table: InteractionTable,
    sides: NDArray[np.int8],
    train: Pairs,
    test: Pairs,
    split: SplitConfig,
) -> list[str]:
    """One line for each culture without training or test pairs, then what to do."""
    decides = f"dev_size = {split.dev_size:g}"
    if split.num_folds is not None:
        decides = f"num_folds = {split.num_folds}"
    problems, usable = [], []
    for code, culture in enumerate(train.cultures):
        num_train = int((train.culture_codes == code).sum())
        num_test = int((test.culture_codes == code).sum())
        if num_train and num_test:
            usable.append(culture)
            continue
        mine = table.culture_codes == table.cultures.index(culture)
        users = [
            len(np.unique(table.cluster_codes[mine & (sides == side)]))
            for side in (TRAIN, DEV, TEST)
        ]
        on_dev = f"; data.split.{decides} takes {users[1]} for dev"
        problems.append(
            f"{culture}: {num_train} training pairs of {users[0]} users (or questions), "
            f"{num_test} test pairs of {users[2]}: must have both"
            + (on_dev if users[1] and not users[0] else "")
        )
    if problems and usable:
        named = ", ".join(usable)
        problems.append(f"name in data.cultures only cultures that have both: {named}")
    return problems


def _fingerprint(sides: Sequence[Pairs], texts: TableTexts, opinions: Opinions | None) -> str:
    digest = hashlib.sha256(json.dumps(sides[0].cultures).encode())
    for pairs in sides:
        # A cluster's place among those of the side, however many there are besides.
        clusters = np.cumsum(present(pairs.cluster_codes)) - 1
        for column in (pairs.chosen, pairs.rejected, pairs.culture_codes, None):
            digest.update(len(pairs).to_bytes(8, "little"))
            for start in range(0, len(pairs), _PAIRS_PER_CHUNK):
                part = slice(start, start + _PAIRS_PER_CHUNK)
                numbers = clusters[pairs.cluster_codes[part]] if column is None else column[part]
                digest.update(numbers.astype("<i8", copy=False).data)
        for scores in (pairs.chosen_scores, pairs.rejected_scores):
            digest.update(scores.astype("<f4", copy=False).data)
    digest.update(texts.hashes.astype("<u8", copy=False).data)
    if opinions is not None:
        digest.update(opinions.shares.astype("<f8").tobytes())
        flags = opinions.is_train, opinions.is_test
        for codes in (opinions.texts, opinions.culture_codes, *flags):
            digest.update(codes.astype("<i8").tobytes())
    return digest.hexdigest()[:16]
