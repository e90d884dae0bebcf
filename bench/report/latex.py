r"""report.tex: the main tables as papers print them, each no larger than a page of one column of text.

Needs the package booktabs; spread is a subscript of the mean. Columns that do not fit beside each other become a second
table, rows that do not fit below each other go on in a further one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench.report.column import ABSENT, Column
from bench.report.configurations import Comparison, Configuration
from bench.report.content import Content
from bench.report.latex_text import DEFINITION, escaped, needs_definition
from bench.report.layout import layout, letters_note, seeds_differ
from bench.report.published_rows import PublishedRows
from bench.report.significance_table import letters_of

if TYPE_CHECKING:
    from bench.statistics.significance import Significance

# Letters of \footnotesize on a line of the class article, blanks between columns, and lines on its page.
LINE, GAP, PAGE = 76.0, 1.5, 42
POINTS_PER_LETTER = 4.4
# A column of texts is no wider than so many letters: what is longer wraps.
WIDEST_TEXT = 24


@dataclass(frozen=True)
class _Part:
    """A column: its heading and cells in LaTeX, and how wide it is in letters."""

    heading: str
    cells: Sequence[str]
    width: float
    kind: str  # l, r or c; p of texts that wrap

    @property
    def alignment(self) -> str:
        return f"p{{{self.width * POINTS_PER_LETTER:.0f}pt}}" if self.kind == "p" else self.kind


def latex(content: Content) -> str:
    """The tables of each model and task."""
    head = f"% {_comment(content.sweep)}: made by tuneoff report; needs \\usepackage{{booktabs}}"
    tables: list[str] = []
    for comparison, found, quoted in zip(
        content.comparisons, content.significances, content.published_rows, strict=True
    ):
        if comparison.scored:
            tables += _comparison(content.sweep, comparison, found)
        if quoted is not None:
            tables += _published(content.sweep, quoted)
    letters = [f"{DEFINITION} % letters beyond pdfTeX's fonts: XeTeX and LuaTeX set them"]
    return "\n\n".join([head, *(letters if needs_definition("".join(tables)) else []), *tables]) + "\n"


def _comment(text: str) -> str:
    return "".join(one if one.isascii() else "?" for one in " ".join(text.split()) if one.isprintable())


def _comparison(sweep: str, comparison: Comparison, found: Significance | str | None) -> list[str]:
    chosen, scored = layout(comparison), comparison.scored
    letters = letters_of(found)
    beside = [_texts("Method", [configuration.name for configuration in scored])]
    if len(set(letters.values())) > 1:
        shown = [letters.get(configuration.name, "") for configuration in scored]
        beside.append(_Part("group", shown, max(5, *map(len, shown)), "c"))
    if seeds_differ(comparison):
        beside.append(_Part("seeds", [configuration.seeds for configuration in scored], 6, "r"))
    scores = [_numbers(comparison, column) for column in chosen.shown if column in comparison.metrics]
    costs = [_numbers(comparison, column) for column in chosen.shown if column not in comparison.metrics]
    explained = [letters_note(found, comparison.metrics[0])] if letters and found and not isinstance(found, str) else []
    notes = " ".join(map(escaped, filter(None, [*explained, chosen.folded])))
    return _tables(f"{_caption(comparison)} {notes}".strip(), _label(sweep, comparison), beside, scores, costs)


def _tables(
    caption: str, label: str, beside: Sequence[_Part], scores: Sequence[_Part], costs: Sequence[_Part] = ()
) -> list[str]:
    """As many tables as it takes; all columns in one where they fit, else scores and costs apart."""
    room = LINE - sum(part.width + GAP for part in beside)
    groups = [[*scores, *costs]] if _width([*scores, *costs]) <= room else [list(scores), list(costs)]
    columns = [fitting for group in groups for fitting in _fitting(group, room)] or [[]]
    rows = list(_pages(beside))
    found = []
    for number, parts in enumerate(columns):
        for page, (start, stop) in enumerate(rows):
            several = len(columns) * len(rows) > 1
            place = number * len(rows) + page
            goes_on = f" ({place + 1} of {len(columns) * len(rows)})" if several else ""
            suffix = f"-{place + 1}" if place else ""
            table = _environment(caption + goes_on, label + suffix, [*beside, *parts], range(start, stop))
            found.append(table + "\n\\clearpage" * (len(rows) > 1))
    return found


def _width(parts: Iterable[_Part]) -> float:
    return sum(part.width + GAP for part in parts)


def _fitting(parts: Sequence[_Part], room: float) -> Iterator[list[_Part]]:
    """The columns in their order, as many at a time as there is room for; at least one."""
    taken: list[_Part] = []
    for part in parts:
        if taken and _width([*taken, part]) > room:
            yield taken
            taken = []
        taken.append(part)
    if taken:
        yield taken


def _pages(beside: Sequence[_Part]) -> Iterator[tuple[int, int]]:
    """The rows of each page, by the lines that their names take."""
    start, lines = 0, 0
    count = len(beside[0].cells)
    for row in range(count):
        takes = max(_lines(part, row) for part in beside)
        if lines and lines + takes > PAGE:
            yield start, row
            start, lines = row, 0
        lines += takes
    yield start, count


def _lines(part: _Part, row: int) -> int:
    """An upper bound: what LaTeX sets as one letter may be several here."""
    return 1 + int(len(part.cells[row]) / part.width) if part.kind == "p" else 1


def _environment(caption: str, label: str, parts: Sequence[_Part], rows: Iterable[int]) -> str:
    lines = [
        r"\begin{table}[tp]",
        r"  \centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"  \caption{{{caption}}}",
        rf"  \label{{tab:{label}}}",
        rf"  \begin{{tabular}}{{{''.join(part.alignment for part in parts)}}}",
        r"    \toprule",
        f"    {' & '.join(part.heading for part in parts)} \\\\",
        r"    \midrule",
        *(f"    {' & '.join(part.cells[row] for part in parts)} \\\\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _texts(heading: str, texts: Sequence[str]) -> _Part:
    """A column of texts to the left; long ones wrap."""
    longest = max(map(len, [heading, *texts]))
    if longest <= WIDEST_TEXT:
        return _Part(escaped(heading), [escaped(text) for text in texts], longest, "l")
    return _Part(escaped(heading), [rf"\raggedright {escaped(text)}" for text in texts], WIDEST_TEXT, "p")


def _numbers(comparison: Comparison, column: Column) -> _Part:
    arrow = {True: r" $\uparrow$", False: r" $\downarrow$", None: ""}[column.higher_is_better]
    shown = [_number(comparison, configuration, column) for configuration in comparison.scored]
    width = max(mean_width for _, mean_width in shown)
    return _column(column.title, arrow, [text for text, _ in shown], width)


def _column(title: str, arrow: str, cells: Sequence[str], width: float) -> _Part:
    """A column to the right, the words of its heading one above the other."""
    words = title.split() or [""]
    stacked = r"\\".join([*map(escaped, words[:-1]), escaped(words[-1]) + arrow])
    heading = rf"\shortstack[r]{{{stacked}}}" if len(words) > 1 else stacked
    return _Part(heading, cells, max(width, *(len(word) + 2 * bool(arrow) for word in words)), "r")


def _number(comparison: Comparison, configuration: Configuration, column: Column) -> tuple[str, float]:
    """A mean with its spread, and how wide they are."""
    found = configuration.estimate(column.name)
    if found is None:
        return "--", 2
    mean = column.text(found.mean)
    shown = rf"\textbf{{{mean}}}" if comparison.is_best(configuration, column) else mean
    if found.standard_deviation is None or not column.varies_over_seeds:
        return shown, len(mean)
    spread = column.text(found.standard_deviation)
    return rf"{shown}$_{{\pm {spread}}}$", len(mean) + 0.75 * (len(spread) + 1.5)


def _published(sweep: str, quoted: PublishedRows) -> list[str]:
    """Published numbers beside ours; what is quoted is in italics."""
    in_italics = set(quoted.quoted_columns)
    first = min(in_italics)
    columns = list(zip(quoted.heading(), zip(*quoted.rows(), strict=True), strict=True))
    beside = [_texts(heading, cells) for heading, cells in columns[: first + 1]]
    beside[first] = replace(beside[first], cells=[rf"\itshape {cell}" for cell in beside[first].cells])
    parts = [
        _column(
            heading,
            "",
            [rf"\textit{{{_shown(cell)}}}" if number in in_italics else _shown(cell) for cell in cells],
            max(map(len, cells)),
        )
        for number, (heading, cells) in enumerate(columns[first + 1 :], start=first + 1)
    ]
    comparison = quoted.comparison
    caption = (
        f"{escaped(comparison.model)} on {escaped(comparison.task)}, beside published numbers. {escaped(quoted.note)}"
    )
    return _tables(caption, f"{_label(sweep, comparison)}-quoted", beside, parts)


def _shown(text: str) -> str:
    """A number of the other formats in LaTeX."""
    return "--" if text == ABSENT else escaped(text)


def _caption(comparison: Comparison) -> str:
    seeds = _seeds(comparison.scored)
    spread = f" Mean and standard deviation over seeds (n = {seeds})." if comparison.several_seeds and seeds else ""
    return f"{escaped(comparison.model)} on {escaped(comparison.task)}.{spread} Best values in bold."


def _seeds(scored: Sequence[Configuration]) -> str:
    """Of what no seed changes there is one answer, which says nothing of the others."""
    counts = sorted({len(configuration.counted_results) for configuration in scored if configuration.varies_over_seeds})
    return " to ".join(str(count) for count in dict.fromkeys(counts[:1] + counts[-1:]))


def _label(sweep: str, comparison: Comparison) -> str:
    parts = (sweep, comparison.model.rsplit("/", 1)[-1], comparison.task)
    return "-".join("".join(c if c.isascii() and c.isalnum() else "-" for c in part).strip("-") for part in parts)
