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

    from bench.conformance.check_verdict import CheckVerdict
    from bench.plugins.offers import Kind
    from bench.plugins.settings import Setting


def print_listing(kind: Kind, as_json: bool, plugins_dir: Path | None = None) -> None:
    """Print all methods, tasks, metrics or optimisers; what cannot be used is among them, with the reason.

    Raises:
        ConfigError: The folder of plugins cannot be used.
    """
    from bench.plugins.registry import describe

    try:
        found = describe(kind, plugins_dir)
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


def print_verdicts(title: str, found: Sequence[CheckVerdict], as_json: bool) -> None:
    """Print what checks of a task or a metric found."""
    if as_json:
        console.print_json(json.dumps([vars(verdict) for verdict in found]))
        return
    table = Table(title=title)
    for heading in ("check", "", "reason"):
        table.add_column(heading, overflow="fold")
    for verdict in found:
        style = {"pass": "green", "warn": "yellow", "fail": "bold red"}[verdict.outcome]
        table.add_row(verdict.check, Text(verdict.outcome, style=style), Text(verdict.reason))
    console.print(table)


def settings_table(settings: Sequence[Setting]) -> Table | str:
    """Names, types, defaults and meanings."""
    table = Table()
    for heading in ("setting", "type", "default", "meaning"):
        table.add_column(heading, overflow="fold")
    for setting in settings:
        table.add_row(*(Text(t) for t in (setting.name, setting.type, setting.default_text, setting.description)))
    return table if settings else "no settings"
