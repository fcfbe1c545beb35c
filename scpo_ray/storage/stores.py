"""What runs share on disk, by content: rendered texts, the global model's rewards and features,
what is learned alike for several of them.

Each entry is a folder with a manifest: one that is not what was written counts as not there, and
is made anew."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from scpo_ray.records import InputError, Tokens
from scpo_ray.storage.disk import (
    LEFT_BEHIND_S,
    clear_leftovers,
    disk_errors,
    folder_fault,
    remove,
    whole_folder,
)

log = logging.getLogger(__name__)

_TEXTS_PER_PART = 16_384
_TEXTS_PER_CHUNK = 2_000

Encode = Callable[[Sequence[NDArray[np.int64]]], Iterable[Tokens]]
"""From groups of (n,) texts, by their number, to the tokens of each group, in order."""


class TokenStore:
    """Rendered texts on disk, memory-mapped when read.

    Per renderer (`key`) a folder, with a folder for each list of texts that was asked for. A text
    that stands in any of them is copied from there, and not rendered again.

    While a list is made whose new texts are many, its parts lie beside it, each a list of its own:
    after a kill they are read and the rest is rendered.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str, hashes: NDArray[np.uint64]) -> Tokens | None:
        """The tokens of exactly these T texts in this order; None where no such list is whole."""
        path = self._path(key, hashes)
        return _opened_tokens(path) if _is_whole(path, "tokens", "rendering") else None

    def get_or_encode(self, key: str, hashes: NDArray[np.uint64], encode: Encode) -> Tokens:
        """As `get`; where there are none, `encode` is asked for the texts that no list has.

        Of several processes that ask for the same list at once, one makes it and the others wait.
        """
        path = self._path(key, hashes)
        tokens = self.get(key, hashes)
        if tokens is not None:
            return tokens
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_name(f".{path.name}.lock")):
                _clear_abandoned(path.parent, besides=_parts_of(path))
                tokens = self.get(key, hashes)
                if tokens is None:
                    remove(path)
                    self._write(path, hashes, encode)
                    tokens = self.get(key, hashes)
        if tokens is None:
            raise InputError(f"{path}: what was just written cannot be read back")
        return tokens

    def _path(self, key: str, hashes: NDArray[np.uint64]) -> Path:
        return self.folder / key / _name(hashes)

    def _write(self, path: Path, hashes: NDArray[np.uint64], encode: Encode) -> None:
        parts = _parts_of(path)
        known = _known_tokens(path, hashes)
        new = np.flatnonzero(known.number < 0)
        log.info("tokens: %d of %d texts known", len(hashes) - len(new), len(hashes))
        if len(new) > _TEXTS_PER_PART:
            _write_parts(parts, hashes, new, encode)
            known = _known_tokens(path, hashes)
        texts = np.arange(len(hashes))
        _write_list(path, hashes, (known.tokens_of(chunk, encode) for chunk in _chunks(texts)))
        remove(parts)


def _write_parts(
    parts: Path, hashes: NDArray[np.uint64], new: NDArray[np.int64], encode: Encode
) -> None:
    """Renders the new texts, each part of them whole on the disk before the next."""
    starts = range(0, len(new), _TEXTS_PER_PART)
    portions = [new[start : start + _TEXTS_PER_PART] for start in starts]
    chunks = [chunk for portion in portions for chunk in _chunks(portion)]
    bar = tqdm(encode(chunks), "tokenize", len(chunks), unit="chunk", disable=None, leave=False)
    encoded = iter(bar)
    for portion in portions:
        mine = hashes[portion]
        _write_list(parts / _name(mine), mine, islice(encoded, len(_chunks(portion))))


def _write_list(path: Path, hashes: NDArray[np.uint64], chunks: Iterable[Tokens]) -> None:
    """A folder with the tokens of the texts with these hashes."""
    lengths, truncated = [np.zeros(0, np.int64)], [np.zeros(0, np.bool_)]
    with whole_folder(path) as part:
        ids_path, types_path = part / "input_ids.bin", part / "token_type_ids.bin"
        with ids_path.open("wb") as ids_file, types_path.open("wb") as types_file:
            for chunk in chunks:
                chunk.input_ids.tofile(ids_file)
                if chunk.token_type_ids is not None:
                    chunk.token_type_ids.tofile(types_file)
                lengths.append(chunk.lengths)
                truncated.append(chunk.truncated)
        if types_path.stat().st_size == 0:
            types_path.unlink()
        np.save(part / "hashes.npy", hashes)
        np.save(part / "offsets.npy", _offsets(np.concatenate(lengths)))
        np.save(part / "truncated.npy", np.concatenate(truncated))


def _chunks(texts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    starts = range(0, len(texts), _TEXTS_PER_CHUNK)
    return [texts[start : start + _TEXTS_PER_CHUNK] for start in starts]


def _name(hashes: NDArray[np.uint64]) -> str:
    """Of the list of the texts with these hashes."""
    return hashlib.sha256(hashes.tobytes()).hexdigest()[:32]


def _parts_of(path: Path) -> Path:
    """Where a list's parts lie until it is whole."""
    return path.with_name(f".{path.name}.parts")


@dataclass(frozen=True)
class _KnownTokens:
    """Where T texts' tokens stand already: `lists[number[t]]` in row `row[t]`, -1 for nowhere."""

    lists: list[Tokens]
    number: NDArray[np.int32]
    row: NDArray[np.int64]

    def tokens_of(self, texts: NDArray[np.int64], encode: Encode) -> Tokens:
        """The tokens of some of the texts, in ascending order."""
        new = texts[self.number[texts] < 0]
        found = [(new, tokens) for tokens in encode([new])] if len(new) else []
        for number in np.unique(self.number[texts]):
            if number >= 0:
                these = texts[self.number[texts] == number]
                found.append((these, _taken(self.lists[number], self.row[these])))
        order = np.argsort(np.concatenate([these for these, _ in found]))
        return _taken(_joined([tokens for _, tokens in found]), order)


def _known_tokens(path: Path, hashes: NDArray[np.uint64]) -> _KnownTokens:
    """What its own parts and a renderer's other lists have of the texts of the list at `path`."""
    wanted = _Wanted.of(hashes)
    known = _KnownTokens([], np.full(len(hashes), -1, np.int32), np.zeros(len(hashes), np.int64))
    for folder in (_parts_of(path), path.parent):
        for place in sorted(folder.glob("[!.]*")):
            if (known.number >= 0).all():
                break
            if _is_whole(place, "tokens", "rendering"):
                texts, rows = wanted.found_in(np.load(place / "hashes.npy"))
                if len(texts):
                    known.number[texts], known.row[texts] = len(known.lists), rows
                    known.lists.append(_opened_tokens(place))
    return known


def _opened_tokens(path: Path) -> Tokens:
    offsets = np.load(path / "offsets.npy")
    types_path = path / "token_type_ids.bin"
    input_ids, types = np.empty(0, np.int32), None
    if offsets[-1]:  # What is empty cannot be mapped.
        input_ids = np.memmap(path / "input_ids.bin", dtype=np.int32, mode="r")
        types = np.memmap(types_path, dtype=np.int8, mode="r") if types_path.is_file() else None
    return Tokens(input_ids, types, offsets, np.load(path / "truncated.npy"))


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _taken(tokens: Tokens, rows: NDArray[np.int64]) -> Tokens:
    """The texts at `rows`, in that order."""
    lengths = tokens.lengths[rows]
    offsets = _offsets(lengths)
    places = np.repeat(tokens.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
    types = None if tokens.token_type_ids is None else tokens.token_type_ids[places]
    return Tokens(tokens.input_ids[places], types, offsets, tokens.truncated[rows])


def _joined(several: Sequence[Tokens]) -> Tokens:
    types = [tokens.token_type_ids for tokens in several if tokens.token_type_ids is not None]
    return Tokens(
        np.concatenate([tokens.input_ids for tokens in several]),
        np.concatenate(types) if types else None,
        _offsets(np.concatenate([tokens.lengths for tokens in several])),
        np.concatenate([tokens.truncated for tokens in several]),
    )


class ScoreStore:
    """What a model says of texts, on disk: per model (`key`) a folder of numbered parts.

    A text's entry is its reward, or the D features that a reward is made from; then what is (T,)
    below is (T, D). An entry once kept stays: of two processes that compute a text at once, the
    first to come is believed, whoever asks.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / key

    def missing(self, key: str, hashes: NDArray[np.uint64]) -> list[NDArray[np.int64]]:
        """Which of T texts have no entry, in portions to compute: each a part to be."""
        is_known = np.zeros(len(hashes), np.bool_)
        for texts, _, _ in self._found(key, hashes):
            is_known[texts] = True
        missing = np.flatnonzero(~is_known)
        starts = range(0, len(missing), _TEXTS_PER_PART)
        return [missing[start : start + _TEXTS_PER_PART] for start in starts]

    def get(self, key: str, hashes: NDArray[np.uint64]) -> NDArray[np.float32]:
        """(T,) rewards of the texts with these hashes. Raises: InputError if some are missing."""
        values = np.empty(0, np.float32)
        num_found = 0
        for texts, part, rows in self._found(key, hashes):
            stored = np.load(part / "values.npy", mmap_mode="r")
            if not num_found:
                values = np.empty((len(hashes), *stored.shape[1:]), np.float32)
            values[texts] = stored[rows]
            num_found += len(texts)
        if num_found < len(hashes):
            missing = len(hashes) - num_found
            raise InputError(f"{self.path(key)}: {missing} of {len(hashes)} texts cannot be read")
        return values

    def put(self, key: str, hashes: NDArray[np.uint64], values: NDArray[np.float32]) -> None:
        """Keeps the (n,) rewards of n texts as a part; those that have one keep the one they have.

        Parts that are not whole, and what killed writers left, are removed.
        """
        folder = self.path(key)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                clear_leftovers(folder, ".part-*")
                for path in self._parts(key):
                    if folder_fault(path) is not None:
                        remove(path)
                is_new = np.ones(len(hashes), np.bool_)
                for texts, _, _ in self._found(key, hashes):
                    is_new[texts] = False
                if not is_new.any():
                    return
                numbers = [int(path.name.removeprefix("part-")) for path in self._parts(key)]
                number = 1 + max(numbers, default=-1)
                with whole_folder(folder / f"part-{number:06d}") as part:
                    np.save(part / "hashes.npy", hashes[is_new])
                    np.save(part / "values.npy", values[is_new])

    def _parts(self, key: str) -> list[Path]:
        return sorted(self.path(key).glob("part-[0-9]*"))

    def _found(
        self, key: str, hashes: NDArray[np.uint64]
    ) -> Iterator[tuple[NDArray[np.int64], Path, NDArray[np.int64]]]:
        """Each part that has some of the texts: which of them, the part, and in which rows."""
        wanted = _Wanted.of(hashes)
        for path in self._parts(key):
            if _is_whole(path, self.folder.name, "computing"):
                texts, rows = wanted.found_in(np.load(path / "hashes.npy"))
                if len(texts):
                    yield texts, path, rows


class WeightStore:
    """Weights of small networks on disk: per key a folder with a safetensors file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get_or_learn(
        self, key: str, learn: Callable[[], Mapping[str, NDArray[np.float32]]]
    ) -> dict[str, NDArray[np.float32]]:
        """The weights under `key`, learned and kept where there are none that are whole.

        Of several processes that ask for the same ones, one learns and the others wait.
        """
        path = self.folder / key
        with disk_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{key}.lock"):
            if _is_whole(path, "weights", "learning"):
                kept: dict[str, NDArray[np.float32]] = load_file(path / "weights.safetensors")
                log.info("weights read from %s", path)
                return kept
            weights = dict(learn())
            with whole_folder(path) as part:
                save_file(weights, part / "weights.safetensors")
        return weights


class Stores:
    """Everything that runs share, below one folder; `data` has the data tables, `converted` the
    models whose weights came as pickles, `renderers` what is known of tokenizers."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.converted = folder / "converted"
        self.renderers = folder / "renderers"
        self.tokens = TokenStore(folder / "tokens")
        self.scores = ScoreStore(folder / "scores")
        self.features = ScoreStore(folder / "features")
        self.predictors = WeightStore(folder / "predictors")


@dataclass(frozen=True)
class _Wanted:
    """T distinct hashes to look for, sorted; `order`: which text each is."""

    hashes: NDArray[np.uint64]
    order: NDArray[np.int64]

    @classmethod
    def of(cls, hashes: NDArray[np.uint64]) -> "_Wanted":
        order = np.argsort(hashes)
        return cls(hashes[order], order)

    def found_in(self, stored: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The texts that are among the stored, and in which rows."""
        if not len(self.hashes):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        places = np.minimum(np.searchsorted(self.hashes, stored), len(self.hashes) - 1)
        rows = np.flatnonzero(self.hashes[places] == stored)
        return self.order[places[rows]], rows


def _clear_abandoned(folder: Path, *, besides: Path) -> None:
    """Removes what writers left half-written whose locks are free: they are gone; and, `besides`
    one's own, parts of lists that nobody went on with for long."""
    for parts in folder.glob(".*.parts"):
        if parts != besides:
            clear_leftovers(folder, parts.name, older_than_s=LEFT_BEHIND_S)
    for part in folder.glob(".*.part"):
        try:
            with FileLock(part.with_suffix(".lock"), timeout=0):
                remove(part)
        except Timeout:
            continue


def _is_whole(path: Path, what: str, doing: str) -> bool:
    """Whether an entry is there and what was written; says so if it is not."""
    if not path.exists():
        return False
    fault = folder_fault(path)
    if fault is not None:
        log.warning("%s in %s are damaged (%s): %s again", what, path, fault, doing)
    return fault is None
