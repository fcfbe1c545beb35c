"""The answer's picture: how far behind the best one the others are, a row per culture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from scpo_ray.report.pictures import INKS, SETTINGS, label, on_hover, style_of
from scpo_ray.results import ComparisonResult, Difference
from scpo_ray.statistics.intervals import standing

MAX_LINES = 96
"""Dots of one picture: of more, the first cultures'."""
DWARFED = 4.0
"""So many times further away than the next, one method would press all others into a line."""


@dataclass(frozen=True)
class Line:
    """A dot with its interval; `name` is written beside it."""

    name: str
    change: Difference


def behind_lines(comparison: ComparisonResult, *, with_behind: bool) -> dict[str, list[Line]]:
    """Culture ("" for the macro mean) -> its methods' differences from the best, in their order.

    Args:
        with_behind: whether those that are shown to be behind are among them; the global model
            is in any case.

    Returns: of many cultures the first; none with a single line.
    """
    rows: dict[str, list[Line]] = {c: [] for c in ("", *comparison.cultures)}
    for s in comparison.summaries:
        estimate = s.accuracy.get("all")
        stands = standing(estimate, s.minus_best)
        if stands == "best" and estimate:
            sizes = (estimate.num_pairs, estimate.num_clusters)
            nothing = Difference(0.0, None, None, None, None, *sizes)
            rows[s.culture].append(Line(s.method, nothing))
        elif s.minus_best and s.minus_best.value is not None:
            if with_behind or stands != "behind" or s.method == "global":
                rows[s.culture].append(Line(s.method, s.minus_best))
    kept, number = {}, 0
    for culture, lines in rows.items():
        number += len(lines)
        if number > MAX_LINES:
            break
        if len(lines) > 1:
            kept[culture] = lines
    return kept


def answer_figure(rows: Mapping[str, Sequence[Line]]) -> Figure:
    """Points behind the best method, with intervals that hold for all at once.

    Args:
        rows: as `behind_lines` gives them, a row at least.
    """
    number = sum(map(len, rows.values()))
    with matplotlib.rc_context(SETTINGS):
        size = (5.2, 0.6 + 0.14 * number + 0.11 * len(rows))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
    place, ticks = 0.0, []
    for culture, lines in rows.items():
        ticks.append((place + (len(lines) - 1) / 2, label(culture) or "Macro mean"))
        for line in lines:
            _dot(axes, place, line)
            place += 1
        axes.axhline(place - 0.1, color=INKS["rule"][0], lw=0.8)
        place += 0.8
    axes.axvline(0, color=INKS["soft"][0], lw=0.9, zorder=0)
    axes.set_ylim(place - 0.9, -0.9)
    axes.set_yticks([t for t, _ in ticks], [name for _, name in ticks])
    axes.tick_params(axis="y", length=0, labelsize=8.5, labelcolor=INKS["ink"][0])
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("points of accuracy on all pairs, minus the best method's")
    spread_out(axes, [line.change for lines in rows.values() for line in lines])
    return figure


def spread_out(axes: Any, changes: Sequence[Difference]) -> None:
    """A scale on which one difference that dwarfs the others, intervals and all, leaves these
    apart."""
    reaches = {max(abs(end or 0.0) for end in (c.value, c.low, c.high)) for c in changes if c.value}
    sizes = sorted(100 * reach for reach in reaches)
    gaps = [low for low, high in zip(sizes, sizes[1:], strict=False) if high > DWARFED * low]
    # Below the widest gap the scale is linear, so that nothing near 0 is stretched.
    if gaps and sizes[-1] > DWARFED * max(gaps[-1], 1.0):
        axes.set_xscale("symlog", linthresh=max(gaps[-1], 1.0), linscale=1.5)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(f"{axes.get_xlabel()}\n(logarithmic beyond the middle)")


def _dot(axes: Any, place: float, line: Line) -> None:
    change, style = line.change, style_of(line.name)
    value, color = 100 * (change.value or 0.0), INKS[style.ink][0]
    right = value
    said = f"{line.name}: {value:+.1f}"
    if change.low is not None and change.high is not None:
        right = 100 * change.high
        axes.hlines(place, 100 * change.low, right, color=color, lw=1.6, alpha=0.55)
        said += f" [{100 * change.low:+.1f}, {right:+.1f}] points"
    is_best = change.low is None and value == 0
    [mark] = axes.plot([value], [place], color=color, marker=style.marker, markersize=5.5)
    on_hover(mark, said)
    axes.annotate(
        line.name,
        (max(right, value), place),
        (7, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
        color=INKS["ink" if is_best else "soft"][0],
        weight="bold" if is_best else "normal",
    )
