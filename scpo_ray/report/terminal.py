"""How all tables of a terminal are made: their cells, and how they fit its width."""

import textwrap
from collections.abc import Iterator, Sequence

from rich import box
from rich.cells import cell_len
from rich.table import Column, Table

from scpo_ray.settings.shown import plain

_BETWEEN = 3
"""Characters that a column takes beside its content: a blank on each side and a divider."""
_MIN_TEXT = 24
"""Narrowest column of sentences that can still be read."""


def titled(title: str, first: str, *others: str, words: Sequence[str] = ()) -> Table:
    """Columns of numbers, which stay whole on every terminal, but for those named in `words`."""
    table = Table(title=plain(title), title_justify="left", box=box.SIMPLE)
    table.add_column(first)
    for name in others:
        table.add_column(plain(name), justify="left" if name in words else "right")
    return table


def add_row(table: Table, *cells: str) -> None:
    """Adds a row whose texts, which may come from the data, cannot steer the terminal."""
    table.add_row(*map(plain, cells))


def points(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def size(num_bytes: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"


def fitted(table: Table, width: int) -> list[Table]:
    """The table in one piece if its lines fit `width` characters, else in several.

    Rule: a cell of a right-justified column is never broken; its header is, between words. A
    column of text is wrapped between words. Columns that do not fit beside the ones before them
    follow in a table of their own below, behind the first column, which says whose they are.

    Args:
        table: cells are text; the first column names the rows.
        width: characters of a line.
    """
    first, *others = table.columns
    width -= 1  # The right edge.
    widest = max(width // 3, _MIN_TEXT) if others else width - _BETWEEN
    name_width = min(_content_width(first), widest)
    pieces: list[list[tuple[Column, int]]] = [[]]
    left = width - name_width - _BETWEEN
    for column in others:
        wanted = _needed(column)
        if pieces[-1] and wanted + _BETWEEN > left:
            pieces.append([])
            left = width - name_width - _BETWEEN
        pieces[-1].append((column, wanted))
        left -= wanted + _BETWEEN
    whole = [
        _piece(table, [(first, name_width), *_widened(piece, width - name_width - _BETWEEN)])
        for piece in pieces
    ]
    whole[0].title = table.title
    whole[-1].caption = table.caption
    return whole


def _content_width(column: Column) -> int:
    texts = [str(column.header), *map(str, column.cells)]
    return max((cell_len(line) for text in texts for line in text.splitlines()), default=0)


def _needed(column: Column) -> int:
    """The narrowest width: all of each number, the longest word of the header, some of a text."""
    if column.justify != "right":
        return min(_content_width(column), _MIN_TEXT)
    words = str(column.header).split()
    lines = (line for cell in column.cells for line in str(cell).splitlines())
    return max((cell_len(text) for text in (*words, *lines)), default=0)


def _widened(piece: list[tuple[Column, int]], room: int) -> Iterator[tuple[Column, int]]:
    """What is left over goes to headers that are broken and to texts, in the columns' order."""
    left = room - sum(width + _BETWEEN for _, width in piece)
    for column, width in piece:
        more = min(max(left, 0), _content_width(column) - width)
        left -= more
        yield column, width + more


def _piece(table: Table, columns: list[tuple[Column, int]]) -> Table:
    piece = Table(
        title_justify=table.title_justify,
        caption_justify=table.caption_justify,
        box=table.box,
        show_header=table.show_header,
    )
    for column, width in columns:
        lines = str(column.header).splitlines()
        header = "\n".join(part for line in lines for part in textwrap.wrap(line, width) or [""])
        piece.add_column(header, justify=column.justify, width=width, overflow="fold")
    rows = zip(*(column.cells for column, _ in columns), strict=True)
    for row in rows:
        piece.add_row(*row)
    return piece
