"""The launcher that the command line names."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.launch.launcher import Launcher, LauncherOptions
from bench.plugins.source import PluginSource, share
from bench.schema.validation import ConfigError, validated

# Name of a launcher -> module:Class of its options, which make it.
LAUNCHERS = {
    "local": "bench.launch.local:LocalOptions",
    "ray": "bench.launch.ray_options:RayOptions",
    "srun": "bench.launch.ssh:SrunOptions",
    "ssh": "bench.launch.ssh:SshOptions",
}
AUTO = "auto"
NAMES = (AUTO, *LAUNCHERS)


def launcher_options(name: str, given: Mapping[str, Any]) -> LauncherOptions:
    """The options of the launcher of this name, checked.

    Args:
        name: ``auto`` (Ray if it is installed or an address is given, else local), one of :data:`LAUNCHERS`, or the
            ``module:Class`` of a :class:`LauncherOptions`.
        given: Options of the command line by name; None for an option that was not given.

    Raises:
        ConfigError: There is no such launcher, or an option has no effect or a wrong value.
    """
    options = {option: value for option, value in given.items() if value is not None}
    if name == AUTO:
        name = "ray" if importlib.util.find_spec("ray") is not None or "address" in options else "local"
    options_class = _options_class(name)
    for option, value in options.items():
        if option not in options_class.model_fields:
            own = ", ".join(options_class.model_fields)
            raise ConfigError(
                f"--{option.replace('_', '-')} {value} has no effect with --launcher {name}; leave one of them out "
                f"({name} takes {own or 'no options'}{_takers(option)})"
            )
    return validated(options_class, options, f"--launcher {name}")


def make_launcher(options: LauncherOptions, outbox: Path, plugins: Sequence[PluginSource] = ()) -> Launcher:
    """The launcher that the command line asks for.

    Args:
        options: Of the launcher.
        outbox: The folder in which attempts wait for the store.
        plugins: The plugins that ranks must be able to import.

    Raises:
        ConfigError: A package is missing, or a machine cannot be used.
    """
    share(source.folder for source in plugins)
    return options.make(outbox, plugins)


def _options_class(name: str) -> type[LauncherOptions]:
    if name not in LAUNCHERS and ":" not in name:
        close = difflib.get_close_matches(name, NAMES, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"--launcher {name}: there is none of this name{meant or '.'} Known: {', '.join(NAMES)}, and any "
            "module:Class that is a LauncherOptions"
        )
    module, _, class_name = LAUNCHERS.get(name, name).partition(":")
    try:
        options_class = getattr(importlib.import_module(module), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--launcher {name}: {error}") from error
    if not (isinstance(options_class, type) and issubclass(options_class, LauncherOptions)):
        raise ConfigError(f"--launcher {name}: it is no bench.launch.launcher.LauncherOptions")
    return options_class


def _takers(option: str) -> str:
    """The end of a message: the launchers that have this option."""
    takers = [name for name in LAUNCHERS if option in _options_class(name).model_fields]
    return f"; it is one of --launcher {' and '.join(takers)}" if takers else ""
