"""What tells texts apart by their contents alone, in any data and on any machine. Pure."""

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from scpo_ray.records import Interaction, Text


def text_hashes(interaction: Interaction) -> list[int]:
    """One 64-bit hash per response, of history, prompt and response; the same on any machine."""
    prefix = blake2b(digest_size=8)
    for part in _parts(interaction):
        # The length before each part keeps ("ab", "c") and ("a", "bc") apart.
        prefix.update(len(part).to_bytes(8, "little") + part)
    hashes = []
    for response in interaction.responses:
        whole = prefix.copy()
        whole.update(response.encode())
        hashes.append(int.from_bytes(whole.digest(), "little"))
    return hashes


def text_hash(text: Text) -> int:
    """That of the same text in any data."""
    nobody = ("", "", None, None)  # id, culture, user, question
    [found] = text_hashes(Interaction(*nobody, text.prompt, (text.response,), (0.0,), text.history))
    return found


def pair_hashes(chosen: NDArray[np.uint64], rejected: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """(P,) one 64-bit hash per pair, of (P,) hashes of its texts; turned about, another."""
    # Hashes are even over all 64 bits, and so are their sums, which wrap.
    return np.asarray(np.uint64(3) * chosen + rejected)


def _parts(interaction: Interaction) -> Iterator[bytes]:
    for role, text in interaction.history:
        yield role.encode()
        yield text.encode()
    yield interaction.prompt.encode()
