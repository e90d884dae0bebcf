"""Listings of what sweeps can name, and of settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from bench.commands.options import console
from bench.schema.validation import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.plugins.registry import Kind
    from bench.plugins.settings import Setting


def print_listing(kind: Kind, as_json: bool, methods_dir: Path | None = None) -> None:
    """Print all methods or tasks; what cannot be used is among them, with the reason.

    Raises:
        ConfigError: The folder of methods cannot be used.
    """
    from bench.plugins.registry import describe

    try:
        found = describe(kind, methods_dir)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if as_json:
        console.print_json(json.dumps([vars(entry) for entry in found]))
        return
    table = Table()
    for heading in (kind, "what it is", "source", "from"):
        table.add_column(heading, overflow="fold")
    for entry in found:
        what = Text(entry.description) if entry.problem is None else Text(entry.problem, style="red")
        table.add_row(Text(entry.name), what, Text(entry.source), Text(entry.origin))
    console.print(table)


def settings_table(settings: Sequence[Setting]) -> Table | str:
    """Names, types, defaults and meanings."""
    table = Table()
    for heading in ("setting", "type", "default", "meaning"):
        table.add_column(heading, overflow="fold")
    for setting in settings:
        table.add_row(*(Text(t) for t in (setting.name, setting.type, setting.default_text, setting.description)))
    return table if settings else "no settings"
