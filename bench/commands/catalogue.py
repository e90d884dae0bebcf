"""Commands on what sweeps can name: methods, tasks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from bench.commands.options import AsJson, console

if TYPE_CHECKING:
    from bench.registry import Kind


def methods(as_json: AsJson = False) -> None:
    """List the methods that sweeps can name."""
    _list("method", as_json)


def tasks(as_json: AsJson = False) -> None:
    """List the tasks that sweeps can name."""
    _list("task", as_json)


def _list(kind: Kind, as_json: bool) -> None:
    from bench.registry import describe

    found = describe(kind)
    if as_json:
        console.print_json(json.dumps([vars(entry) for entry in found]))
        return
    table = Table()
    for heading in (kind, "what it is", "source", "class"):
        table.add_column(heading, overflow="fold")
    for entry in found:
        table.add_row(*(Text(text) for text in (entry.name, entry.description, entry.source, entry.target)))
    console.print(table)
