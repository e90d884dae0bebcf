"""The launcher that the command line names."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from bench.launch.cluster_access import joined_address
from bench.launch.launcher import Launcher
from bench.plugins.source import PluginSource, share
from bench.schema.trial import JsonDict
from bench.schema.validation import ConfigError


def make_launcher(
    name: str,
    outbox: Path,
    address: str | None,
    plugins: Sequence[PluginSource] = (),
    runtime_env: JsonDict | None = None,
) -> Launcher:
    """The launcher of this name; ``auto`` is Ray where Ray is installed.

    Args:
        name: ``auto``, ``ray`` or ``local``.
        outbox: Where attempts wait for the store.
        address: Of a running Ray cluster: ``auto``, ``host:port`` or ``ray://host:port``.
        plugins: What ranks must be able to import besides ``bench`` and ``methods``.
        runtime_env: More of Ray's runtime environment on a running cluster.

    Raises:
        ConfigError: Ray is asked for and not installed, an address is given to a launcher that has no use for it, or
            the cluster cannot be joined.
    """
    share(source.folder for source in plugins)
    has_ray = importlib.util.find_spec("ray") is not None
    if name == "local" or (name == "auto" and not has_ray and address is None):
        if address is not None:
            raise ConfigError(f"--address {address} has no effect with --launcher local; leave one of them out")
        from bench.launch.local import LocalLauncher

        return LocalLauncher(outbox)
    if not has_ray:
        raise ConfigError("--launcher ray needs the package ray; install it, or use --launcher local")
    from bench.launch.embedded_cluster import EmbeddedCluster

    # Before ray is imported, which then reads how to authenticate.
    cluster = EmbeddedCluster() if address is None else joined_address(address)
    from bench.launch.ray_cluster import RayLauncher

    return RayLauncher(outbox, cluster, [top for source in plugins for top in source.tops], runtime_env)
