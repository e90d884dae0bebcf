"""A table of a terminal that leaves out columns rather than the letters of its cells."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

# A longer word may be broken.
LONGEST_WORD = 24


class FittingTable(Table):
    """A table whose words stay whole: where the terminal is too narrow, columns are left out, and named below it.

    Args:
        leave_out: Headings of the columns that may be left out, the first to go first.
        caption: A text below the table.
    """

    def __init__(self, leave_out: Sequence[str], caption: str | None = None) -> None:
        # A space behind each cell and none in front: releases of rich differ in what collapsed padding takes.
        super().__init__(padding=(0, 1, 0, 0), caption=caption)
        self.leave_out = tuple(leave_out)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from super(FittingTable, self.fitting(options.max_width)).__rich_console__(console, options)

    def fitting(self, width: int) -> FittingTable:
        """The table as it is shown on so many columns of a terminal; the same where it has room, or cannot have it."""
        shown, left_out = list(self.columns), []
        for heading in self.leave_out:
            if _frame(len(shown)) + sum(map(_least, shown)) <= width:
                break
            left_out += [column for column in shown if str(column.header) == heading]
            shown = [column for column in shown if str(column.header) != heading]
        room = width - _frame(len(shown)) - sum(map(_least, shown))
        if room < 0:
            return self
        fitting = copy.copy(self)
        fitting.columns = []
        for number, column in enumerate(shown):
            made = copy.copy(column)
            more = min(room, _most(column) - _least(column))
            room -= more
            made.width, made._index = _least(column) + more, number
            fitting.columns.append(made)
        if left_out:
            names = ", ".join(str(column.header) for column in self.columns if column in left_out)
            said = f"No room for: {names}."
            fitting.caption = said if self.caption is None else f"{self.caption} {said}"
        return fitting


def _frame(columns: int) -> int:
    """Lines around and between columns, and a space behind each."""
    return 2 * columns + 1


def _texts(column: Any) -> list[str]:
    return [str(cell) for cell in (column.header, *column.cells)]


def _least(column: Any) -> int:
    """So wide a column is without breaking words; of one that is not wrapped, what its longest cell takes."""
    if column.no_wrap:
        return _most(column)
    words = [word for text in _texts(column) for word in text.split()]
    return max([1, *(min(LONGEST_WORD, cell_len(word)) for word in words)])


def _most(column: Any) -> int:
    """So wide a column is with each cell on one line."""
    return max([1, *map(cell_len, _texts(column))])
