r"""report.tex: the main table as papers print it. Needs the package booktabs; spread is a subscript of the mean."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.cells import Cell, Comparison
from bench.report.columns import Column
from bench.report.content import Content

ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def latex(content: Content) -> str:
    """One table environment for each model and task."""
    head = f"% {_comment(content.sweep)}: made by tuneoff report; needs \\usepackage{{booktabs}}"
    tables = [_table(content.sweep, comparison) for comparison in content.comparisons if comparison.scored]
    return "\n\n".join([head, *tables]) + "\n"


def escaped(text: str) -> str:
    """Text in which no character means anything to LaTeX."""
    return "".join(ESCAPES.get(character, character) for character in text)


def _comment(text: str) -> str:
    return " ".join(text.split())


def _table(sweep: str, comparison: Comparison) -> str:
    columns = comparison.columns
    rows = [
        " & ".join([escaped(cell.name), *(_cell(comparison, cell, column) for column in columns)]) + r" \\"
        for cell in comparison.scored
    ]
    heading = " & ".join(["Method", *(_heading(column) for column in columns)]) + r" \\"
    lines = [
        r"\begin{table}[t]",
        r"  \centering",
        rf"  \caption{{{_caption(comparison)}}}",
        rf"  \label{{tab:{_label(sweep, comparison)}}}",
        rf"  \begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"    \toprule",
        f"    {heading}",
        r"    \midrule",
        *(f"    {line}" for line in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _heading(column: Column) -> str:
    arrow = {True: r" $\uparrow$", False: r" $\downarrow$", None: ""}[column.higher_is_better]
    return f"{escaped(column.title)}{arrow}"


def _cell(comparison: Comparison, cell: Cell, column: Column) -> str:
    found = cell.estimate(column.name)
    if found is None:
        return "--"
    mean = column.text(found.mean)
    spread = ""
    if found.standard_deviation is not None and column.varies_over_seeds:
        spread = rf"$_{{\pm {column.text(found.standard_deviation)}}}$"
    return (rf"\textbf{{{mean}}}" if comparison.is_best(cell, column) else mean) + spread


def _caption(comparison: Comparison) -> str:
    seeds = _seeds(comparison.scored)
    spread = f" Mean and standard deviation over seeds (n = {seeds})." if comparison.several_seeds else ""
    return f"{escaped(comparison.model)} on {escaped(comparison.task)}.{spread} Best values in bold."


def _seeds(scored: Sequence[Cell]) -> str:
    counts = sorted({len(cell.completed) for cell in scored})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _label(sweep: str, comparison: Comparison) -> str:
    parts = (sweep, comparison.model.rsplit("/", 1)[-1], comparison.task)
    return "-".join("".join(c if c.isalnum() else "-" for c in part).strip("-") for part in parts)
