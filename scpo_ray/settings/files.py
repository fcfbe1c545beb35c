"""Config files: read, laid over their preset, overridden, checked; problems in the user's words."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from scpo_ray.records import InputError
from scpo_ray.settings.comparison import ComparisonConfig
from scpo_ray.settings.data import SOURCES, DataSection
from scpo_ray.settings.documents import MAX_CHARACTERS, read_yaml
from scpo_ray.settings.methods import METHODS
from scpo_ray.settings.presets import PRESETS
from scpo_ray.settings.run import RunConfig
from scpo_ray.settings.section import Section, inner_sections
from scpo_ray.settings.shown import (
    kept_secrets,
    line_without_secrets,
    text_fault,
    without_secrets,
)
from scpo_ray.settings.spelling import nearest_names, nearest_setting
from scpo_ray.settings.sweep import SweepConfig

SectionT = TypeVar("SectionT", bound=Section)


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """The run config in a YAML file, over its `preset:` if it names one, under `overrides`.

    Args:
        path: a YAML file with a run's settings, or the name of a preset ("paper").
        overrides: "dotted.setting=value", the value in YAML.

    Raises: InputError naming every problem at once.
    """
    document = _overridden(_read_document(path), overrides, path)
    return validate(RunConfig, _with_preset(document, path), path)


def load_comparison(path: Path | str, overrides: Sequence[str] = ()) -> ComparisonConfig:
    """The comparison in a YAML file: `run:` and `space:`, or a run config alone.

    Args and errors as for `load_config`; overrides start at `run.` or `space.` where the file has
    `run:`; where it has not they are a run's settings, or start at `space.`.
    """
    document = _overridden(_read_document(path), overrides, path)
    if "run" not in document:
        space = document.pop("space", {})
        run = validate(RunConfig, _with_preset(document, path), path)
        return validate(ComparisonConfig, {"run": run, "space": space}, path)
    if isinstance(document["run"], dict):
        document["run"] = _with_preset(document["run"], path)
    return validate(ComparisonConfig, document, path)


def load_sweep(path: Path | str, overrides: Sequence[str] = ()) -> SweepConfig:
    """The sweep in a YAML file: `run:`, `space:` and how it is searched.

    Args and errors as for `load_config`; overrides start at a section of the file (`run.`,
    `search.`). A value of the space that a run cannot have is found by `sweep.check_space`.
    """
    document = _overridden(_read_document(path), overrides, path)
    if isinstance(document.get("run"), dict):
        document["run"] = _with_preset(document["run"], path)
    return validate(SweepConfig, document, path)


def load_section(section: type[SectionT], overrides: Sequence[str]) -> SectionT:
    """A section that no file holds: its defaults under `overrides`. Errors as `load_config`."""
    return validate(section, _overridden({}, overrides, "--set"), "--set")


def holds_a_space(path: Path | str) -> bool:
    """Whether a YAML file is a sweep's or a comparison's (`run:` and `space:`), not a run's alone.

    Raises: InputError if it cannot be read.
    """
    return "run" in _read_document(path)


def load_header(path: Path) -> str:
    """The comment that a YAML file begins with, up to its first empty line."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def check_culture_names(
    wanted: Sequence[str],
    known: Sequence[str],
    setting: str,
    *,
    left: Sequence[str] | None = None,
    by: str = "data.cultures",
) -> None:
    """Raises InputError naming each unknown culture and the nearest known names.

    Args:
        left: the only cultures that the setting `by` leaves of the data's; None: it leaves all.
    """
    problems = []
    for name in wanted:
        if name not in known:
            is_left_out = left is not None and name not in left
            place = f"{by}, which leaves all others out" if is_left_out else "the data"
            near = nearest_names(name, known)
            problems.append(f"{setting}: no culture {name!r} in {place}; nearest: {near}")
    if problems:
        raise InputError("unknown cultures", problems)


def _read_document(path: Path | str) -> dict[str, Any]:
    if str(path) in PRESETS:
        return {"preset": str(path)}
    text = _read_text(Path(path))
    # The whole text: a sweep's file is kept as it is, with its comments.
    fault = text_fault(text)
    if fault is not None:
        raise InputError(f"{path}: a secret in a file of settings", [fault])
    try:
        document = read_yaml(text)
    except ValueError as error:
        lines = [line_without_secrets(line) for line in str(error).splitlines()]
        raise InputError(f"{path}: not YAML", lines) from None
    if not isinstance(document, dict):
        kind = "nothing" if document is None else type(document).__name__
        raise InputError(f"{path}: a config is a mapping of settings, got {kind}")
    return document


def _read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            # No more than shows that it is too large: a device has no end.
            return file.read(MAX_CHARACTERS + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read", [error.strerror or str(error)]) from None
    except ValueError as error:
        raise InputError(f"{path}: not UTF-8", [str(error)]) from None


def _overridden(
    document: dict[str, Any], overrides: Sequence[str], path: Path | str
) -> dict[str, Any]:
    # YAML anchors share a mapping: an override of one place must not reach the others.
    document = _merged({}, document)
    problems = []
    for override in overrides:
        setting, equals, raw = override.partition("=")
        said = f"--set {line_without_secrets(override)}"
        if not equals or not setting:
            problems.append(f"{said}: must be setting=value")
            continue
        try:
            value = read_yaml(raw)
        except ValueError:
            problems.append(f"{said}: the value is not YAML")
            continue
        try:
            set_dotted(document, setting.split("."), value)
        except TypeError:
            problems.append(f"{said}: a part of {setting!r} is not a section")
    if problems:
        raise InputError(f"{path}: {count_problems(problems)} in overrides", problems)
    secrets = list(kept_secrets(document))
    if secrets:
        raise InputError(f"{path}: {count_problems(secrets)}", secrets)
    return document


def set_dotted(document: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Sets `document[k0][k1]...`, making what is missing. Raises: TypeError at a non-section."""
    for key in keys[:-1]:
        if document.get(key) is None:
            document[key] = {}
        document = document[key]
        if not isinstance(document, dict):
            raise TypeError(key)
    document[keys[-1]] = value


def _with_preset(document: Mapping[str, Any], path: Path | str) -> dict[str, Any]:
    """`document` over the preset it names; a new mapping."""
    document = dict(document)
    name = document.pop("preset", None)
    if name is None:
        return document
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"{path}: preset = {_shown(name)}: must be one of {', '.join(PRESETS)}")
    base = PRESETS[name]
    data = document.get("data")
    own = base.get("data", {}).get("source")
    if isinstance(data, dict) and data.get("source", own) != own:
        # Another source has other settings: the preset's data section does not fit it.
        base = {key: value for key, value in base.items() if key != "data"}
    return _merged(base, document)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`: mappings merged, everything else replaced; neither is changed."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(value, dict):
            result[key] = _merged(below if isinstance(below, dict) else {}, value)
        else:
            result[key] = value
    return result


def validate(section: type[SectionT], document: Mapping[str, Any], path: Path | str) -> SectionT:
    """`document` as a `section`. Raises: InputError naming every problem in the user's words."""
    try:
        return section.model_validate(document)
    except ValidationError as error:
        problems = [_problem(e, section) for e in error.errors()]
        raise InputError(f"{path}: {count_problems(problems)}", problems) from None


def _problem(error: Any, section: type[Section]) -> str:
    where = ".".join(map(str, error["loc"]))
    match error["type"]:
        case "extra_forbidden":
            name = str(error["loc"][-1]) if error["loc"] else ""
            meant = nearest_setting(where, _settings(section))
            nearest = f"; nearest: {meant}" if meant else ""
            return f"{where} = {_shown(error['input'], name)}: no such setting{nearest}"
        case "invalid_key":
            return f"{where}: no such setting"
        case "value_error":
            message = str(error["ctx"]["error"])
            return f"{where}: {message}" if where else message
        case "plugin":
            return f"{where} = {_shown(error['input'])}: {error['msg']}"
        case "missing":
            return f"{where}: must be set"
        case "too_short":
            least = error["ctx"]["min_length"]
            values = "value" if least == 1 else "values"
            return f"{where} = {_shown(error['input'])}: must have at least {least} {values}"
        case "model_type" | "model_attributes_type":
            return f"{where} = {_shown(error['input'])}: must be a section of settings"
    message = error["msg"].removeprefix("Input should be ")
    return f"{where} = {_shown(error['input'])}: must be {message}"


def _settings(section: type[Section], prefix: str = "") -> Iterator[str]:
    """All settings of a section, dotted; of the data, those of every source, and of methods."""
    for name, field in section.model_fields.items():
        below = inner_sections(field.annotation)
        if DataSection in below:
            below = [source.settings for source in SOURCES.usable()]
        elif Section in below:
            for method in METHODS.usable():
                if method.settings is not None:
                    yield from _settings(method.settings, f"{prefix}{name}.{method.name}.")
        elif not below:
            yield f"{prefix}{name}"
        for inner in below:
            yield from _settings(inner, f"{prefix}{name}.")


def count_problems(problems: Sequence[str]) -> str:
    return f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"


def _shown(value: Any, name: str = "") -> str:
    """A setting's value in one line, as YAML writes it; a secret's is not shown."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = " ".join(str(without_secrets(value, name)).split())
    return text if len(text) <= 60 else text[:57] + "..."
