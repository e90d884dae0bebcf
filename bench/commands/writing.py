"""Commands that help to write a sweep: init, schema."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.commands.options import console


def init(
    data: Annotated[Path, typer.Argument(help="CSV, JSON lines or Parquet: a file, or a folder with train, dev, test")],
    model: Annotated[str, typer.Option(help="the embedded model, a local folder, or a hub id")] = "smollm2-135m",
    output: Annotated[Path, typer.Option(help="the sweep file; it must not be there yet")] = Path("sweep.yaml"),
) -> None:
    """Write a commented sweep for your data, to be changed: what is read and written is guessed from the columns."""
    from bench.config.new_sweep import write_sweep

    columns = write_sweep(data, model, output)
    say = console.print
    say(f"{output}: reads {columns.source}, writes {columns.references}", highlight=False, markup=False, soft_wrap=True)
    say(f"look it over, then: tuneoff plan {output}; tuneoff run {output}", highlight=False, soft_wrap=True)


def schema() -> None:
    """Print the JSON schema of sweep files, with the settings of all tasks and methods, for editors."""
    from bench.commands.sweep_reference import sweep_schema

    sys.stdout.write(json.dumps(sweep_schema(), indent=2, ensure_ascii=False) + "\n")
