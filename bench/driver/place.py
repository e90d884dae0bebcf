"""Where the trials of a sweep run, as the command line says it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bench.schema.strict_yaml import YamlError, parse_yaml
from bench.schema.trial import JsonDict
from bench.schema.validation import ConfigError


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
