"""Who computes which pairs at which step: a pure function of lengths, pairs and a seed.

What is in a step does not depend on the number of workers, only who computes it: runs on 1, 2 or
8 workers follow the same trajectory up to rounding, and a run resumed at step s skips to it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one worker.

    Attributes:
        rows: (B,) which of the plan's pairs; none where a worker has to keep step with others.
        texts: (R,) the texts they need, each once.
        pairs: (B, 2) chosen and rejected, as indices into `texts`.
    """

    rows: NDArray[np.int64]
    texts: NDArray[np.int64]
    pairs: NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """One optimizer step. `rows`: (batch_size,) the global batch; `number` counts from 1."""

    number: int
    rows: NDArray[np.int64]
    by_rank: tuple[tuple[MicroBatch, ...], ...]

    def micro_batches(self, rank: int) -> tuple[MicroBatch, ...]:
        return self.by_rank[rank]


@dataclass(frozen=True)
class Plan:
    """All steps of a training run, made when asked for; see `plan_steps`.

    `in_rows`: the network computes the texts of a micro-batch in one row without padding. It
    changes how a step is divided, not what is in it. `groups`: (P,) pairs of one group follow each
    other in the order of an epoch; None: each pair has its own place.
    """

    pairs: NDArray[np.int64]
    lengths: NDArray[np.int64]
    batch_size: int
    num_steps: int
    micro_batch_tokens: int
    num_workers: int
    seed: int
    groups: NDArray[np.int64] | None = None
    in_rows: bool = False

    def steps_from(self, last_step: int) -> Iterator[Step]:
        """The steps after `last_step`, in order."""
        order = _Order(len(self.pairs), self.groups, self.seed)
        for number in range(last_step + 1, self.num_steps + 1):
            start = (number - 1) * self.batch_size
            rows = order.between(start, start + self.batch_size)
            yield Step(number, rows, self._divided(rows))

    def num_tokens(self) -> int:
        """Tokens of all steps' texts, padding and sharing within a micro-batch left out."""
        per_pair = int(self.lengths[self.pairs].sum()) / len(self.pairs)
        return round(per_pair * self.batch_size * self.num_steps)

    def _divided(self, rows: NDArray[np.int64]) -> tuple[tuple[MicroBatch, ...], ...]:
        chunks = [self._micro_batch(chunk) for chunk in self._chunks(rows)]
        while len(chunks) % self.num_workers:
            largest = max(range(len(chunks)), key=lambda c: len(chunks[c].rows))
            if len(chunks[largest].rows) == 1:
                # Single pairs that do not divide by the workers: the last ones idle.
                chunks.append(self._idle_micro_batch(rows))
                continue
            chunk = chunks.pop(largest).rows
            half = (len(chunk) + 1) // 2
            chunks[largest:largest] = [
                self._micro_batch(chunk[:half]),
                self._micro_batch(chunk[half:]),
            ]
        # Dealt in rounds: in each round the workers' passes are of near-equal size.
        return tuple(tuple(chunks[rank :: self.num_workers]) for rank in range(self.num_workers))

    def _chunks(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The step's rows in runs within the token budget."""
        if not self.in_rows:
            widths = self.lengths[self.pairs[rows]].max(axis=1)
            # Near-equal lengths together: what is padded is paid for. Ties by row keep it defined.
            return self._filled(rows[np.lexsort((rows, -widths))], self.micro_batch_tokens)
        # Pairs that share texts together: each text of a row is computed once.
        rows = rows[np.lexsort((rows, self.pairs[rows].min(axis=1)))]
        fewest = len(self._filled(rows, self.micro_batch_tokens))
        fewest += -fewest % self.num_workers
        # As many rows of tokens, but of near-equal size: workers wait for the longest.
        low, high = 2 * int(self.lengths[self.pairs[rows]].max()), self.micro_batch_tokens
        while low < high:
            middle = (low + high) // 2
            if len(self._filled(rows, middle)) <= fewest:
                high = middle
            else:
                low = middle + 1
        return self._filled(rows, low)

    def _filled(self, rows: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
        """Runs of `rows`, in their order, each filled up to a budget of tokens."""
        chunks, start = [], 0
        texts: set[int] = set()
        for position, row in enumerate(rows):
            pair = {int(text) for text in self.pairs[row]}
            if texts and self._num_tokens(texts | pair) > budget:
                chunks.append(rows[start:position])
                start, texts = position, set()
            texts |= pair
        return [*chunks, rows[start:]]

    def _num_tokens(self, texts: set[int]) -> int:
        """What one pass over the texts computes."""
        lengths = self.lengths[list(texts)]
        return int(lengths.sum() if self.in_rows else lengths.max() * len(texts))

    def _micro_batch(self, rows: NDArray[np.int64]) -> MicroBatch:
        texts, inverse = np.unique(self.pairs[rows], return_inverse=True)
        return MicroBatch(rows, texts, inverse.reshape(-1, 2))

    def _idle_micro_batch(self, rows: NDArray[np.int64]) -> MicroBatch:
        """A pass that adds nothing to the loss, since every worker must make the same number."""
        texts = self.pairs[rows].ravel()
        shortest = texts[np.argmin(self.lengths[texts])]
        no_rows, no_pairs = np.empty(0, np.int64), np.empty((0, 2), np.int64)
        return MicroBatch(no_rows, np.array([shortest]), no_pairs)


class _Order:
    """Epoch after epoch of all pairs, each epoch in an order of its own; one epoch kept."""

    def __init__(self, num_pairs: int, groups: NDArray[np.int64] | None, seed: int) -> None:
        self.num_pairs = num_pairs
        self.groups = None if groups is None else _Members.of(groups)
        self.seed = seed
        self.epoch = -1
        self.order = np.empty(0, dtype=np.int64)

    def between(self, start: int, stop: int) -> NDArray[np.int64]:
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.num_pairs)
            if epoch != self.epoch:
                self.epoch = epoch
                rng = np.random.default_rng((self.seed, epoch))
                if self.groups is None:
                    self.order = rng.permutation(self.num_pairs)
                else:
                    self.order = self.groups.in_turn(rng.permutation(len(self.groups.sizes)))
            taken = min(stop - start, self.num_pairs - offset)
            parts.append(self.order[offset : offset + taken])
            start += taken
        return np.concatenate(parts)


@dataclass(frozen=True)
class _Members:
    """G groups: `rows` (P,) of the first group's pairs, then of the next one's; `sizes` (G,)."""

    rows: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, groups: NDArray[np.int64]) -> "_Members":
        # Most often they are in order already, which this kind of sort takes in one go.
        rows = np.argsort(groups, kind="stable")
        is_first = np.diff(groups[rows], prepend=groups[rows[0]] - 1) != 0
        return cls(rows, np.diff(np.flatnonzero(is_first), append=len(rows)))

    def in_turn(self, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        """(P,) the pairs of these groups, group after group."""
        sizes = self.sizes[drawn]
        begins = (np.cumsum(self.sizes) - self.sizes)[drawn]
        shifts = begins - (np.cumsum(sizes) - sizes)
        return self.rows[np.repeat(shifts, sizes) + np.arange(len(self.rows))]


def plan_steps(
    pairs: NDArray[np.int64],
    lengths: NDArray[np.int64],
    *,
    batch_size: int,
    num_steps: int,
    micro_batch_tokens: int,
    num_workers: int,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> Plan:
    """The plan of a training run.

    Every pair is used once per epoch, epochs follow each other without a gap (a batch may span
    two), every step has `batch_size` pairs, every worker the same number of micro-batches, and a
    micro-batch holds each of its texts once and at most `micro_batch_tokens` tokens, padded ones
    counted (`Plan.in_rows`: there are none).

    Args:
        pairs: (P, 2) chosen and rejected texts of the selected training pairs.
        lengths: (T,) tokens of each text.
        batch_size: pairs per step over all workers.
        groups: (P,) whose pairs come one after the other, such as those of one prompt; a step may
            end within one. None: each pair comes by itself.
        num_workers: at most `batch_size`; where a step's pairs do not divide by it, some workers
            make an idle pass.

    Raises: ValueError if there are no pairs, there are more workers than pairs in a step, or a
    pair does not fit a micro-batch.
    """
    if len(pairs) == 0:
        raise ValueError("there are no pairs to train on")
    if num_workers > batch_size:
        raise ValueError(f"batch_size {batch_size} must not be below the {num_workers} workers")
    widest = 2 * int(lengths[pairs].max())
    if widest > micro_batch_tokens:
        raise ValueError(
            f"micro_batch_tokens {micro_batch_tokens} must hold the longest pair, {widest} tokens"
        )
    return Plan(
        pairs, lengths, batch_size, num_steps, micro_batch_tokens, num_workers, seed, groups
    )
