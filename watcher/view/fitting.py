"""Fitting: tables in which no number is cut, however narrow the terminal is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_FOLDED = 16  # columns to which a text may be folded, so long as others can be left out


class Either(msgspec.Struct, frozen=True):
    """A name, and a shorter one for where there is no room for it."""

    name: str
    shorter: str

    def __str__(self) -> str:
        return self.name

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(cell_len(self.shorter), cell_len(self.name))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fits = cell_len(self.name) <= options.max_width
        yield Text(self.name if fits else self.shorter, overflow="fold")


class Fitting(msgspec.Struct, frozen=True):
    """A table that leaves out columns where there is no room, and then folds its texts.

    Columns with `no_wrap` hold numbers and keep their width; the others may be folded.

    Attributes:
        table: With all its columns and rows.
        optional: Heads of the columns that may be left out, the first to go first.
        whole: Heads of texts that are folded only when nothing can be left out any more.
        told: Is given how many columns were left out, and returns what to say below.
    """

    table: Table
    optional: Sequence[str] = ()
    whole: Sequence[str] = ()
    told: Callable[[int], str] | None = None

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self.table)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw what there is room for."""
        count = 0
        while count < len(self.optional) and (
            _least(_without(self.table, self.optional[:count]), self.whole) > options.max_width
        ):
            count += 1
        yield _without(self.table, self.optional[:count])
        if count and self.told:
            yield Text(self.told(count), style="dim")


def _without(table: Table, names: Sequence[str]) -> Table:
    """Return the table with these columns left out."""
    kept = [column for column in table.columns if str(column.header) not in names]
    shown = Table(box=table.box, show_edge=table.show_edge, pad_edge=table.pad_edge)
    shown.padding = table.padding
    for column in kept:
        shown.add_column(
            column.header,
            justify=column.justify,
            no_wrap=column.no_wrap,
            overflow=column.overflow,
        )
    cells = [list(column.cells) for column in kept]
    for row, of_table in zip(zip(*cells, strict=True), table.rows, strict=True):
        shown.add_row(*row, style=of_table.style)
    return shown


def _least(table: Table, whole: Sequence[str]) -> int:
    """Return the columns of the terminal that a table needs with its other texts folded."""
    widths = []
    for column in table.columns:
        longest = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
        stays = column.no_wrap or str(column.header) in whole
        widths.append(longest if stays else min(longest, _FOLDED))
    edges = 4 if table.show_edge else 0
    return sum(widths) + edges + (3 if table.show_edge else 2) * (len(widths) - 1)
