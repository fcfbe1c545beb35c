"""What has a name and is found by it: in files of this package, or in other installed packages.

Nothing lists them. A file of the package's folder offers what it gives the agreed name, another
package what its entry points name. Only the files that offer something are imported, and only
when one of their names is asked for: settings are above what they choose from.
"""

import importlib
import logging
import pkgutil
import re
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, Protocol, TypeVar

from scpo_ray.records import InputError
from scpo_ray.settings.spelling import nearest_names

log = logging.getLogger(__name__)


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


@dataclass(frozen=True)
class Plugins(Generic[T]):
    """A table of what is offered under a name.

    Attributes:
        package: its modules offer what they assign to `attribute`, one value or a tuple of them.
        group: of the entry points by which other packages offer theirs, under the same names.
        kind: what every value must be.
    """

    package: str
    group: str
    attribute: str
    kind: type[T]

    def names(self) -> tuple[str, ...]:
        """The package's own by file, then other packages', sorted; the latter are not imported."""
        return tuple(dict.fromkeys([*self._own, *sorted(self._outside)]))

    def __getitem__(self, name: str) -> T:
        """Raises: InputError if nothing has the name, or what has it cannot be used."""
        own, outside = self._own.get(name), self._outside.get(name, [])
        if len(outside) + (own is not None) > 1:
            places = [_place(each) for each in outside]
            places += [f"{self.package}: its own"] if own is not None else []
            raise self._unusable(name, f"offered more than once: {', '.join(places)}")
        if own is not None:
            return own
        if outside:
            return self._loaded(outside[0])
        near, every = nearest_names(name, self.names()), ", ".join(self.names())
        raise self._unusable(name, f"there is none of this name; nearest: {near}; all: {every}")

    def own(self) -> tuple[T, ...]:
        """What this package offers, by file."""
        return tuple(self._own.values())

    def usable(self) -> list[T]:
        """All that can be had, in the order of `names`; another package's that cannot be imported
        is left out, and refused where it is named."""
        usable = []
        for name in self.names():
            try:
                usable.append(self[name])
            except InputError as error:
                log.debug("%s", error)
        return usable

    @property
    def noun(self) -> str:
        return self.kind.__name__.lower()

    def _unusable(self, name: str, reason: str) -> InputError:
        return InputError(f"{self.noun} {name!r} cannot be used", [reason])

    @cached_property
    def _own(self) -> dict[str, T]:
        found: dict[str, T] = {}
        for value in self._values():
            if value.name in found:
                raise ValueError(f"{self.package}: two of its files offer {value.name!r}")
            found[value.name] = value
        return found

    def _values(self) -> list[T]:
        folder = importlib.import_module(self.package).__path__
        assigns = re.compile(rf"^{re.escape(self.attribute)}\b[^=\n]*=", re.MULTILINE)
        values: list[T] = []
        for finder, name, _ in sorted(pkgutil.iter_modules(folder), key=lambda file: file.name):
            # Read before it is imported: the others may be slow to import, or need the settings.
            spec = finder.find_spec(f"{self.package}.{name}", None)
            if spec is None or not assigns.search(_source(spec)):
                continue
            offered = getattr(importlib.import_module(spec.name), self.attribute, ())
            for value in offered if isinstance(offered, tuple) else (offered,):
                if not isinstance(value, self.kind):
                    raise TypeError(f"{spec.name}.{self.attribute}: must be {self.noun}s")
                values.append(value)
        return values

    @cached_property
    def _outside(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for each in entry_points(group=self.group):
            found.setdefault(each.name, []).append(each)
        return found

    def _loaded(self, entry_point: EntryPoint) -> T:
        name, place = entry_point.name, _place(entry_point)
        try:
            value: Any = entry_point.load()
        except Exception as error:  # whatever the other package's code raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise self._unusable(name, f"{place}: {reason}") from None
        if not isinstance(value, self.kind):
            rule = f"must be a {self.kind.__module__}.{self.kind.__name__}"
            raise self._unusable(name, f"{place}: {rule}, got {type(value).__name__}")
        if value.name != name:
            rule = f"calls itself {value.name!r}: the entry point must have the same name"
            raise self._unusable(name, f"{place}: {rule}")
        return value


def _source(spec: ModuleSpec) -> str:
    get_source = getattr(spec.loader, "get_source", None)
    return (get_source(spec.name) or "") if get_source else ""


def _place(entry_point: EntryPoint) -> str:
    package = entry_point.dist.name if entry_point.dist else "unknown package"
    return f"{package} ({entry_point.value})"
