"""Texts into kept tokens: many of them in several processes."""

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scpo_ray.models.known_renderer import KnownRenderer
from scpo_ray.models.rendering import RefusedTexts, Renderer
from scpo_ray.records import InputError, Text, TextSource, Tokens
from scpo_ray.storage.stores import TokenStore

log = logging.getLogger(__name__)

# Below, the start of a process (1.4 seconds of a CPU) is not worth it.
MIN_TEXTS_OF_A_PROCESS = 16_384

_TEXTS_PER_CHUNK = 2_000
# Texts and tokens in memory at a time: what waits for a process, and what for the disk.
_CHUNKS_AHEAD = 2
_LOOKS_EVERY_S = 1.0

_renderer: Renderer | None = None
"""Of a process that was begun for nothing else."""


def tokenize(renderer: KnownRenderer, texts: TextSource, store: TokenStore) -> Tokens:
    """Tokens of T texts, memory-mapped; a text that was rendered before is read from `store`, and
    the tokenizer is loaded only if one was not.

    Whatever the tokenizer or the template does otherwise, or another maximum length, makes a new
    entry. Many new texts are rendered on all CPUs of this process, in parts that a later call
    goes on from.

    Raises: RefusedTexts naming every text that cannot be rendered; InputError if a process that
        helped was ended by others.
    """

    def encode(groups: Sequence[NDArray[np.int64]]) -> Iterator[Tokens]:
        try:
            yield from _encoded(renderer.loaded, texts, groups)
        except RefusedTexts:
            raise RefusedTexts(_refusals(renderer.loaded, texts), len(texts)) from None

    return store.get_or_encode(renderer.fingerprint[:32], texts.hashes, encode)


def _encoded(
    renderer: Renderer, texts: TextSource, groups: Sequence[NDArray[np.int64]]
) -> Iterable[Tokens]:
    """The tokens of each group, in order: the same in one process and in several."""
    from joblib.externals.loky import cpu_count

    num_texts = sum(map(len, groups))
    num_processes = min(cpu_count(), num_texts // MIN_TEXTS_OF_A_PROCESS)
    read = ([texts[int(t)] for t in group] for group in groups)
    if num_processes < 2 or not _can_travel(renderer):
        return map(renderer.encode, read)
    log.info("tokenizing %d texts in %d processes", num_texts, num_processes)
    return _encoded_in_processes(renderer, read, num_processes)


def _can_travel(renderer: Renderer) -> bool:
    """Whether another process can have it; code that came with a model is in none of the others."""
    is_own_code = not type(renderer.tokenizer).__module__.startswith("transformers.")
    return renderer.reader is not None and not is_own_code


def _encoded_in_processes(
    renderer: Renderer, groups: Iterable[Sequence[Text]], num_processes: int
) -> Iterator[Tokens]:
    from joblib.externals.loky import BrokenProcessPool, ProcessPoolExecutor

    # Loky's do not import the main module again, which a person's script need not be ready for.
    executor = ProcessPoolExecutor(
        num_processes, initializer=_begin, initargs=(renderer, os.getpid())
    )
    waiting: deque[Any] = deque()
    try:
        for group in groups:
            waiting.append(executor.submit(_encode, group))
            if len(waiting) > _CHUNKS_AHEAD * num_processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise InputError(
            "a process that tokenized was ended from outside, perhaps for want of memory",
            ["the same command goes on from the parts that are done"],
        ) from None
    finally:
        executor.shutdown(wait=True, kill_workers=True)


def _begin(renderer: Renderer, parent: int) -> None:
    """What a process begins with: it stops when its parent does, and on its word alone."""
    global _renderer
    _renderer = renderer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOKS_EVERY_S)
    os._exit(1)


def _encode(texts: Sequence[Text]) -> Tokens:
    if _renderer is None:
        raise ValueError("the process has no renderer")
    return _renderer.encode(texts)


def _refusals(renderer: Renderer, texts: TextSource) -> dict[int, str]:
    """All texts that cannot be rendered, and why."""
    refused: dict[int, str] = {}
    for start in range(0, len(texts), _TEXTS_PER_CHUNK):
        stop = min(start + _TEXTS_PER_CHUNK, len(texts))
        try:
            renderer.encode([texts[t] for t in range(start, stop)])
        except RefusedTexts as error:
            refused |= {start + place: reason for place, reason in error.reasons.items()}
    return refused
