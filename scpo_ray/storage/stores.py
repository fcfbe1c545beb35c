"""What runs share on disk, by content: rendered texts, the global model's rewards and features,
what is learned alike for several of them."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from scpo_ray.records import InputError, Tokens
from scpo_ray.storage.disk import disk_errors, whole_file, whole_folder

log = logging.getLogger(__name__)

_TEXTS_PER_PART = 16_384


class TokenStore:
    """Rendered texts on disk, by key; memory-mapped when read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> Tokens | None:
        """The tokens under `key`, or None where there are none that are whole."""
        path = self.folder / key
        if not path.is_dir():
            return None
        try:
            offsets = np.load(path / "offsets.npy")
            truncated = np.load(path / "truncated.npy")
            input_ids = np.fromfile(path / "input_ids.bin", dtype=np.int32, count=0)
            if offsets[-1]:
                input_ids = np.memmap(path / "input_ids.bin", dtype=np.int32, mode="r")
            types = None
            if (path / "token_type_ids.bin").is_file() and offsets[-1]:
                types = np.memmap(path / "token_type_ids.bin", dtype=np.int8, mode="r")
            if len(input_ids) != offsets[-1] or (types is not None and len(types) != offsets[-1]):
                raise ValueError("lengths do not fit")
        except (OSError, ValueError, EOFError) as error:
            log.warning("tokens in %s are damaged (%s): rendering again", path, error)
            return None
        return Tokens(input_ids, types, offsets, truncated)

    def put(self, key: str, chunks: Iterator[Tokens]) -> Tokens:
        """Writes the chunks one after the other; returns them as one, memory-mapped.

        Of several processes that render the same texts at once, one writes and the others wait.
        """
        with disk_errors(self.folder / key):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f".{key}.lock"):
                tokens = self.get(key)
                if tokens is None:
                    self._write(key, chunks)
                    tokens = self.get(key)
        if tokens is None:
            raise InputError(f"{self.folder / key}: what was just written cannot be read back")
        return tokens

    def _write(self, key: str, chunks: Iterator[Tokens]) -> None:
        lengths, truncated = [], []
        with whole_folder(self.folder / key) as part:
            with (
                (part / "input_ids.bin").open("wb") as ids_file,
                (part / "token_type_ids.bin").open("wb") as types_file,
            ):
                for chunk in chunks:
                    chunk.input_ids.tofile(ids_file)
                    if chunk.token_type_ids is not None:
                        chunk.token_type_ids.tofile(types_file)
                    lengths.append(chunk.lengths)
                    truncated.append(chunk.truncated)
            if (part / "token_type_ids.bin").stat().st_size == 0:
                (part / "token_type_ids.bin").unlink()
            ends = np.cumsum(np.concatenate(lengths), dtype=np.int64)
            np.save(part / "offsets.npy", np.concatenate([[0], ends]))
            np.save(part / "truncated.npy", np.concatenate(truncated))


@dataclass(frozen=True)
class ScorePart:
    """Part `number` of a set of scores. `ids`: (n,) int64, the texts in it."""

    number: int
    ids: NDArray[np.int64]


class ScoreStore:
    """The global model's rewards on disk: per key a folder of Parquet files, one per part.

    A text's entry is its reward, or the D features that a reward is made from; then what is (T,)
    below is (T, D).

    A part is a run of texts, of a size that does not depend on who computes it: a scoring that
    was stopped, or that many machines share, gives the same files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / key

    def missing_parts(self, key: str, hashes: NDArray[np.uint64]) -> list[ScorePart]:
        """The parts of these texts' scores that are not there, or not to be trusted."""
        return [p for p in _parts(len(hashes)) if self._read(key, p, hashes) is None]

    def get(self, key: str, hashes: NDArray[np.uint64]) -> NDArray[np.float32]:
        """(T,) rewards of the texts with these hashes. Raises: InputError if some are missing."""
        parts = [self._read(key, part, hashes) for part in _parts(len(hashes))]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            missing = len(parts) - len(found)
            raise InputError(f"{self.path(key)}: {missing} of {len(parts)} parts cannot be read")
        return np.concatenate(found) if found else np.empty(0, np.float32)

    def put(
        self,
        key: str,
        part: ScorePart,
        hashes: NDArray[np.uint64],
        rewards: NDArray[np.float32],
    ) -> None:
        """Keeps the (n,) rewards of a part's texts; `hashes` are those of all T texts."""
        with whole_file(self._part_path(key, part)) as file:
            values: pa.Array = pa.array(rewards.ravel())
            if rewards.ndim == 2:
                values = pa.FixedSizeListArray.from_arrays(values, rewards.shape[1])
            table = pa.table({"text_hash": hashes[part.ids], "reward": values})
            # Without checksums a page of zeros reads as rewards of zero.
            pq.write_table(table, file, write_page_checksum=True)

    def _part_path(self, key: str, part: ScorePart) -> Path:
        return self.path(key) / f"part-{part.number:06d}.parquet"

    def _read(
        self, key: str, part: ScorePart, hashes: NDArray[np.uint64]
    ) -> NDArray[np.float32] | None:
        path = self._part_path(key, part)
        if not path.is_file():
            return None
        try:
            table = pq.read_table(path, page_checksum_verification=True)
            stored = table["text_hash"].to_numpy()
            rewards = _values(table["reward"].combine_chunks())
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            log.warning("scores in %s are damaged (%s): computing again", path, error)
            return None
        if not np.array_equal(stored, hashes[part.ids]):
            log.warning("scores in %s are of other texts: computing again", path)
            return None
        return np.asarray(rewards)


class WeightStore:
    """Weights of small networks on disk: per key a safetensors file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get_or_learn(
        self, key: str, learn: Callable[[], Mapping[str, NDArray[np.float32]]]
    ) -> dict[str, NDArray[np.float32]]:
        """The weights under `key`, learned and kept where there are none that are whole.

        Of several processes that ask for the same ones, one learns and the others wait.
        """
        path = self.folder / f"{key}.safetensors"
        with disk_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{key}.lock"):
            if path.is_file():
                try:
                    kept: dict[str, NDArray[np.float32]] = load_file(path)
                except SafetensorError as error:
                    log.warning("weights in %s are damaged (%s): learning again", path, error)
                else:
                    log.info("weights read from %s", path)
                    return kept
            weights = dict(learn())
            with whole_file(path) as part:
                save_file(weights, part)
        return weights


class Stores:
    """Everything that runs share, below one folder; `data` is the data tables'."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.tokens = TokenStore(folder / "tokens")
        self.scores = ScoreStore(folder / "scores")
        self.features = ScoreStore(folder / "features")
        self.predictors = WeightStore(folder / "predictors")


def _values(column: pa.Array) -> NDArray[np.float32]:
    if not pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float32)
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values.reshape(len(column), column.type.list_size), dtype=np.float32)


def _parts(num_texts: int) -> list[ScorePart]:
    starts = range(0, num_texts, _TEXTS_PER_PART)
    return [
        ScorePart(number, np.arange(start, min(start + _TEXTS_PER_PART, num_texts)))
        for number, start in enumerate(starts)
    ]
