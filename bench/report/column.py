"""A column of a table: a value of a record, with its title, the tables that show it, and its format."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Flag, IntEnum, auto
from typing import Literal

from bench.schema.record import TrialResult

ABSENT = "–"  # noqa: RUF001 - an en dash, as tables print what is absent

Value = str | int | float | bool | None
Reader = Callable[[TrialResult], Value]


class Shown(Flag):
    """The tables that show a column."""

    NOWHERE = 0
    CSV = auto()
    """A row for each trial: results.csv, results.parquet, :func:`bench.report.load`."""
    CONFIGURATIONS = auto()
    """A row for each configuration: report.json, report.md, report.html, report.tex."""
    KEY = auto()
    """The first of these tables; a column without it stands in the table of further ones."""
    NARROW = auto()
    """The first table on a narrow screen."""
    TRIALS = auto()
    """The table of all trials on the page."""
    SUMMARY = auto()
    """The table of gains and costs, a row for each method."""
    TERMINAL = auto()
    """The table that a command prints when a sweep ends."""
    RATIOS = auto()
    """Costs of one configuration over those of another: ``tuneoff compare``."""
    EVERYWHERE = CSV | CONFIGURATIONS | KEY | NARROW | TRIALS | SUMMARY | TERMINAL | RATIOS


class Group(IntEnum):
    """What a column is about. Tables other than results.csv show columns in this order."""

    NAME = auto()
    OUTCOME = auto()
    SETTING = auto()
    LOSS = auto()
    SIZE = auto()
    COST = auto()
    """Time, memory or energy that the trial took or would have taken alone."""
    WHOLE_COST = auto()
    """Likewise, start-up included, which is no cost of the method."""
    ORIGIN = auto()


@dataclass(frozen=True)
class Column:
    """One column: a value of a record, and how to show it.

    Attributes:
        name: Its key in results.csv, in report.json and in rows.
        title: Its heading.
        higher_is_better: Its direction; None without one.
        decimals: As tables print it; None: as short as it is.
        scale: Factor from the value to what tables print.
        varies_over_seeds: Whether a spread over seeds says something.
        axis: Label of an axis, and what a pointer over the heading tells.
        read: The value of a record; None is absent.
        group: What it is about.
        shown: The tables that have it.
        measured_alone: Whether it is taken from trials of the stage cost where there are any.
        unit: Of what is counted; where space is short, it is printed in multiples of it.
        is_text: Whether it is no number.
        summary_title: Its heading in the summary, where that is another one.
        terminal_title: Likewise in a terminal.
        sentence_part: What a sentence says of it, with braces for the value; empty: no sentence mentions it.
        picture: What the picture of scores against it is called; empty: it is not drawn.
        tracker: What trackers call it; empty: they do not get it.
    """

    name: str
    title: str = ""
    higher_is_better: bool | None = None
    decimals: int | None = 0
    scale: float = 1.0
    varies_over_seeds: bool = True
    axis: str = ""
    read: Reader = field(default=lambda _: None, compare=False)
    group: Group = Group.ORIGIN
    shown: Shown = Shown.CSV
    measured_alone: bool = False
    unit: Literal["", "count", "bytes"] = ""
    is_text: bool = False
    summary_title: str = ""
    terminal_title: str = ""
    sentence_part: str = ""
    picture: str = ""
    tracker: str = ""

    @property
    def is_cost(self) -> bool:
        """Whether a trial that shared its launch, or was continued, has no such value of its own."""
        return self.group in (Group.COST, Group.WHOLE_COST)

    def of(self, record: TrialResult) -> Value:
        """The value of a record; None where it is absent, not finite, or a cost that is not the trial's own."""
        if self.is_cost and not record.has_own_costs:
            return None
        value = self.read(record)
        return value if is_finite(value) else None

    def number(self, record: TrialResult) -> float | None:
        """The value of a record in a column of numbers."""
        value = self.of(record)
        return None if value is None else float(value)

    def text(self, value: float) -> str:
        """The value as tables print it."""
        return f"{value * self.scale:g}" if self.decimals is None else f"{value * self.scale:,.{self.decimals}f}"

    def short_text(self, value: float) -> str:
        """The value for narrow tables: counts have at most six characters."""
        return compact(value) if self.unit == "count" else self.text(value)

    def text_with_unit(self, value: float) -> str:
        """The value with its unit, for tables whose heading has none."""
        return size(value) if self.unit == "bytes" else self.short_text(value)


def is_finite(value: Value) -> bool:
    """Whether a value is neither NaN nor infinite."""
    return not isinstance(value, float) or math.isfinite(value)


def compact(count: float) -> str:
    """A count in at most six characters."""
    for unit, one, decimals in (("", 1, 0), ("K", 10**3, 1), ("M", 10**6, 1)):
        if (rounded := round(count / one, decimals)) < 1000:  # 999,960 is 1.0M, not 1000.0K
            return f"{rounded:.{decimals}f}{unit}"
    return f"{count / 10**9:.1f}B"


def size(num_bytes: float) -> str:
    """Bytes with a unit of the power of two, three digits or so."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 999.5:  # what rounds to 1000 has the next unit
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.2f} GiB"
