"""Cells, rows and tables of a page, and how numbers read in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from scpo_ray.report.order import trained_on
from scpo_ray.report.pictures import label
from scpo_ray.results import Difference, Estimate, RunResult, SelectionSummary, Verdict
from scpo_ray.statistics.intervals import verdict

MAX_CHARACTERS = 700


TONES: dict[Verdict, str] = {
    "better": "up",
    "worse": "down",
    "not distinguishable": "noise",
    "unknown": "noise",
}
"""How a difference's cell reads."""


UNSHOWN = ("not distinguishable", "unknown")
"""The verdicts that a cell says in words; the others are its colour and its sign."""


NONE = "–"
ISOLATES = "\N{FIRST STRONG ISOLATE}\N{POP DIRECTIONAL ISOLATE}"


@dataclass(frozen=True, slots=True)
class Cell:
    """A number as text, what stands below it, how it reads and what hovering over it says.

    `drawn`: a difference whose interval is drawn beside the number.
    """

    main: str
    lines: tuple[str, ...] = ()
    tone: str = ""
    hint: str = ""
    drawn: Difference | None = None


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    size: str
    kind: str
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class Table:
    """`columns`: (name, its size)."""

    title: str
    corner: str
    columns: list[tuple[str, str]]
    rows: list[Row]

    @property
    def is_empty(self) -> bool:
        return all(cell.main == NONE for row in self.rows for cell in row.cells)

    @property
    def widest(self) -> float:
        """How far from 0 the furthest end of what is drawn in the cells lies; 0 without any."""
        drawn = [cell.drawn for row in self.rows for cell in row.cells if cell.drawn]
        ends = [end for d in drawn for end in (d.value, d.low, d.high) if end is not None]
        return max(map(abs, ends), default=0.0)


def scaled(scale: float | None, before: str = "") -> str:
    """How much surer a model is of what the global one says, too."""
    return "" if scale is None else f"{before}margins × {scale:.2f}"


def cell_of(found: Estimate | Difference | None, unit: str, seed_sd: float | None = None) -> Cell:
    if found is None or found.value is None:
        return Cell(NONE)
    hint = size_of(found, unit)
    if isinstance(found, Estimate):
        sd = () if seed_sd is None else (f"sd {100 * seed_sd:.1f}",)
        return Cell(percent(found.value), (interval(found), *sd), "", hint)
    shown = verdict(found)
    below = (interval(found), _p_value(found), *([shown] if shown in UNSHOWN else []))
    if found.detectable is not None:
        hint += f"; shows {100 * found.detectable:.1f} points in 80 % of cases"
    return Cell(points(found.value), below, tone_of(found), hint)


def tone_of(found: Difference) -> str:
    """How a difference reads; one that is printed as 0 has no colour, whatever it shows."""
    if found.value is None or round(100 * found.value, 1) == 0:
        return "noise"
    return TONES[verdict(found)]


def selection_cell(found: SelectionSummary | None) -> Cell:
    if found is None:
        return Cell(NONE)
    kept = f"{found.num_selected:,} of {found.num_pairs:,}"
    return Cell(percent(found.kept_share), (kept, f"mean weight {found.mean_weight:.2f}"))


def change_over(change: Difference | None, against: str) -> str:
    if change is None or change.value is None:
        return ""
    # Settings of a sweep are told apart by their intervals alone.
    said = [] if change.p_value is None else [_p_value(change)]
    said += [shown] if (shown := verdict(change)) in UNSHOWN else []
    in_brackets = f" ({', '.join(said)})" if said else ""
    return f"; {points(change.value)} points {interval(change)} {against}{in_brackets}"


def percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f}"


def points(change: float | None) -> str:
    return NONE if change is None else f"{100 * change:+z.1f}".replace("-", "\N{MINUS SIGN}")


def interval(found: Estimate | Difference) -> str:
    if found.low is None or found.high is None:
        return "[no interval]"
    shown = points if isinstance(found, Difference) else percent
    return f"[{shown(found.low)}, {shown(found.high)}]"


def _p_value(change: Difference) -> str:
    """The p-value, which goes with the interval, and beside it that after Holm's correction."""
    p, corrected = change.p_value, change.p_holm
    if p is None:
        return f"p {NONE}"
    holm = "" if corrected is None or corrected == p else f", Holm {_shown_p(corrected)}"
    return f"p {_shown_p(p)}{holm}"


def _shown_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def size_of(found: Estimate | Difference | None, unit: str) -> str:
    return "" if found is None else f"{found.num_pairs:,} pairs, {found.num_clusters:,} {unit}"


def strip(found: Difference, widest: float) -> Markup:
    """A difference's dot and interval as a small picture, 0 in its middle.

    Args:
        widest: what lies at its edges; the same for all of a table's.
    """
    if found.value is None or not widest:
        return Markup("")

    def place(end: float) -> str:
        return f"{60 + 56 * end / widest:.1f}"

    line = ""
    if found.low is not None and found.high is not None:
        line = f'<path d="M{place(found.low)} 8H{place(found.high)}" class="bar"/>'
    tone = tone_of(found)
    return Markup(
        f'<svg class="strip {tone}" viewBox="0 0 120 16" aria-hidden="true">'
        f'<path d="M60 0V16" class="zero"/>{line}<circle cx="{place(found.value)}" cy="8" r="4"/>'
        "</svg>"
    )


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def unit_of(results: Sequence[RunResult]) -> str:
    """What intervals resample, by the data's settings."""
    if any(r.opinions for r in results):
        return "questions"
    columns = [r.config.get("data", {}).get("columns") for r in results]
    if any(c is None or c.get("user") for c in columns):
        return "users"
    return "questions" if any(c.get("question") for c in columns) else "interactions"


def shortened(text: str, longest: int = MAX_CHARACTERS) -> str:
    more = len(text) - longest
    return text if more <= 0 else f"{text[:longest]} … ({more:,} more characters)"


def isolated(name: str, longest: int = 40) -> str:
    """A name inside a sentence, safe for writing that runs the other way."""
    return f"{ISOLATES[0]}{label(name, longest)}{ISOLATES[1]}"


def run_name(result: RunResult) -> str:
    return f"{result.method}, {label(trained_on(result), 40)}, seed {result.seed}"


def model_and_data(config: Mapping[str, Any]) -> str:
    model, data = config.get("model", {}), config.get("data", {})
    source = data.get("path") or data.get("hub") or data.get("source", NONE)
    return f"global model {model.get('path', NONE)}, data {source}"
