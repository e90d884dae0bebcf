"""Shared by several commands: the console, arguments, and reading a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.commands.console import PlainConsole
from bench.config.load import load_sweep, setting_value
from bench.config.shipped import shipped_sweeps, sweep_path
from bench.launch.choose import NAMES, launcher_options
from bench.schema.printable import in_short
from bench.schema.sweep import Sweep
from bench.schema.validation import ConfigError

if TYPE_CHECKING:
    from bench.driver.stages import Stages
    from bench.launch.launcher import LauncherOptions

console = PlainConsole()

SweepFile = Annotated[
    Path,
    typer.Argument(
        help=f"YAML file that says what to compare, or one that comes with Tuneoff: {', '.join(shipped_sweeps())}",
        metavar="SWEEP.yaml",
        callback=sweep_path,
    ),
]
ResultsDir = Annotated[Path, typer.Option("--results", help="folder that holds a folder for each sweep")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key.path=value, e.g. train.steps=10; may be repeated")
]
PluginsDir = Annotated[
    Path | None,
    typer.Option(
        "--plugins-dir",
        "--methods-dir",
        help="folder whose files are methods, tasks, metrics or optimisers, each under the name of its file",
    ),
]
LauncherName = Annotated[
    str,
    typer.Option(
        "--launcher",
        metavar="|".join(NAMES),
        help="where ranks run, or a module:Class; auto is ray where it is installed",
        autocompletion=lambda: list(NAMES),
    ),
]
Address = Annotated[
    str | None, typer.Option(help="of a Ray cluster: auto, host:port or ray://host:port; default: a local one")
]
RuntimeEnv = Annotated[
    Path | None, typer.Option(help="YAML or JSON file with more of Ray's runtime environment, for --address")
]
Hosts = Annotated[str | None, typer.Option(help="of ssh or srun: a,b:4 (four GPUs or cores of b)", metavar="A,B:N")]
HostsFile = Annotated[Path | None, typer.Option(help="file with such hosts, a line each")]
HostCommand = Annotated[
    str | None, typer.Option(help="what runs a program on a host, instead of ssh or srun: 'ssh -p 2222 {host}'")
]
LauncherSettings = Annotated[
    list[str] | None,
    typer.Option("--launcher-option", help="what else a launcher takes: name=value; may be repeated"),
]
AsJson = Annotated[bool, typer.Option("--json", help="for machines")]


def read_launcher(name: str, settings: list[str] | None, **options: Any) -> LauncherOptions:
    """What makes the launcher of this name, of its options on the command line.

    Raises:
        ConfigError: There is no such launcher, or an option has no effect, is said twice or cannot be.
    """
    for setting in settings or ():
        option, value = setting_value(setting, "--launcher-option")
        if options.get(option) is not None:
            raise ConfigError(f"--launcher-option {setting}: {option} is given twice; leave one of them out")
        options[option] = value
    return launcher_options(name, options)


def know_metrics(plugins_dir: Path | None = None) -> None:
    """Load the metrics of plugins, so that what records say of them can be tested.

    Raises:
        ConfigError: The folder cannot be used.
    """
    from bench.plugins.registry import load_metrics

    try:
        load_metrics(plugins_dir)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def read_stages(sweep_file: Path, settings: list[str] | None, plugins_dir: Path | None = None) -> tuple[Sweep, Stages]:
    """A sweep and its trials, stage by stage.

    Raises:
        ConfigError: Naming file and key.
    """
    from bench.config.resolver import RegistryResolver
    from bench.driver.stages import Stages

    sweep = load_sweep(sweep_file, settings or ())
    try:
        resolver = RegistryResolver(plugins_dir)
        stages = Stages(sweep, resolver)
    except ValueError as error:
        raise ConfigError(f"{sweep_file}: {error}") from error
    except OSError as error:  # a file that it names
        raise ConfigError(f"{sweep_file}: {in_short(str(error.filename))}: {error.strerror}") from error
    resolver.remember()
    return sweep, stages
