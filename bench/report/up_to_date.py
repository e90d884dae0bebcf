"""Tells whether a report is up to date, so that a command with nothing new to render need not make it again.

Beside the report lie what it was made from, as a hash, the sizes and times of its files, and the tables that a terminal
was shown. Whoever deletes or edits any of it gets the report anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from bench.measure.provenance import installed_version, sources_sha256
from bench.metrics.known import LOADED
from bench.report.fitting_table import FittingTable
from bench.schema.digests import sha256_of
from bench.schema.trial import JsonDict
from bench.store.files import write_atomically
from bench.store.records import Store

KEPT_FILE = ".made_from.json"
# Packages that draw and write reports.
PACKAGES = ("matplotlib", "pandas", "pyarrow", "Jinja2", "scipy", "numpy", "sacrebleu", "rich")
# Folders whose files a report is made from, beside the records, and what never enters a report.
FOLDERS = ("tuning", "published")
ALWAYS_NEW = ("status.json", "journal.jsonl")


@dataclass(frozen=True)
class TerminalPart:
    """The part of a report that a terminal shows."""

    tables: tuple[FittingTable, ...]
    headlines: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def made_from(store: Store, *facts: object) -> str | None:
    """Hash of all that a report is made from; None where a record has to be read to know.

    Args:
        store: Of the sweep. Records count by what its index says of their files.
        facts: What else changes the report, as JSON.
    """
    digest = hashlib.sha256()
    versions = [platform.python_version(), *map(installed_version, PACKAGES)]
    # Differences in the score of a plugin are tested where its metric is known, which takes --plugins-dir.
    digest.update(json.dumps([sources_sha256(), versions, sorted(LOADED), *facts]).encode())
    for trial_id in store.trial_ids():
        if (stamps := store.index.holds(trial_id)) is None:
            return None
        digest.update(f"\0{trial_id}\0{stamps}".encode())
    others = [path for name in FOLDERS for path in (store.root / name).rglob("*")]
    others += [path for path in store.root.iterdir() if not path.name.startswith(".") and path.name not in ALWAYS_NEW]
    for path in sorted(path for path in others if path.is_file()):
        digest.update(f"\0{path.relative_to(store.root).as_posix()}\0{sha256_of(path)}".encode())
    return digest.hexdigest()


def write_terminal_part(folder: Path, key: str, shown: TerminalPart) -> None:
    """Write down what the report in this folder was made from."""
    content = {
        "made_from": key,
        "files": _files(folder),
        "tables": [_table_content(table) for table in shown.tables],
        "headlines": shown.headlines,
        "remarks": shown.remarks,
    }
    write_atomically(folder / KEPT_FILE, json.dumps(content, ensure_ascii=False) + "\n")


def read_terminal_part(folder: Path, key: str) -> TerminalPart | None:
    """The part that a terminal shows of the report in this folder; None if the report is out of date."""
    try:
        content = json.loads((folder / KEPT_FILE).read_text(encoding="utf-8"))
        if content["made_from"] != key or content["files"] != _files(folder):
            return None
        headlines, remarks = (tuple(map(str, content[name])) for name in ("headlines", "remarks"))
        return TerminalPart(tuple(_table(table) for table in content["tables"]), headlines, remarks)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _files(folder: Path) -> JsonDict:
    """Size and time of change of each file of a report."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name != KEPT_FILE and path.is_file():
            status = os.lstat(path)
            found[path.relative_to(folder).as_posix()] = [status.st_size, status.st_mtime_ns]
    return found


def _table_content(table: FittingTable) -> JsonDict:
    """A table of texts as JSON."""
    columns = [
        {
            "header": str(column.header),
            "justify": column.justify,
            "no_wrap": column.no_wrap,
            "overflow": column.overflow,
            "min_width": column.min_width,
        }
        for column in table.columns
    ]
    rows = zip(*(list(column.cells) for column in table.columns), strict=True)
    return {
        "columns": columns,
        "rows": [[_cell(cell) for cell in row] for row in rows],
        "caption": table.caption,
        "leave_out": table.leave_out,
    }


def _cell(cell: Any) -> Sequence[str]:
    return (cell.plain, str(cell.style)) if isinstance(cell, Text) else (str(cell), "")


def _table(content: JsonDict) -> FittingTable:
    table = FittingTable(content["leave_out"], content["caption"])
    for column in content["columns"]:
        table.add_column(**column)
    for row in content["rows"]:
        table.add_row(*(Text(text, style=style) for text, style in row))
    return table
