"""How a sweep's settings are told apart in pictures: names, looks, marks."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from matplotlib.axes import Axes

from scpo_ray.report.pictures import (
    INKS,
    OTHER_STYLE,
    STYLES,
    Style,
    percentages,
)
from scpo_ray.results import Estimate
from scpo_ray.statistics.intervals import standing
from scpo_ray.sweep.records import SettingSummary

MAX_INTERVALS = 60
"""With more marks than this their intervals would hide them and are left out."""


LOG_SPAN = 20.0
"""A numeric axis whose highest value is over so many times its lowest has a log scale."""


TIED = Style("better", "o", "-")


BEHIND = Style("soft", "o", "-")


UNKNOWN = Style("soft", "x", ":")


BEST = Style("scpo", "*", "-")


LOOKS: dict[str, Style] = {
    "best": BEST,
    "not distinguishable": TIED,
    "behind": BEHIND,
    "unknown": UNKNOWN,
}


def short_names(axes: Sequence[str]) -> dict[str, str]:
    """Axis -> the last part of its name, or all of it where two would be called the same."""
    last = [axis.rpartition(".")[2] for axis in axes]
    return {
        axis: axis if last.count(short) > 1 else short
        for axis, short in zip(axes, last, strict=True)
    }


def shown(value: Any) -> str:
    """A setting's value as the sweep file spells it; numbers to four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(part)}" for name, part in value.items())
    return json.dumps(value, ensure_ascii=False, default=str)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def spread(rows: Sequence[SettingSummary], most: int) -> list[SettingSummary]:
    if len(rows) <= most:
        return list(rows)
    return [rows[i * (len(rows) - 1) // (most - 1)] for i in range(most)]


@dataclass(frozen=True, slots=True)
class _Look:
    name: str
    style: Style


def by_look(
    rows: Sequence[SettingSummary], *, by_method: bool
) -> list[tuple[_Look, list[SettingSummary]]]:
    """The settings by how they are drawn, those to be drawn on top last.

    By method where that is asked and an axis says it for all; else by how they stand to the best.
    """
    methods = [_method(s) for s in rows]
    if by_method and all(methods) and len(set(methods)) > 1:
        looks = [_Look(m, STYLES[m]) for m in methods if m]
    else:
        names = [standing(s.objective, s.minus_best) for s in rows]
        looks = [_Look(name, LOOKS[name]) for name in names]
    # Behind first, then what stands out.
    order = [*STYLES, *reversed(LOOKS)]
    found: dict[_Look, list[SettingSummary]] = {}
    for look, summary in zip(looks, rows, strict=True):
        found.setdefault(look, []).append(summary)
    return sorted(found.items(), key=lambda item: order.index(item[0].name))


def _method(summary: SettingSummary) -> str:
    values = [v for v in summary.setting.values.values() if isinstance(v, str)]
    return next((v for v in values if v in STYLES), "")


def line_styles(names: Sequence[str]) -> list[Style]:
    """A style each: the method's where every name holds one of its own, else by turns."""
    methods = [next((w for w in re.findall(r"\w+", n) if w in STYLES), "") for n in names]
    if all(methods) and len(set(methods)) == len(methods):
        return [STYLES[method] for method in methods]
    turns = [STYLES[m] for m in ("scpo", "finetune", "weight", "filter", "inverse", "global")]
    return [(turns + [OTHER_STYLE])[i % (len(turns) + 1)] for i in range(len(names))]


def horizontal_dots(
    axes: Axes, names: Sequence[str], marks: Sequence[tuple[Estimate | None, str]]
) -> None:
    for row, (estimate, ink) in enumerate(marks):
        if estimate is None:
            continue
        value, low, high = percentages(estimate)
        color = INKS[ink][0]
        axes.hlines(row, low, high, color=color, lw=1, alpha=0.55)
        axes.plot([value], [row], marker="o", markersize=4.5, color=color)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0, labelsize=7.5, labelcolor=INKS["ink"][0])


def marks(axes: Axes, look: _Look, xs: Sequence[float], ys: Sequence[float]) -> None:
    size = 11 if look.style is BEST else 5 if len(xs) <= MAX_INTERVALS else 3.5
    faint = 0.5 if look.style is BEHIND else 0.9
    style: dict[str, Any] = {"marker": look.style.marker, "ls": "none"}
    style |= {"markersize": size, "alpha": faint}
    axes.plot(xs, ys, color=INKS[look.style.ink][0], zorder=3, **style)


def intervals(
    axes: Axes,
    look: _Look,
    at: Sequence[float],
    estimates: Sequence[Sequence[float]],
    *,
    upright: bool,
) -> None:
    draw = axes.vlines if upright else axes.hlines
    lows, highs = [e[1] for e in estimates], [e[2] for e in estimates]
    draw(at, lows, highs, color=INKS[look.style.ink][0], lw=0.7, alpha=0.3)


def scale(axes: Axes, numbers: Sequence[float]) -> None:
    if min(numbers) > 0 and max(numbers) / min(numbers) > LOG_SPAN:
        axes.set_xscale("log")
        # The default writes its labels as mathematics, which the page's fonts do not set.
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")


def note(axes: Axes, text: str) -> None:
    """Below the axis, where a picture's caption stands."""
    axes.set_xlabel(f"{axes.get_xlabel()}\n{text}")
