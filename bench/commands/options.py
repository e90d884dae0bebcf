"""What several commands share: the console, arguments, and reading a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.commands.console import PlainConsole
from bench.config.load import load_sweep
from bench.schema.sweep import Sweep
from bench.schema.validation import ConfigError

if TYPE_CHECKING:
    from bench.driver.stages import Stages

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
    from bench.config.resolver import RegistryResolver
    from bench.driver.stages import Stages

    sweep = load_sweep(sweep_file, settings or ())
    try:
        resolver = RegistryResolver(methods_dir)
        stages = Stages(sweep, resolver)
    except ValueError as error:
        raise ConfigError(f"{sweep_file}: {error}") from error
    resolver.remember()
    return sweep, stages
