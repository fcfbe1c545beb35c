"""docs/configuration.md, made from the config classes: `python -m scpo_ray.settings.page FILE`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from scpo_ray.settings.comparison import ComparisonConfig, SpaceConfig
from scpo_ray.settings.data import SOURCES
from scpo_ray.settings.methods import METHODS, method_names
from scpo_ray.settings.presets import PRESETS
from scpo_ray.settings.run import RunConfig
from scpo_ray.settings.section import inner_sections
from scpo_ray.settings.serve import ServeConfig
from scpo_ray.settings.sweep import (
    BudgetConfig,
    ObjectiveConfig,
    RepeatConfig,
    ResourcesConfig,
    SchedulerConfig,
    SearchConfig,
    SweepConfig,
)

_INTRODUCTION = """\
# Settings

Made from the config classes by `make docs`; a test compares them. A config is a YAML file; a
setting left out has its default. `--set a.b=value` overrides one on the command line, the value
in YAML: `--set train.max_steps=200 --set "data.cultures=[Chile, Mexico]"`. YAML is read by its
version 1.2: `true` and `false` alone are booleans, so that `launch: {on: ray}` and a culture called
`no` mean what is written; 12:30 and 2026-11-28 are texts, and 010 is 10.

A file of settings is kept with the runs. A URI with a password, a token or a key in it is refused,
in a comment too; the environment gives them (cluster/README.md, "Passwords").

`preset: paper` at the top of a file (or `paper` in place of a file) starts from the paper's
settings, listed at the end of this page. `scpo compare` reads a file with two sections, `run:` (a
whole run) and `space:` (what varies), or a run's config alone; `scpo sweep` one whose `space:`
says of each setting what it may be (docs/sweeps.md).
"""


def configuration_page() -> str:
    """The whole page as Markdown."""
    return "\n".join([_INTRODUCTION, *_methods(), *_sections(), *_presets()]) + "\n"


def _methods() -> Iterator[str]:
    yield "\n## Methods\n"
    yield "| `method` | what it is | its own settings |"
    yield "|---|---|---|"
    for name in method_names():
        method = METHODS[name]
        own = f"`methods.{name}`" if method.settings else ""
        yield f"| `{name}` | {method.about} | {own} |"


def _sections() -> Iterator[str]:
    pages: dict[str, tuple[str, Any]] = {"A run": ("", RunConfig)}
    for source in SOURCES.own():
        pages[f"`data`, with `source: {source.name}`"] = ("data.", source.settings)
    for source in SOURCES.own():
        # A section that several sources have stands there once; one changes what `by` may be.
        pages |= _below("data.", source.settings)
    for name, section in _below("", RunConfig).items():
        if name not in ("`data`", "`methods`"):  # sources' stand above, methods' below
            pages |= {name: section} | _below(*section)
    pages |= {
        f"`methods.{method.name}`": (f"methods.{method.name}.", method.settings)
        for method in METHODS.own()
        if method.settings is not None
    }
    pages["A comparison"] = ("", ComparisonConfig)
    pages |= {"`space` of a comparison": ("space.", SpaceConfig)}
    pages["A sweep"] = ("", SweepConfig)
    pages |= {
        f"`{name}` of a sweep": section
        for name, section in (
            ("search", ("search.", SearchConfig)),
            ("scheduler", ("scheduler.", SchedulerConfig)),
            ("repeat", ("repeat.", RepeatConfig)),
            ("objective", ("objective.", ObjectiveConfig)),
            ("resources", ("resources.", ResourcesConfig)),
            ("budget", ("budget.", BudgetConfig)),
        )
    }
    pages["The reward server (`scpo serve --set`)"] = ("", ServeConfig)
    for title, (prefix, section) in pages.items():
        yield from _section(title, prefix, section)


def _below(prefix: str, section: Any) -> dict[str, tuple[str, Any]]:
    """Title -> prefix and class of the sections that are settings of `section`."""
    return {
        f"`{prefix}{name}`": (f"{prefix}{name}.", inner[0])
        for name, field in section.model_fields.items()
        if len(inner := inner_sections(field.annotation)) == 1
    }


def _section(title: str, prefix: str, section: Any) -> Iterator[str]:
    yield f"\n## {title}\n"
    yield "| setting | default | rule | what it does |"
    yield "|---|---|---|---|"
    for name, field in section.model_fields.items():
        inner = inner_sections(field.annotation)
        default = "its own section" if inner and field.default is not None else _default(field)
        help_text = " ".join((field.description or "").split()).replace("|", "\\|")
        yield f"| `{prefix}{name}` | {default} | {_rule(field)} | {help_text} |"


def _presets() -> Iterator[str]:
    for name, settings in PRESETS.items():
        yield f"\n## Preset `{name}`\n"
        yield "| setting | value |"
        yield "|---|---|"
        for setting, value in _flattened(settings, ""):
            yield f"| `{setting}` | {_shown(value)} |"


def _flattened(settings: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _default(field: Any) -> str:
    if field.is_required():
        return "must be set"
    value = field.default if field.default is not PydanticUndefined else field.default_factory()
    return _shown(value)


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(_shown(v) for v in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_shown(v)}" for k, v in value.items())
    return str(value)


def _rule(field: Any) -> str:
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    rules = [
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in bounds.items()
        if hasattr(rule, name)
    ]
    choices = _choices(field.annotation)
    numbers = [kind for kind in (int, float) if kind in get_args(field.annotation)]
    if choices and numbers:
        choices.append(_kind(numbers[0]))
    return ", ".join(rules) or " \\| ".join(choices) or _kind(field.annotation)


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [c for argument in get_args(annotation) for c in _choices(argument)]


def _kind(annotation: Any) -> str:
    names = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        Path: "path",
        list: "list",
        dict: "mapping",
    }
    if annotation in names:
        return names[annotation]
    origin = get_origin(annotation)
    if origin in names:
        return names[origin]
    if origin is Union or origin is not None:
        kinds = [_kind(a) for a in get_args(annotation) if a is not type(None)]
        return kinds[0] if kinds else ""
    return ""


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(configuration_page(), encoding="utf-8")
