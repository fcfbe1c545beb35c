"""The report's figures: results in, a matplotlib Figure out; as inline SVG or as a PNG file."""

import html
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from math import isfinite, isqrt, nan
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from scpo_ray.report.labels import apart
from scpo_ray.report.order import control_evaluations, trained_on
from scpo_ray.results import ComparisonResult, CultureEvaluation, Estimate, RunResult
from scpo_ray.settings.methods import usable_methods
from scpo_ray.statistics.intervals import verdict

MAX_CURVE_POINTS = 200
# Of each kind of picture, and of a matrix' rows and columns: more take minutes and tens of MB.
MAX_CULTURES = 24
MAX_CELLS = 3_600
"""Of all matrices of a page: each cell takes about 3 ms."""
MAX_LABEL = 26
PANEL = (3.5, 2.7)
"""Width and height of a panel, in inches."""
HOVER = "hover: "
"""How the id of a mark begins that says something when the pointer is on it."""
STRONGEST_CHANGE = 0.15
"""The change in accuracy at which the matrix has its fullest colour."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a method is drawn: marker and dashes tell it apart where colour does not."""

    ink: str
    marker: str
    dashes: str


# On white, and on a dark page where the SVG refers to them by variable. After Okabe and Ito's
# colour-blind-safe set, darkened where thin lines need it on white.
INKS = {
    "ink": ("#20262e", "#e4e7eb"),
    "soft": ("#69717c", "#9aa3ae"),
    "rule": ("#d9dde2", "#3a4149"),
    "paper": ("#fefefe", "#15181c"),
    "better": ("#0072b1", "#4fa8e8"),
    "worse": ("#d65e00", "#ff8b45"),
}
STYLES = {
    "random": Style("soft", "x", ":"),
    "longer": Style("soft", "+", ":"),
    "global_noise": Style("soft", "1", ":"),
}
INKS |= {m.name: (m.style.ink, m.style.ink_on_dark) for m in usable_methods()}
METHOD_STYLES = {m.name: Style(m.name, m.style.marker, m.style.dashes) for m in usable_methods()}
STYLES = METHOD_STYLES | STYLES
OTHER_STYLE = Style("ink", "*", "-")

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INKS["ink"][0],
    "axes.edgecolor": INKS["soft"][0],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INKS["rule"][0],
    "xtick.color": INKS["soft"][0],
    "ytick.color": INKS["soft"][0],
    "text.color": INKS["ink"][0],
    "text.parse_math": False,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


Point = tuple[str, Mapping[str, Estimate]]
"""A method or control, and its accuracy by layer."""


@dataclass(frozen=True, slots=True)
class Picture:
    """`section`: where in the page; `name`: unique, safe as a file's name and as an id; `subject`:
    the culture or method that it is of, "" where of several; `names`: what its legend must tell."""

    section: str
    name: str
    title: str
    figure: Figure
    subject: str = ""
    names: tuple[str, ...] = ()


def draw(results: Sequence[RunResult], comparison: ComparisonResult | None) -> list[Picture]:
    """Every figure of the report, in the page's order. `results` as `in_order` gives them.

    Of many cultures the first `MAX_CULTURES` are drawn; the page's tables have all of them.
    """
    drawn: list[Picture] = []

    def add(
        section: str, title: str, figure: Figure, *, of: str, names: Sequence[str] = ()
    ) -> None:
        number = sum(p.section == section for p in drawn) + 1
        name = f"{section}-{number:02d}"
        drawn.append(Picture(section, name, title, figure, of, tuple(names)))

    tested = control_evaluations(results)
    placed = _tradeoffs(results, comparison, tested)
    across = _shared_range([p for points in placed.values() for p in points])
    for culture, points in placed.items():
        name = culture or "Macro mean over cultures"
        figure = tradeoff_figure(points, title=name, up=across)
        add("tradeoff", f"All against distinctive: {name}", figure, of=culture)
    by_mixture: dict[str, list[RunResult]] = {}
    for run in results:
        by_mixture.setdefault(trained_on(run), []).append(run)
    for mixture, runs in list(by_mixture.items())[:MAX_CULTURES]:
        if any(run.curve.step for run in runs):
            figure = loss_figure(runs, title=mixture)
            names = [run.method for run in runs if run.curve.step]
            add("loss", f"Training loss: {mixture}", figure, of=mixture, names=names)
    for culture in list(dict.fromkeys(c for r in results for c in r.selection))[:MAX_CULTURES]:
        # Seeds share the selection; a method that leaves every weight at 1 has nothing to show.
        firsts: dict[str, RunResult] = {}
        for run in results:
            if culture in run.selection and _spreads(run, culture):
                firsts.setdefault(run.method, run)
        if firsts:
            figure = weight_figure(culture, list(firsts.values()), title=culture)
            title = f"Weights of the selected training pairs: {culture}"
            add("weights", title, figure, of=culture, names=list(firsts))
    trained = list(dict.fromkeys(r.method for r in results if r.method != "global"))
    side = matrix_side(len(trained))
    for method in trained:
        models = {trained_on(r): r.evaluation for r in reversed(results) if r.method == method}
        names = [n for n in dict.fromkeys([*tested, *by_mixture]) if n in models]
        rows = [(name, models[name]) for name in names[:side]]
        figure = matrix_figure(rows, list(tested)[:side], title=method)
        add("matrix", f"{method}: model by tested culture", figure, of=method)
    return drawn


def matrix_side(num_methods: int) -> int:
    """Cultures of each method's matrix: all matrices together have `MAX_CELLS` cells."""
    return min(MAX_CULTURES, isqrt(MAX_CELLS // max(1, num_methods)))


def _tradeoffs(
    results: Sequence[RunResult],
    comparison: ComparisonResult | None,
    tested: Mapping[str, CultureEvaluation],
) -> dict[str, list[Point]]:
    """Culture ("" for the macro mean) -> its points with a number on both layers, if any."""
    cultures = ["", *comparison.cultures] if comparison else [*tested]
    found: dict[str, list[Point]] = {}
    for culture in cultures[: MAX_CULTURES + (comparison is not None)]:
        shared = tested.get(culture)
        points: list[Point] = list(shared.controls.items()) if shared else []
        if comparison:
            points += [(s.method, s.accuracy) for s in comparison.summaries if s.culture == culture]
        else:
            points += [("global", shared.before)] if shared else []
            own = [r for r in results if r.culture_weights.get(culture) and culture in r.evaluation]
            points += [(r.method, r.evaluation[culture].after) for r in own]
        both = [p for p in points if has_number(p[1], "all") and has_number(p[1], "distinctive")]
        if both:
            found[culture] = both
    return found


def _shared_range(points: Sequence[Point]) -> tuple[float, float]:
    """The lowest and the highest end on `all`, in %, and some room."""
    ends = [e for _, layers in points for e in percentages(layers["all"]) if isfinite(e)]
    return (min(ends, default=0.0) - 2, max(ends, default=100.0) + 2)


_LETTER = 2.2
"""Width of a letter in a panel of the trade-off, in points of accuracy."""

_LINE = 0.065
"""Height of a name there, as a share of the panel's."""


def tradeoff_figure(points: Sequence[Point], *, title: str, up: tuple[float, float]) -> Figure:
    """Accuracy on all test pairs against the distinctive ones, in %, with 95 % intervals.

    `points`: what to mark and its estimates, which have a number on both layers. `up`: the range
    on all pairs, that of the page's other panels too.
    """
    figure, axes = one_panel(title)
    marks = []
    for name, layers in points:
        (x, *across), (y, *along) = percentages(layers["distinctive"]), percentages(layers["all"])
        line: dict[str, Any] = {"color": INKS[style_of(name).ink][0], "lw": 1, "alpha": 0.4}
        axes.hlines(y, *across, **line)
        axes.vlines(x, *along, **line)
        [mark] = axes.plot(x, y, **_marker(name), zorder=3, clip_on=False)
        on_hover(mark, f"{name}: all {y:.1f} %, distinctive {x:.1f} %")
        marks.append((name, x, y))
    # Beside the mark, on the side where there is room.
    boxes = []
    for name, x, y in marks:
        width = _LETTER * len(name)
        boxes.append((x, x + width, y) if x < 65 else (x - width, x, y))
    heights = apart(boxes, _LINE * (up[1] - up[0]))
    for (name, x, _), middle in zip(marks, heights, strict=True):
        side, shift = ("left", 6) if x < 65 else ("right", -6)
        text: dict[str, Any] = {"textcoords": "offset points", "fontsize": 6.5, "va": "center"}
        text |= {"ha": side, "color": INKS[style_of(name).ink][0], "zorder": 4}  # above all marks
        axes.annotate(name, (x, middle), (shift, 0), **text)
    axes.set_xlabel("distinctive, %")
    axes.set_ylabel("all, %")
    axes.set_xlim(-4, 104)
    axes.set_ylim(*up)
    axes.axvline(50, color=INKS["soft"][0], lw=0.7, ls=":", zorder=0)
    return figure


def loss_figure(runs: Sequence[RunResult], *, title: str) -> Figure:
    """Training loss by step: a line per run, thinned to at most `MAX_CURVE_POINTS` points."""
    figure, axes = one_panel(title)
    for run in runs:
        style, rows = style_of(run.method), thinned(len(run.curve.step))
        steps, loss = [run.curve.step[i] for i in rows], [run.curve.loss[i] for i in rows]
        line: dict[str, Any] = {"color": INKS[style.ink][0], "ls": style.dashes, "alpha": 0.85}
        axes.plot(steps, loss, label=run.method, lw=1.1, **line)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    return figure


def weight_figure(culture: str, runs: Sequence[RunResult], *, title: str) -> Figure:
    """Selected training pairs by weight, one outline per run; weights above 1 stand apart."""
    groups: dict[bool, list[RunResult]] = {}
    for run in runs:
        groups.setdefault(run.selection[culture].histogram_edges[-1] > 1, []).append(run)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(3.5, 2.5), layout="constrained")
        panels = figure.subplots(1, len(groups), squeeze=False)[0]
        figure.suptitle(label(title), x=0.02, ha="left", fontsize=9, weight="bold")
    for axes, above_one in zip(panels, sorted(groups), strict=True):
        for run in groups[above_one]:
            summary, style = run.selection[culture], style_of(run.method)
            counts, edges = summary.histogram_counts, summary.histogram_edges
            line: dict[str, Any] = {"color": INKS[style.ink][0], "ls": style.dashes, "lw": 1.3}
            axes.stairs(counts, edges, label=run.method, **line)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("weight above 1" if above_one else "weight")
    panels[0].set_ylabel("pairs (log scale)")
    return figure


def matrix_figure(
    rows: Sequence[tuple[str, Mapping[str, CultureEvaluation]]],
    cultures: Sequence[str],
    *,
    title: str,
) -> Figure:
    """Accuracy on all pairs, in %, of each model (row) on each culture's test pairs (column).

    Below it the change from the global model in points. A cell is coloured only where the
    change's interval leaves out 0, fully at `STRONGEST_CHANGE`.
    """
    width, height = 1.9 + 0.56 * len(cultures), 1.5 + 0.36 * len(rows)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(max(width, 3.5), height), layout="constrained")
        axes = figure.subplots()
    for i, (name, evaluation) in enumerate(rows):
        for j, culture in enumerate(cultures):
            if culture in evaluation:
                _matrix_cell(axes, i, j, evaluation[culture], own=name == culture)
    axes.set_xlim(-0.5, len(cultures) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    names = [label(culture, 16) for culture in cultures]
    axes.set_xticks(range(len(cultures)), names, rotation=40, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [label(name, 20) for name, _ in rows])
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.grid(False)
    axes.set_frame_on(False)
    axes.set_ylabel("trained on")
    axes.set_title(label(title), loc="left", fontsize=9, weight="bold")
    return figure


def legend_figure(names: Sequence[str]) -> Figure:
    """What each marker and line means, for the panels of a page that share one legend."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(7.6, 0.3 * (1 + (len(names) - 1) // 7)))
        handles = [Line2D([], [], ls=style_of(n).dashes, lw=1.1, **_marker(n)) for n in names]
        figure.legend(handles=handles, loc="center", ncols=min(7, len(names)), fontsize=8.5)
    return figure


def style_of(name: str) -> Style:
    return STYLES.get(name, OTHER_STYLE)


def thinned(length: int) -> list[int]:
    """At most `MAX_CURVE_POINTS` of `length` rows, evenly spread, the first and last among them."""
    if length <= MAX_CURVE_POINTS:
        return list(range(length))
    last = MAX_CURVE_POINTS - 1
    return [i * (length - 1) // last for i in range(MAX_CURVE_POINTS)]


def label(text: str, longest: int = MAX_LABEL) -> str:
    """`text` on one line, printable, its middle left out where it is longer than `longest`."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(text) <= longest:
        return text
    tail = longest // 3
    return f"{text[: longest - tail - 1]}…{text[-tail:]}"


def on_hover(artist: Any, said: str) -> None:
    """What the page says when the pointer is on a mark."""
    artist.set_gid(f"{HOVER}{said}")


def to_svg(figure: Figure, *, title: str, key: str) -> str:
    """`figure` as an inline <svg> that takes its colours from the page's variables.

    Args:
        title: what a screen reader says.
        key: tells the ids of this figure from those of the page's others.
    """
    stream = StringIO()
    with _drawing({"svg.hashsalt": key}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        if layout := figure.get_layout_engine():
            # By hand: `savefig` would lay out, draw all without a trace, and draw again.
            layout.execute(figure)
            figure.set_layout_engine(None)
        figure.savefig(stream, format="svg", metadata=nothing)
        figure.set_layout_engine(layout)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r' width="[\d.]+pt"| height="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r' d="[^"]*"', lambda d: re.sub(r"(\.\d)\d+", r"\1", d.group()), svg)
    svg = re.sub(rf'<g id="{HOVER}([^"]*)">', r"<g><title>\1</title>", svg)
    referenced = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda i: i.group() if i[1] in referenced else "", svg)
    for name, (on_white, _) in INKS.items():
        svg = svg.replace(on_white, f"var(--{name})")
    said, width = html.escape(title), 1.25 * figure.get_figwidth()
    opening = f'<svg role="img" style="max-width:{width:.1f}in" aria-label="{said}"'
    return svg.replace("<svg", opening, 1).replace(">", f"><title>{said}</title>", 1)


def standing_alone(svg: str) -> str:
    """An inline <svg> of `to_svg` as a file of its own, with the page's colours in it."""
    colours = [
        f":root{{{';'.join(f'--{name}:{of[dark]}' for name, of in INKS.items())}}}"
        for dark in (0, 1)
    ]
    style = f"{colours[0]}@media(prefers-color-scheme:dark){{{colours[1]}}}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    opened = svg.replace("<svg", f"<svg {spaces}", 1)
    return opened.replace("</title>", f"</title><style>{style}</style>", 1)


def save_png(figure: Figure, path: Path) -> None:
    """`figure` as a PNG file on white, with a legend of its own where its lines are named."""
    with _drawing({}):
        handles: dict[str, Any] = {}
        for axes in figure.axes:
            for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(name, handle)
        if handles:
            figure.set_figheight(figure.get_figheight() + 0.6)
            names, lines = list(handles), list(handles.values())
            figure.legend(lines, names, loc="outside lower center", ncols=4, fontsize=7)
        figure.savefig(path, format="png", dpi=160, facecolor="white")


def one_panel(title: str, size: tuple[float, float] = PANEL) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.set_title(label(title, int(7.5 * size[0])))
    return figure, axes


def has_number(layers: Mapping[str, Estimate], layer: str) -> bool:
    return layer in layers and layers[layer].value is not None


def percentages(estimate: Estimate) -> list[float]:
    """Value, low, high in %; NaN, which is not drawn, where there is no number."""
    numbers = (estimate.value, estimate.low, estimate.high)
    return [nan if number is None else 100 * number for number in numbers]


def _spreads(run: RunResult, culture: str) -> bool:
    return sum(count > 0 for count in run.selection[culture].histogram_counts) > 1


def _marker(name: str) -> dict[str, Any]:
    style, size = style_of(name), 8 if name == "scpo" else 6
    return dict(color=INKS[style.ink][0], marker=style.marker, markersize=size, label=name)


def _matrix_cell(axes: Axes, row: int, column: int, tested: CultureEvaluation, own: bool) -> None:
    estimate, change = tested.after.get("all"), tested.difference.get("all")
    shown = "–" if estimate is None or estimate.value is None else f"{100 * estimate.value:.1f}"
    corner = (column - 0.47, row - 0.46)
    found = verdict(change)
    # A change that is printed as 0 has no colour.
    printed = 0.0 if change is None else round(100 * (change.value or 0.0), 1)
    strong = found in ("better", "worse") and printed != 0
    # The text of a cell lies within the axes: the layout need not measure thousands of them.
    within: dict[str, Any] = {"ha": "center", "va": "center", "in_layout": False}
    if change is not None and change.value is not None:
        if strong and isfinite(change.value):
            ink = INKS[found][0]
            alpha = 0.08 + 0.5 * min(abs(change.value) / STRONGEST_CHANGE, 1)
            axes.add_patch(Rectangle(corner, 0.94, 0.92, color=ink, alpha=alpha, lw=0))
        points = f"{100 * change.value:+z.1f}".replace("-", "−")
        color = INKS["ink" if strong else "soft"][0]
        axes.text(column, row + 0.22, points, fontsize=6.5, color=color, **within)
    ink = INKS["ink"][0]
    axes.text(column, row - 0.16, shown, fontsize=8, color=ink, **within)
    if own:
        axes.add_patch(Rectangle(corner, 0.94, 0.92, fill=False, edgecolor=ink, lw=1.0))


@contextmanager
def _drawing(settings: Mapping[Any, str]) -> Iterator[None]:
    with matplotlib.rc_context({**SETTINGS, **settings}), warnings.catch_warnings():
        # The bundled font lacks scripts and emoji; in the page the browser has its own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
