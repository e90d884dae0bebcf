"""The options of the Ray launcher. They are read before ray is imported, because ray reads its token settings then."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from bench.launch.cluster_access import joined_address
from bench.launch.embedded_cluster import ClusterError, EmbeddedCluster
from bench.launch.launcher import Launcher, LauncherOptions
from bench.plugins.source import PluginSource
from bench.schema.strict_yaml import YamlError, parse_yaml
from bench.schema.trial import JsonDict
from bench.schema.validation import ConfigError


class RayOptions(LauncherOptions):
    """A Ray cluster: a running one, or one on this machine that ends with the driver."""

    address: str | None = Field(None, description="auto, host:port or ray://host:port; None: a cluster of this machine")
    runtime_env: Path | None = Field(None, description="file with more of Ray's runtime environment, for --address")

    @model_validator(mode="after")
    def _runtime_env_makes_sense(self) -> Self:
        read_runtime_env(self.runtime_env, self.address)
        return self

    def make(self, outbox: Path, plugins: Sequence[PluginSource]) -> Launcher:
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("--launcher ray needs the package ray; install it, or use --launcher local")
        cluster = EmbeddedCluster() if self.address is None else joined_address(self.address)
        from bench.launch.ray_cluster import RayLauncher

        runtime_env = read_runtime_env(self.runtime_env, self.address)
        try:
            return RayLauncher(outbox, cluster, [top for source in plugins for top in source.tops], runtime_env)
        except ClusterError as error:
            raise ConfigError(f"{error}\n--launcher local needs no Ray") from error


def read_runtime_env(path: Path | None, address: str | None) -> JsonDict:
    """Options of Ray's runtime environment from a file; none without a file.

    Raises:
        ConfigError: The file cannot be read, has no effect, or sets a key that we set.
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
