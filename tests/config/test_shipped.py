"""Sweeps that come with Tuneoff are found by their names, and files come first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command import Done

from bench.config.load import load_sweep
from bench.config.shipped import FOLDER, shipped_sweeps, sweep_path
from bench.schema.validation import ConfigError


def test_a_shipped_sweep_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped_sweeps() == ["quickstart"]
    (tmp_path / "quickstart").mkdir()
    for name in shipped_sweeps():
        assert sweep_path(Path(name)) == FOLDER / f"{name}.yaml"
        assert load_sweep(sweep_path(Path(name))).name == name
    assert sweep_path(Path("quickstart.yaml")) == Path("quickstart.yaml"), "that is a file's name"
    assert sweep_path(Path("./x/quickstart")) == Path("x/quickstart")
    (tmp_path / "quickstart").rmdir()
    (tmp_path / "quickstart").write_text("name: mine\n")
    assert sweep_path(Path("quickstart")) == Path("quickstart"), "a file of that name is somebody's own"
    with pytest.raises(ConfigError, match=r"quickstar: cannot be read: .*; sweeps that come with Tuneoff: quickstart$"):
        load_sweep(Path("quickstar"))


def test_commands_take_the_name(tuneoff: Callable[..., Done], tmp_path: Path) -> None:
    done = tuneoff("run", "quickstart", "--set", "methods=[no_such_method]", "--results", str(tmp_path))
    assert done.returncode == 2
    assert "there is no method 'no_such_method'" in done.stderr
    assert str(FOLDER / "quickstart.yaml") in done.stderr
