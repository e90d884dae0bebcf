"""What several commands share: the console, arguments, and reading a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.config import ConfigError, load_sweep
from bench.spec import JsonDict
from bench.stages import Stages
from bench.strict_yaml import YamlError, parse_yaml
from bench.sweep import Sweep

console = Console()

SweepFile = Annotated[Path, typer.Argument(help="YAML file that says what to compare", metavar="SWEEP.yaml")]
ResultsDir = Annotated[Path, typer.Option("--results", help="folder that holds a folder for each sweep")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key.path=value, e.g. train.steps=10; may be repeated")
]
MethodsDir = Annotated[
    Path | None, typer.Option("--methods-dir", help="folder whose files are methods, each under the name of its file")
]
AsJson = Annotated[bool, typer.Option("--json", help="for machines")]


class LauncherName(StrEnum):
    """Where ranks run."""

    AUTO = "auto"
    RAY = "ray"
    LOCAL = "local"


@dataclass(frozen=True)
class Place:
    """Where the trials of a sweep run: launcher, address of a Ray cluster to join, and its runtime environment."""

    launcher: LauncherName
    address: str | None
    runtime_env: JsonDict


def read_runtime_env(path: Path | None, address: str | None) -> JsonDict:
    """Options of Ray's runtime environment from a file; none without a file.

    Raises:
        ConfigError: It cannot be read, has no effect, or sets what we set.
    """
    if path is None:
        return {}
    if address is None:
        raise ConfigError(f"--runtime-env {path} has no effect without --address; set variables in the shell instead")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YamlError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping, e.g. env_vars: {{HF_HOME: /data/hub}}")
    if "py_modules" in content:
        raise ConfigError(f"{path}: py_modules is how our own code travels; name plugins in the sweep instead")
    return content


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
