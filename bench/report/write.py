"""Render a results folder: ``results/<sweep>/report/``."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from bench.report.content import Content
from bench.report.data import csv_of, json_text, write_parquet
from bench.report.figures import pictures
from bench.report.latex import latex
from bench.report.markdown import markdown
from bench.report.page import html
from bench.report.published import kept_published
from bench.report.rows import frame
from bench.report.sharing import shared, uncollected
from bench.report.side_by_side import side_by_side
from bench.store.files import make_folder, write_atomically
from bench.store.kept_sweep import divided, read_kept
from bench.store.records import Store
from bench.tuning.rows import read_searches
from bench.tuning.summary import tunings


def write(root: Path, command: str | None = None, missing: int = 0) -> Path:
    """Render what a sweep asks for into ``root/report``; returns that folder. See :func:`load_content`."""
    return render(root, load_content(root, command, missing))


def render(root: Path, content: Content) -> Path:
    """Render what was read below ``root`` into ``root/report``; returns that folder.

    The rows by trial hold every stage, the tables by configuration final trials.
    """
    folder = root / "report"
    make_folder(folder)
    rows = frame(content.records, content.others)
    write_atomically(folder / "results.csv", csv_of(rows))
    write_parquet(rows, folder / "results.parquet")
    del rows  # It takes as much room as the records.
    write_atomically(folder / "report.json", json_text(content))
    write_atomically(folder / "report.tex", latex(content))
    write_atomically(folder / "report.md", markdown(content))
    drawn = pictures(content)
    figures = folder / "figures"
    shutil.rmtree(figures, ignore_errors=True)  # A picture that is no longer drawn must not stay.
    make_folder(figures)
    for picture in itertools.chain.from_iterable(drawn):
        write_atomically(figures / f"{picture.name}.svg", picture.svg)
        write_atomically(figures / f"{picture.name}.png", picture.png)
    write_atomically(folder / "report.html", html(content, drawn, side_by_side(root, content.comparisons)))
    return folder


def load_content(root: Path, command: str | None = None, missing: int = 0, everything: bool = False) -> Content:
    """What a report says of the records, searches and published numbers below ``root`` that the sweep asks for.

    Args:
        root: Results folder of the sweep.
        command: That runs the sweep again.
        missing: Trials that are known to come and have no record yet.
        everything: Whether to list the other records too, apart.
    """
    kept = read_kept(root)
    with uncollected():
        records, others = divided(shared(Store(root).records()), None if kept is None else kept.asks)
    searches = [
        rows for rows in read_searches(root) if kept is None or kept.sweep is None or rows.search.key in kept.searches
    ]
    return Content(
        root.name,
        tuple(records),
        command,
        tuple(tunings(searches, records)),
        root,
        kept_published(root),
        missing,
        kept,
        tuple(others) if everything else (),
        0 if everything else len(others),
    )
