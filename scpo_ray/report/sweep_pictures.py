"""A sweep's figures: its table in, matplotlib Figures out, in the look of a run's report."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from scpo_ray.report.pictures import (
    INKS,
    PANEL,
    SETTINGS,
    Picture,
    Style,
    has_number,
    label,
    one_panel,
    percentages,
)
from scpo_ray.report.sweep_looks import (
    LOOKS,
    MAX_INTERVALS,
    by_look,
    horizontal_dots,
    intervals,
    is_number,
    line_styles,
    marks,
    note,
    scale,
    short_names,
    shown,
    spread,
)
from scpo_ray.results import Estimate
from scpo_ray.statistics.intervals import standing
from scpo_ray.sweep.records import EfficiencyCurve, EfficiencyPoint, SettingSummary, SweepResult

MAX_MARKS = 200
MAX_RANKED = 30
MAX_LEVELS = 12
MAX_CULTURE_MAPS = 8
MAX_CULTURES = 40
MAX_CURVES = 8
MAX_AXES = 12
NARROWEST_SCALE = 5.0
"""Points of accuracy between the faintest and the fullest colour of a heat map, at least."""

PREFERRED_AXES = ("selection.filter_threshold", "selection.weight_temperature")


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Mean objective, in %, by the values of two axes, over the settings that share them.

    `cells`: (index on x, index on y) -> (mean, number of settings it is over).
    """

    title: str
    x: str
    y: str
    x_levels: list[Any]
    y_levels: list[Any]
    cells: Mapping[tuple[int, int], tuple[float, int]]


def draw_sweep(result: SweepResult) -> list[Picture]:
    """Every figure that the sweep's numbers support, in the page's order."""
    drawn: list[Picture] = []

    def add(section: str, title: str, figure: Figure) -> None:
        number = sum(p.section == section for p in drawn) + 1
        drawn.append(Picture(section, f"{section}-{number:02d}", title, figure))

    names, ranked = short_names(result.axes), with_objective(result)
    with matplotlib.rc_context(SETTINGS):
        if ranked:
            add("ranking", "The best settings by objective", ranking_figure(ranked))
            if len(ranked[0].objective_per_culture) > 1:
                figure = cultures_figure(ranked[0], result.objective["metric"])
                add("cultures", "The best setting by culture", figure)
        shares = {axis: share for axis, share in result.importance.items() if isfinite(share)}
        if shares and len(ranked) > 1:
            add("importance", "Importance of the axes", importance_figure(shares, names))
        maps = heat_maps(result)
        for heat_map in maps:
            title = f"Objective by two axes: {heat_map.title}"
            figure = heat_figure(heat_map, names, lowest_is_best=result.objective["mode"] == "min")
            add("heat", title, figure)
        mapped = {axis for heat_map in maps for axis in (heat_map.x, heat_map.y)}
        for axis, numbers in _numeric_axes(result, besides=mapped).items():
            title = f"Objective against {names.get(axis, axis)}"
            add("scatter", title, scatter_figure(names.get(axis, axis), numbers, ranked))
        curves = [c for c in result.efficiency if any(_measured(c))]
        if curves:
            add("efficiency", "Objective against selected pairs", efficiency_figure(curves))
        for x, y in (("distinctive", "all"), ("agreed", "distinctive")):
            placed = [s for s in result.settings if _on_both(s, x, y)]
            if placed:
                front = result.pareto if x == "agreed" else []
                figure = layers_figure(placed, front, x=x, y=y)
                add("layers", f"{y} against {x}, macro mean over cultures", figure)
    return drawn


def ranking_figure(ranked: Sequence[SettingSummary]) -> Figure:
    """The first `MAX_RANKED` settings' objective with its interval, the best on top.

    `ranked`: settings with an objective, best first.
    """
    rows = ranked[:MAX_RANKED]
    first = f"The best {len(rows)} of {len(ranked):,} settings"
    title = first if len(rows) < len(ranked) else "Settings by objective"
    figure, axes = one_panel(title, (7.6, 0.9 + 0.19 * len(rows)))
    named = [f"{i}  {label(s.setting.label, 52)}" for i, s in enumerate(rows, 1)]
    marks = [(s.objective, LOOKS[standing(s.objective, s.minus_best)].ink) for s in rows]
    horizontal_dots(axes, named, marks)
    axes.set_xlabel("objective, %")
    if len(rows) > 1:
        note(axes, "Orange: the best; blue: not distinguishable from it. Bars: 95 % intervals.")
    return figure


def cultures_figure(best: SettingSummary, metric: str) -> Figure:
    """The best setting's objective on each culture, highest on top."""
    ordered = sorted(best.objective_per_culture.items(), key=lambda item: -item[1])
    half = MAX_CULTURES // 2
    shown = ordered if len(ordered) <= MAX_CULTURES else ordered[:half] + ordered[-half:]
    size = (5.2, 0.9 + 0.19 * len(shown))
    figure, axes = one_panel("The best setting by culture", size)
    marks = []
    for culture, value in shown:
        ink = {ordered[0][0]: "better", ordered[-1][0]: "worse"}.get(culture, "soft")
        estimate = best.accuracy.get(culture, {}).get(metric)
        # The interval belongs to the number only where the two agree.
        same = estimate is not None and estimate.value == value
        bare = Estimate(value, None, None, 0, 0)
        marks.append((estimate if estimate is not None and same else bare, ink))
    horizontal_dots(axes, [label(culture) for culture, _ in shown], marks)
    axes.set_xlabel("objective, %")
    if len(shown) < len(ordered):
        note(axes, f"The {half} highest and the {half} lowest of {len(ordered)} cultures.")
    return figure


def importance_figure(importance: Mapping[str, float], names: Mapping[str, str]) -> Figure:
    """Share of the objective's variance between settings that each axis explains alone, in %."""
    ordered = sorted(importance.items(), key=lambda item: -item[1])
    rows = ordered[:MAX_AXES]
    size = (5.2, 0.9 + 0.24 * len(rows))
    figure, axes = one_panel("Importance of the axes", size)
    for row, (_, share) in enumerate(rows):
        axes.barh(row, 100 * share, height=0.6, color=INKS["better"][0], alpha=0.75)
        text: dict[str, Any] = {"va": "center", "fontsize": 7.5, "color": INKS["ink"][0]}
        axes.annotate(
            f"{100 * share:.0f}", (100 * share, row), (3, 0), textcoords="offset points", **text
        )
    axes.set_yticks(range(len(rows)), [label(names.get(axis, axis)) for axis, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 108)
    axes.grid(False, axis="y")
    axes.set_axisbelow(True)
    axes.set_xlabel("% of the variance between settings explained alone")
    if len(rows) < len(ordered):
        note(axes, f"The first {len(rows)} of {len(ordered)} axes.")
    return figure


def heat_maps(result: SweepResult) -> list[HeatMap]:
    """The objective by two axes, for the sweep and for its first cultures; [] without two axes.

    The axes have numbers for values (or null, or yes and no), 2 to `MAX_LEVELS` of them: those of
    the paper where they vary, else the most important ones.
    """
    levels = {axis: _levels(result, axis) for axis in result.axes}
    eligible = [axis for axis in result.axes if 2 <= len(levels[axis]) <= MAX_LEVELS]
    preferred = [axis for axis in PREFERRED_AXES if axis in eligible]
    others = [axis for axis in eligible if axis not in preferred]
    others.sort(key=lambda axis: -result.importance.get(axis, 0.0))
    if len(eligible) < 2:
        return []
    x, y = (preferred + others)[:2]

    def panel(title: str, pick: Callable[[SettingSummary], float | None]) -> HeatMap:
        found: dict[tuple[int, int], list[float]] = {}
        for s in result.settings:
            value = pick(s)
            if value is not None:
                place = tuple(levels[a].index(s.setting.values[a]) for a in (x, y))
                found.setdefault((place[0], place[1]), []).append(100 * value)
        cells = {place: (sum(v) / len(v), len(v)) for place, v in found.items()}
        return HeatMap(title, x, y, levels[x], levels[y], cells)

    whole = {"macro": "Macro mean over cultures", "worst": "The worst culture"}
    of = result.objective["culture"]
    panels = [panel(whole.get(of, of), lambda s: s.objective.value if s.objective else None)]
    measured = {c for s in result.settings for c in s.objective_per_culture}
    cultures = [c for c in result.cultures if c in measured]
    if len(cultures) > 1:
        for culture in [c for c in cultures if c != of][:MAX_CULTURE_MAPS]:
            panels.append(panel(culture, partial(_of_culture, culture)))
    return [p for p in panels if p.cells]


def heat_figure(heat_map: HeatMap, names: Mapping[str, str], *, lowest_is_best: bool) -> Figure:
    """The objective in each cell, in %; the best one outlined.

    A cell over fewer settings than the fullest one has a star: it is not quite comparable.
    """
    columns, rows = len(heat_map.x_levels), len(heat_map.y_levels)
    size = (max(PANEL[0], 1.1 + 0.4 * columns), max(PANEL[1], 1.1 + 0.26 * rows))
    figure, axes = one_panel(heat_map.title, size)
    means = [mean for mean, _ in heat_map.cells.values()]
    fullest = max(number for _, number in heat_map.cells.values())
    scale = max(max(means) - min(means), NARROWEST_SCALE)
    best = (min if lowest_is_best else max)(heat_map.cells, key=lambda p: heat_map.cells[p][0])
    fontsize = 8.0 if columns <= 6 else 6.5
    for place in ((i, j) for i in range(columns) for j in range(rows)):
        text: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": fontsize}
        if place not in heat_map.cells:
            axes.text(*place, "–", color=INKS["soft"][0], **text)
            continue
        mean, number = heat_map.cells[place]
        corner = (place[0] - 0.48, place[1] - 0.47)
        alpha = 0.04 + 0.56 * (mean - min(means)) / scale
        ink = INKS["better"][0]
        axes.add_patch(Rectangle(corner, 0.96, 0.94, color=ink, alpha=alpha, lw=0))
        if place == best:
            edge: dict[str, Any] = {"edgecolor": INKS["ink"][0], "lw": 1.4}
            axes.add_patch(Rectangle(corner, 0.96, 0.94, fill=False, **edge))
        star = "*" if number < fullest else ""
        axes.text(*place, f"{mean:.1f}{star}", color=INKS["ink"][0], **text)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(-0.5, rows - 0.5)
    axes.set_xticks(range(columns), [label(shown(v), 8) for v in heat_map.x_levels])
    axes.set_yticks(range(rows), [label(shown(v), 8) for v in heat_map.y_levels])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.set_frame_on(False)
    axes.set_xlabel(label(names[heat_map.x]))
    axes.set_ylabel(label(names[heat_map.y]))
    return figure


def scatter_figure(
    axis: str, numbers: Mapping[int, float], ranked: Sequence[SettingSummary]
) -> Figure:
    """Every setting's objective against its number on one axis.

    Args:
        numbers: a setting's number -> its value on the axis.
        ranked: settings with an objective, best first; `MAX_MARKS` of them are drawn.
    """
    placed = [s for s in ranked if s.setting.number in numbers]
    # Over the whole ranking: the first ones alone would show no axis that matters.
    rows = spread(placed, MAX_MARKS)
    figure, axes = one_panel(axis)
    objectives = {s.setting.number: s.objective for s in rows if s.objective}
    for look, group in by_look(rows, by_method=False):
        xs = [numbers[s.setting.number] for s in group]
        ys = [percentages(objectives[s.setting.number]) for s in group]
        if len(rows) <= MAX_INTERVALS:
            intervals(axes, look, xs, ys, upright=True)
        marks(axes, look, xs, [y[0] for y in ys])
    scale(axes, [numbers[s.setting.number] for s in rows])
    axes.set_xlabel(label(axis, 40))
    axes.set_ylabel("objective, %")
    if len(rows) < len(placed):
        note(axes, f"{len(rows)} of {len(placed):,} settings, evenly over the ranking.")
    return figure


def efficiency_figure(curves: Sequence[EfficiencyCurve]) -> Figure:
    """Objective against the mean number of selected training pairs, a line per method.

    Rivals are dashed. A diamond stands at the pairs a method needs to have what its rival has at
    its largest fraction, with its interval. The first `MAX_CURVES` methods and their rivals.
    """
    rivals = {c.rival for c in curves if c.pairs_to_match}
    first = {c.name for c in curves[:MAX_CURVES]}
    rows = [c for c in curves if c.name in first | {r.rival for r in curves[:MAX_CURVES]}]
    figure, axes = one_panel("Data efficiency", (7.6, 3.8))
    last = {c.name: max(_measured(c), key=lambda p: p.fraction) for c in rows}
    furthest = max(p.num_pairs for c in rows for p in _measured(c))
    handles, matched = [], 0
    for curve, style in zip(rows, line_styles([c.name for c in rows]), strict=True):
        points = sorted(_measured(curve), key=lambda p: p.num_pairs)
        xs, ys = [p.num_pairs for p in points], [percentages(p.objective) for p in points]
        dashed = curve.name in rivals and len(rivals) < len(rows)
        line: dict[str, Any] = {
            "color": INKS[style.ink][0],
            "ls": "--" if dashed else "-",
            "lw": 1.4,
        }
        mark: dict[str, Any] = {"marker": style.marker, "markersize": 5}
        lows, highs = [y[1] for y in ys], [y[2] for y in ys]
        axes.fill_between(xs, lows, highs, color=INKS[style.ink][0], alpha=0.13, lw=0)
        axes.plot(xs, [y[0] for y in ys], **line, **mark)
        handles.append(Line2D([], [], **line, **mark, label=label(curve.name, 44)))
        if curve.pairs_to_match and curve.rival in last:
            _match(axes, style, curve.pairs_to_match, last[curve.rival], furthest, matched)
            matched += 1
    for rival in sorted(rivals & last.keys()):
        level = percentages(last[rival].objective)[0]
        axes.axhline(level, color=INKS["soft"][0], lw=0.8, ls=":", zorder=0)
    scale(axes, [p.num_pairs for c in rows for p in _measured(c)])
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("selected training pairs per run, mean")
    axes.set_ylabel("objective, %")
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
    if len(rows) < len(curves):
        note(axes, f"{len(rows)} of {len(curves)} methods.")
    return figure


def layers_figure(
    placed: Sequence[SettingSummary], pareto: Collection[int], *, x: str, y: str
) -> Figure:
    """Macro accuracy on one layer against another, in %, one marker per setting.

    Args:
        placed: settings with a macro mean on both layers, best first; `MAX_MARKS` of them are
            drawn, and all those of `pareto`.
        pareto: numbers of the settings that no other beats on both layers; joined by a line.
    """
    rows = [s for i, s in enumerate(placed) if i < MAX_MARKS or s.setting.number in pareto]
    figure, axes = one_panel(f"{y} against {x}", (5.2, 4.0))
    handles = []
    for look, group in by_look(rows, by_method=True):
        across = [percentages(s.accuracy[""][x]) for s in group]
        up = [percentages(s.accuracy[""][y]) for s in group]
        xs, ys = [a[0] for a in across], [u[0] for u in up]
        if len(rows) <= MAX_INTERVALS:
            intervals(axes, look, xs, up, upright=True)
            intervals(axes, look, ys, across, upright=False)
        marks(axes, look, xs, ys)
        ink = INKS[look.style.ink][0]
        mark: dict[str, Any] = {"marker": look.style.marker, "ls": "none", "markersize": 6}
        handles.append(Line2D([], [], color=ink, **mark, label=look.name))
    on_front = [s for s in rows if s.setting.number in pareto]
    front = sorted(
        (percentages(s.accuracy[""][x])[0], percentages(s.accuracy[""][y])[0]) for s in on_front
    )
    if front:
        line: dict[str, Any] = {"color": INKS["ink"][0], "lw": 0.9, "ls": "-"}
        axes.plot([p[0] for p in front], [p[1] for p in front], zorder=2, **line)
        handles.append(Line2D([], [], **line, label="Pareto front"))
    axes.set_xlabel(f"{x}, %")
    axes.set_ylabel(f"{y}, %")
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7.5)
    if len(rows) < len(placed):
        note(axes, f"The first {len(rows)} of {len(placed):,} settings.")
    return figure


def with_objective(result: SweepResult) -> list[SettingSummary]:
    """The settings that have one, best first."""
    return [s for s in result.settings if s.objective and s.objective.value is not None]


def _of_culture(culture: str, summary: SettingSummary) -> float | None:
    return summary.objective_per_culture.get(culture)


def _levels(result: SweepResult, axis: str) -> list[Any]:
    """The axis' values in order, null last; [] where one is neither that nor a number."""
    found: list[Any] = []
    for s in result.settings:
        value = s.setting.values.get(axis, "")
        if value is not None and not is_number(value) and not isinstance(value, bool):
            return []
        if value not in found:
            found.append(value)
        if len(found) > MAX_LEVELS:
            break
    return sorted(found, key=lambda v: (v is None, 0 if v is None else v))


def _numeric_axes(result: SweepResult, besides: Collection[str]) -> dict[str, dict[int, float]]:
    """Axis -> setting's number -> value, of those with three distinct numbers or more.

    Shares drawn together (a dict) are an axis each. Null, which has no place on a line, is left
    out. The most important `MAX_AXES`.
    """
    found: dict[str, dict[int, float]] = {}
    importance: dict[str, float] = {}
    for axis in result.axes:
        if axis in besides:
            continue
        for s in with_objective(result):
            value = s.setting.values.get(axis)
            parts = value if isinstance(value, dict) else {"": value}
            for part, number in parts.items():
                if number is not None and is_number(number):
                    name = f"{axis}: {part}" if part else axis
                    found.setdefault(name, {})[s.setting.number] = number
                    importance[name] = result.importance.get(axis, 0.0)
    several = [name for name, numbers in found.items() if len(set(numbers.values())) > 2]
    several.sort(key=lambda name: -importance[name])
    return {name: found[name] for name in several[:MAX_AXES]}


def _on_both(summary: SettingSummary, x: str, y: str) -> bool:
    macro = summary.accuracy.get("", {})
    return has_number(macro, x) and has_number(macro, y)


def _measured(curve: EfficiencyCurve) -> list[EfficiencyPoint]:
    return [p for p in curve.points if p.objective.value is not None]


def _match(
    axes: Axes,
    style: Style,
    pairs_to_match: tuple[float, float, float],
    rival: EfficiencyPoint,
    furthest: float,
    row: int,
) -> None:
    """A diamond where the method has what `rival` has; none where it never does."""
    value, low, high = (share * rival.num_pairs for share in pairs_to_match)
    level = percentages(rival.objective)[0]
    if not isfinite(value):
        return
    color = INKS[style.ink][0]
    # An interval without an end goes on to the right edge.
    axes.hlines(level, low, min(high, furthest), color=color, lw=3, alpha=0.35)
    diamond: dict[str, Any] = {"marker": "D", "markersize": 7, "mec": INKS["paper"][0]}
    axes.plot([value], [level], color=color, zorder=4, **diamond)
    axes.annotate(
        f"{pairs_to_match[0]:.2f}",
        (value, level),
        (7, -13 - 10 * row),
        textcoords="offset points",
        fontsize=8,
        color=color,
    )
