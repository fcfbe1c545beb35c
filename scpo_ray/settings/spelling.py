"""Names as people spell them: the nearest known ones. Pure."""

import difflib
from collections.abc import Sequence


def nearest_names(name: str, known: Sequence[str]) -> str:
    lowered = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.4)
    names = [lowered[c] for c in close] or sorted(known)[:5]
    return ", ".join(repr(n) for n in names) or "none"
