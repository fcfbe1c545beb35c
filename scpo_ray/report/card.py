"""A model's card: the README.md of an exported folder. Formats numbers and computes none."""

import json
import re

from jinja2 import Environment, PackageLoader, StrictUndefined

from scpo_ray.models.elsewhere import REWARD_FUNCTION
from scpo_ray.records import LAYERS
from scpo_ray.report.cells import interval, percent, points, unit_of
from scpo_ray.results import CultureEvaluation, Difference, Estimate, RunResult, Scale
from scpo_ray.settings.naming import trained_cultures
from scpo_ray.settings.run import RunConfig


def model_card(
    result: RunResult, *, style: str, folder: str, scale: Scale | None, is_adapters: bool
) -> str:
    """Markdown of what the model is, what it was measured on, and how to load it.

    Args:
        style: how prompt and response become tokens, "pair" or "chat".
        folder: the name that a reader loads it by.
        scale: of its rewards, where one was saved.
    """
    config = RunConfig.model_validate(result.config)
    cultures = trained_cultures(result.culture_weights)
    # A path says nothing to others; the hub's names have one slash, and no folder above them.
    base, is_hub = config.model.path, re.fullmatch(r"[\w.-]+/[\w.-]+", config.model.path)
    base_on_hub = bool(is_hub) and not base.startswith((".", "models/"))
    environment = Environment(
        loader=PackageLoader("scpo_ray.report", "."),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    environment.filters |= {"md": _plain, "yaml": json.dumps}
    versions = ", ".join(f"{name} {number}" for name, number in sorted(result.versions.items()))
    return environment.get_template("card.md.jinja").render(
        result=result,
        library="peft" if is_adapters else "transformers",
        base=base if base_on_hub else base.rstrip("/").rpartition("/")[2],
        base_on_hub=base_on_hub,
        revision=f" at {config.model.revision}" if config.model.revision else "",
        cultures=" and ".join(
            [", ".join(cultures[:-1]), cultures[-1]] if cultures[1:] else cultures
        ),
        weights=", ".join(
            f"{name} ({weight:g})" for name, weight in result.culture_weights.items()
        ),
        source=_source(config, result),
        licence=config.data.licence or "not known here: see the data's publishers",
        reads=f"at most {config.model.max_length} tokens; "
        + ("prompt and response as a pair" if style == "pair" else "a conversation"),
        versions=versions,
        unit=unit_of([result]),
        layers=LAYERS,
        rows=[_row(culture, found) for culture, found in result.evaluation.items()],
        warnings=result.warnings,
        style=style,
        folder=folder,
        reward_function=REWARD_FUNCTION,
        scale=scale,
    )


def _source(config: RunConfig, result: RunResult) -> str:
    pairs = sum(summary.num_selected for summary in result.selection.values())
    users = sum(result.data[c].train_users for c in result.selection if c in result.data)
    by = f" of {users:,} people" if users else ""
    return f"{config.data.source}, {pairs:,} training pairs{by}"


def _row(culture: str, found: CultureEvaluation) -> list[str]:
    after = [found.after.get(layer) for layer in LAYERS]
    size = after[0]
    return [
        culture,
        "" if size is None else f"{size.num_pairs:,}, {size.num_clusters:,}",
        *map(_estimate, after),
        _estimate(found.before.get("all")),
        _estimate(found.difference.get("all")),
    ]


def _estimate(found: Estimate | Difference | None) -> str:
    if found is None or found.value is None:
        return ""
    shown = points if isinstance(found, Difference) else percent
    return f"{shown(found.value)} {interval(found)}"


def _plain(text: object) -> str:
    """Names from the data and paths as text: nothing in them is markup, or ends a table's row."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", line)
