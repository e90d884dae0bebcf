"""Render a results folder: ``results/<sweep>/report/``."""

from __future__ import annotations

from pathlib import Path

from bench.report.content import Content
from bench.report.data import csv_text, json_text, write_parquet
from bench.report.latex import latex
from bench.report.markdown import markdown
from bench.store import Store, write_atomically


def write(root: Path, command: str | None = None) -> Path:
    """Render all records below ``root`` into ``root/report``; returns that folder.

    The rows by trial hold every stage, the tables by configuration final trials.
    """
    records = Store(root).read_all()
    content = Content(root.name, tuple(record for record in records if record.spec.stage == "final"), command)
    folder = root / "report"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "results.csv", csv_text(records))
    write_parquet(records, folder / "results.parquet")
    write_atomically(folder / "report.json", json_text(content))
    write_atomically(folder / "report.tex", latex(content))
    write_atomically(folder / "report.md", markdown(content))
    return folder
