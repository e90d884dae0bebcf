"""The launcher and its options on the command line: one registry, to which plugins may add launchers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from command import Done
from fakes import FakeLauncher

from bench.launch.choose import LAUNCHERS, launcher_options, make_launcher
from bench.launch.hosts import HostLauncher
from bench.launch.launcher import Launcher, LauncherOptions
from bench.plugins.source import PluginSource
from bench.schema.validation import ConfigError


class FakeOptions(LauncherOptions):
    """A launcher of somebody else's, with an option of its own."""

    speed: int = 1

    def make(self, outbox: Path, plugins: Sequence[PluginSource]) -> Launcher:
        return FakeLauncher(outbox / str(self.speed))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--launcher loca", "--launcher loca: there is none of this name; did you mean 'local'? Known: auto, local, "),
        ("--launcher none", f"Known: auto, {', '.join(LAUNCHERS)}, and any module:Class that is a LauncherOptions"),
        ("--launcher no_such_module:X", "--launcher no_such_module:X: No module named 'no_such_module'"),
        ("--launcher fakes:FakeLauncher", "--launcher fakes:FakeLauncher: it is no bench.launch.launcher."),
        ("--launcher local --address auto", "--address auto has no effect with --launcher local; leave one of them"),
        ("--launcher local --address auto", "it is one of --launcher ray)"),
        ("--launcher-option speed", "--launcher-option speed: expected name=value"),
        ("--address a:1 --launcher-option address=b:1", "address is given twice"),
        ("--launcher test_choose:FakeOptions --launcher-option speed=fast", "speed: Input should be a valid integer"),
    ],
)
def test_a_launcher_that_cannot_be_is_one_line_before_anything_else(
    arguments: str, message: str, tuneoff: Callable[..., Done]
) -> None:
    done = tuneoff("run", "no-such-sweep.yaml", *arguments.split())
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_launcher_of_somebody_else_has_its_own_options(tmp_path: Path) -> None:
    options = launcher_options("test_choose:FakeOptions", {"speed": 3, "address": None})
    launcher = make_launcher(options, tmp_path)
    assert isinstance(launcher, FakeLauncher)
    assert launcher.outbox == tmp_path / "3"


def test_auto_is_ray_where_it_is_installed_or_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(**given: Any) -> str:
        return type(launcher_options("auto", given)).__name__

    assert kind() == "RayOptions"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert kind() == "LocalOptions"
    assert kind(address="10.0.0.1:6379") == "RayOptions"
    with pytest.raises(ConfigError, match="--launcher ray needs the package ray"):
        make_launcher(launcher_options("ray", {}), Path())


@pytest.mark.parametrize("launcher", [Launcher, HostLauncher])
def test_what_a_launcher_implements_is_public_and_documented(launcher: type[Launcher]) -> None:
    for name in launcher.__abstractmethods__:
        assert not name.startswith("_")
        assert getattr(launcher, name).__doc__, name


@pytest.mark.parametrize("target", LAUNCHERS.values())
def test_every_registered_launcher_is_there(target: str) -> None:
    module, _, name = target.partition(":")
    assert issubclass(getattr(importlib.import_module(module), name), LauncherOptions)
