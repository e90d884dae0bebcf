"""What the commands new-method, new-task and new-metric share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.commands.options import console

if TYPE_CHECKING:
    from bench.plugins.offers import Kind

NewName = Annotated[str, typer.Argument(help="of the plugin and its module: small letters, digits, _", metavar="NAME")]
Into = Annotated[Path, typer.Option("--into", help="folder that gets the project's folder")]

USE = {
    "method": "write '- {name}' under 'methods:' of a sweep",
    "task": "write 'task: {name}' in a sweep",
    "metric": "write 'metrics: [{name}]' under 'task:' of a sweep",
}


def announce_project(kind: Kind, name: str, into: Path) -> None:
    """Write a project and say how it is tried, used and installed.

    Raises:
        ConfigError: The name cannot be a module's, is taken, or the folder is there already.
    """
    from bench.conformance.project_template import write_project

    folder = write_project(name, into, kind)
    files = ", ".join(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))
    use = USE[kind].format(name=name)
    for line in (
        f"{folder}: {files}",
        f"try it: tuneoff check-{kind} {name} --plugins-dir {folder}",
        f"use it: {use}, then: tuneoff run SWEEP.yaml --plugins-dir {folder}",
        f"or install it, for all sweeps: pip install --editable {folder}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
