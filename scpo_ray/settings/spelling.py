"""Names as people spell them: one spelling for each, and the nearest known ones. Pure."""

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Spell = Callable[[str], str]
"""A name as somebody spelled it -> the one name."""

# Without width: a zero-width space, joiner of words or byte-order mark, all that turns the
# direction of writing, invisible operators, a soft hyphen and the like are seen in no name. (The
# joiners of letters are: they change how letters look. Tags are: they tell regions' flags apart.)
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
    "\ufff9-\ufffb]+"
)

# The same on most keyboards: dashes, quotes, the two i of Turkish.
_TYPED = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-")
    | dict.fromkeys("\u2018\u2019\u02bc\u00b4`", "'")
    | dict.fromkeys("\u0130\u0131", "i")
    | dict.fromkeys("\u200c\u200d", "")
)


def plain_name(name: str) -> str:
    """The name without blanks around it, inner ones one space, letters composed (NFC).

    "Me\u0301xico " and "México" are one name. Case is kept: see `looking_alike`.
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


def looking_alike(names: Iterable[str]) -> list[list[str]]:
    """The names that differ by case, width, kind of dash or quote, or a last full stop alone.

    Those that do stand together.
    """
    names = list(names)
    if len(set(map(_folded, names))) == len(names):
        return []
    first: dict[str, str] = {}
    alike: dict[str, list[str]] = {}
    for name in names:
        folded = _folded(name)
        known = first.setdefault(folded, name)
        if known != name:
            alike.setdefault(folded, [known]).append(name)
    return list(alike.values())


def _folded(name: str) -> str:
    if not name.isascii():
        name = unicodedata.normalize("NFKC", name.translate(_TYPED))
    folded = name.casefold()
    return folded.rstrip(".") or folded


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
