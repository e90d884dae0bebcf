"""What several commands share: the console, arguments, and reading a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.console import PlainConsole
from bench.config import load_sweep
from bench.stages import Stages
from bench.sweep import Sweep
from bench.validation import ConfigError

console = PlainConsole()

SweepFile = Annotated[Path, typer.Argument(help="YAML file that says what to compare", metavar="SWEEP.yaml")]
ResultsDir = Annotated[Path, typer.Option("--results", help="folder that holds a folder for each sweep")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key.path=value, e.g. train.steps=10; may be repeated")
]
MethodsDir = Annotated[
    Path | None, typer.Option("--methods-dir", help="folder whose files are methods, each under the name of its file")
]
AsJson = Annotated[bool, typer.Option("--json", help="for machines")]


def read_stages(sweep_file: Path, settings: list[str] | None, methods_dir: Path | None = None) -> tuple[Sweep, Stages]:
    """A sweep and its trials, stage by stage.

    Raises:
        ConfigError: Naming file and key.
    """
    from bench.resolver import RegistryResolver

    sweep = load_sweep(sweep_file, settings or ())
    try:
        return sweep, Stages(sweep, RegistryResolver(methods_dir))
    except ValueError as error:
        raise ConfigError(f"{sweep_file}: {error}") from error
