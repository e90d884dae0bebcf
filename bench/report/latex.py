r"""report.tex: the main table as papers print it. Needs the package booktabs; spread is a subscript of the mean."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.cells import Cell, Comparison
from bench.report.columns import ABSENT, Column
from bench.report.content import Content
from bench.report.references import References

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
    tables: list[str] = []
    for comparison, quoted in zip(content.comparisons, content.references, strict=True):
        if comparison.scored:
            tables.append(_table(content.sweep, comparison))
        if quoted is not None:
            tables.append(_references(content.sweep, quoted))
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
    return _environment(_caption(comparison), _label(sweep, comparison), f"l{'r' * len(columns)}", heading, rows)


def _environment(caption: str, label: str, alignment: str, heading: str, rows: Sequence[str]) -> str:
    lines = [
        r"\begin{table}[t]",
        r"  \centering",
        rf"  \caption{{{caption}}}",
        rf"  \label{{tab:{label}}}",
        rf"  \begin{{tabular}}{{{alignment}}}",
        r"    \toprule",
        f"    {heading}",
        r"    \midrule",
        *(f"    {line}" for line in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _references(sweep: str, quoted: References) -> str:
    """Published numbers beside ours; what is quoted is in italics."""
    in_italics = set(quoted.quoted_columns)
    heading, *body = (
        " & ".join(
            rf"\textit{{{_text(cell)}}}" if number in in_italics else _text(cell) for number, cell in enumerate(cells)
        )
        + r" \\"
        for cells in (quoted.heading(), *quoted.rows())
    )
    comparison = quoted.comparison
    caption = (
        f"{escaped(comparison.model)} on {escaped(comparison.task)}, beside published numbers. {_text(quoted.note)}"
    )
    texts = min(in_italics) + 1
    alignment = "l" * texts + "r" * (len(quoted.heading()) - texts)
    return _environment(caption, f"{_label(sweep, comparison)}-quoted", alignment, heading, body)


def _text(shown: str) -> str:
    """A text of the other formats in LaTeX."""
    return escaped(shown).replace("±", r"$\pm$").replace(ABSENT, "--")


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
    counts = sorted({len(cell.counted) for cell in scored})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _label(sweep: str, comparison: Comparison) -> str:
    parts = (sweep, comparison.model.rsplit("/", 1)[-1], comparison.task)
    return "-".join("".join(c if c.isalnum() else "-" for c in part).strip("-") for part in parts)
