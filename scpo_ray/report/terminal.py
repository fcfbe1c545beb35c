"""What terminal tables are made of: columns, rows that cannot steer the terminal, numbers."""

from rich import box
from rich.table import Table

from scpo_ray.results import Difference, Estimate
from scpo_ray.settings.shown import plain

NONE = "–"


def new_table(title: str, first: str, *numbers: str) -> Table:
    table = Table(title=plain(title), title_justify="left", box=box.SIMPLE)
    # Too narrow a terminal wraps the headers and the other cells before it cuts a name.
    table.add_column(first, no_wrap=True)
    for name in numbers:
        table.add_column(plain(name), justify="right", overflow="fold")
    return table


def add_row(table: Table, *cells: str) -> None:
    """Adds a row whose texts, which may come from the data, cannot steer the terminal."""
    table.add_row(*map(plain, cells))


def percent(estimate: Estimate | Difference | None, *, signed: bool = False) -> str:
    """Of a share, times 100, with its interval."""
    return number(estimate, signed=signed, factor=100)


def number(
    estimate: Estimate | Difference | None,
    *,
    signed: bool = False,
    factor: float = 1,
    digits: int = 1,
) -> str:
    """With its interval."""
    if estimate is None or estimate.value is None:
        return NONE
    value = f"{factor * estimate.value:{'+' if signed else ''}.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return value
    low, high = factor * estimate.low, factor * estimate.high
    return f"{value} [{low:.{digits}f}, {high:.{digits}f}]"


def points(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f}"


def p_value(p: float | None) -> str:
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
