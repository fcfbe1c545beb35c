"""YAML as it is read (version 1.2, within bounds) and written (so that every reader agrees)."""

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import yaml

from scpo_ray.settings.shown import plain, steers

# More than any settings need; what is larger would take more than a second to read.
MAX_CHARACTERS = 250_000
_MAX_NODES = 5_000
_MAX_DEPTH = 50
_MAX_DIGITS = 100

_TAG = "tag:yaml.org,2002:"
# YAML 1.2's core schema. In 1.1, which PyYAML reads, `on` and `no` are booleans, 12:30 is 750,
# 010 is 8, and a date is no text.
_CORE = {
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    "null": (re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "int": (re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), "-+0123456789"),
    "float": (
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        "-+0123456789.",
    ),
    "merge": (re.compile(r"<<$"), "<"),
}
_NUMBER_BASES = {"0o": 8, "0x": 16}


def read_yaml(text: str) -> Any:
    """What a YAML text says; only `true` and `false` are booleans in it.

    Raises: ValueError, in one or more lines, if it is no YAML, sets a key twice, or is larger,
        deeper or (once its aliases are followed) longer than settings can be.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text):,} characters: settings have at most {MAX_CHARACTERS:,}")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def write_yaml(document: Any) -> str:
    """A document as YAML that readers of version 1.1 and 1.2 take for the same."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    # All that steers a terminal stands in double quotes, where its escape means the same.
    return plain(text)


class _Loader(yaml.SafeLoader):
    """Core types alone, a bound on the number of nodes, and no key set twice."""

    yaml_implicit_resolvers: dict[Any, Any] = {}
    yaml_constructors: ClassVar[dict[Any, Any]] = {}
    _num_nodes = 0
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._num_nodes += 1
        self._depth += 1
        if self._num_nodes > _MAX_NODES:
            raise yaml.composer.ComposerError(None, None, f"more than {_MAX_NODES:,} values")
        if self._depth > _MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {_MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.tag == f"{_TAG}merge":
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise _fault("a name must be a text, not a list or a mapping", key)
            name = str(self.construct_object(key))
            if name in seen:
                raise _fault(f"{name!r} is set twice", key)
            seen.add(name)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def construct_core_bool(self, node: Any) -> bool:
        return self._core("bool", node).lower() == "true"

    def construct_core_int(self, node: Any) -> int:
        text = self._core("int", node)
        base = _NUMBER_BASES.get(text[:2])
        number = int(text) if base is None else int(text[2:], base)
        if abs(number) >= 2**64:
            raise _fault(f"{text[:60]} is beyond 64 bits", node)
        return number

    def construct_core_float(self, node: Any) -> float:
        return float(re.sub(r"\.(?=inf|nan)", "", self._core("float", node).lower()))

    def construct_other(self, node: Any) -> None:
        raise _fault(f"no tag {node.tag!r} is known here", node)

    def _core(self, kind: str, node: Any) -> str:
        text = str(self.construct_scalar(node))
        if not _CORE[kind][0].match(text):
            raise _fault(f"{text[:60]!r} is no {kind}", node)
        if len(text) > _MAX_DIGITS:
            raise _fault(f"a number of {len(text):,} characters", node)
        return text


for _kind, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", _pattern, list(_first))
for _kind, _construct in (
    ("bool", _Loader.construct_core_bool),
    ("int", _Loader.construct_core_int),
    ("float", _Loader.construct_core_float),
    ("null", _Loader.construct_yaml_null),
    ("str", _Loader.construct_yaml_str),
    ("seq", _Loader.construct_yaml_seq),
    ("map", _Loader.construct_yaml_map),
):
    _Loader.add_constructor(f"{_TAG}{_kind}", _construct)
_Loader.add_constructor(None, _Loader.construct_other)


def _fault(message: str, node: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)


def _check_size(root: Any) -> None:
    """Raises: ValueError if aliases make a document endless, too deep or too long."""
    known: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()

    def measured(node: Any) -> tuple[int, int]:
        """Its depth and its number of values, each alias counted as what it stands for."""
        if id(node) in open_nodes:
            raise ValueError("an alias stands within what it is an alias for")
        if id(node) not in known:
            open_nodes.add(id(node))
            below = [measured(each) for each in _children(node)]
            open_nodes.remove(id(node))
            depth = 1 + max((depth for depth, _ in below), default=0)
            known[id(node)] = depth, 1 + sum(size for _, size in below)
        return known[id(node)]

    depth, size = measured(root)
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested {depth} levels deep: settings have at most {_MAX_DEPTH}")
    if size > _MAX_NODES:
        raise ValueError(f"more than {_MAX_NODES:,} values, aliases followed")


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from (key, value)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


class _Dumper(yaml.SafeDumper):
    """Texts that any version of YAML takes for something else are quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> Any:
        style = '"' if steers(data) else None
        return self.represent_scalar(f"{_TAG}str", data, style=style)


for _kind, (_pattern, _first) in _CORE.items():
    _Dumper.add_implicit_resolver(f"{_TAG}{_kind}", _pattern, list(_first))
# Version 1.1 has these too, and PyYAML alone leaves them out.
_Dumper.add_implicit_resolver(f"{_TAG}bool", re.compile(r"[yYnN]$"), list("yYnN"))
_Dumper.add_representer(str, _Dumper.represent_text)
