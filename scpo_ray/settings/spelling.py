"""Names as people spell them: one spelling for each, and the nearest known ones. Pure."""

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Spell = Callable[[str], str]
"""A name as somebody spelled it -> the one name."""

# Without width: a zero-width space, joiner of words or byte-order mark, direction marks and a
# soft hyphen are seen in no name. (The joiners of letters are: they change how letters look.)
_UNSEEN = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]+")


def plain_name(name: str) -> str:
    """The name without blanks around it, inner ones one space, letters composed (NFC).

    "Me\u0301xico " and "México" are one name. Case is kept: see `same_but_for_case`.
    """
    if not name.isascii():
        name = unicodedata.normalize("NFC", _UNSEEN.sub("", name))
    return " ".join(name.split())


def spelled_once(names: Sequence[Any], setting: str, spell: Spell = plain_name) -> list[Any]:
    """The one name of each; what is no text stays, for whoever checks it.

    Raises: ValueError if two are the same.
    """
    spelled = [spell(name) if isinstance(name, str) else name for name in names]
    texts = [name for name in spelled if isinstance(name, str)]
    if len(set(texts)) < len(texts):
        raise ValueError(f"{setting} must name each culture once, got {list(names)}")
    return spelled


def keys_spelled_once(
    values: Mapping[Any, Any], setting: str, spell: Spell = plain_name
) -> dict[Any, Any]:
    """The values by the one name of each. Raises: ValueError if two are the same."""
    return dict(zip(spelled_once(list(values), setting, spell), values.values(), strict=True))


def same_but_for_case(names: Iterable[str]) -> list[list[str]]:
    """The names that differ by case alone, those that do together."""
    names = list(names)
    if len(set(map(str.casefold, names))) == len(names):
        return []
    first: dict[str, str] = {}
    alike: dict[str, list[str]] = {}
    for name in names:
        folded = name.casefold()
        known = first.setdefault(folded, name)
        if known != name:
            alike.setdefault(folded, [known]).append(name)
    return list(alike.values())


def nearest_setting(wrong: str, known: Iterable[str]) -> str | None:
    """The dotted setting that was meant: the most alike, or one of that name elsewhere."""
    known = list(known)
    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.8)
    name = wrong.rpartition(".")[2]
    return next(iter([*close, *(k for k in known if k.rpartition(".")[2] == name)]), None)


def nearest_names(name: str, known: Sequence[str]) -> str:
    lowered = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.4)
    names = [lowered[c] for c in close] or sorted(known)[:5]
    return ", ".join(repr(n) for n in names) or "none"
