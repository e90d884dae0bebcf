"""Records -> tables, plots and a page. A pure function of the records; imports neither torch nor ray.

For people who draw their own: :func:`load` gives a data frame with one row per trial.
"""

from bench.report.column import ABSENT
from bench.report.configurations import names
from bench.report.content import Content
from bench.report.data import csv_text
from bench.report.markdown import markdown
from bench.report.rows import frame, load, row, row_columns
from bench.report.write import load_content, render, write

__all__ = [
    "ABSENT",
    "Content",
    "csv_text",
    "frame",
    "load",
    "load_content",
    "markdown",
    "names",
    "render",
    "row",
    "row_columns",
    "write",
]
