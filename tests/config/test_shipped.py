"""Sweeps that come with Tuneoff are found by their names, and files come first."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Done

from bench.config.load import load_sweep
from bench.config.shipped import FOLDER, shipped_sweeps, sweep_path
from bench.plugins.registry import load_task, targets
from bench.schema.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]


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


def commands(path: Path) -> list[tuple[Path, list[str]]]:
    """The file and the settings of each ``tuneoff run`` in a sweep's comments."""
    text = re.sub(r"\\\n#\s*", " ", path.read_text(encoding="utf-8"))
    found = []
    for line in re.findall(r"^#\s+(tuneoff run .*)$", text, re.MULTILINE):
        words = shlex.split(line)
        settings = [value for option, value in itertools.pairwise(words) if option == "--set"]
        found.append((ROOT / words[2], settings))
    return found


@pytest.mark.parametrize(
    ("path", "settings"), [one for file in sorted((ROOT / "configs").rglob("*.yaml")) for one in commands(file)]
)
def test_settings_in_the_comments_of_sweeps_are_those_of_their_tasks(
    path: Path, settings: list[str], tmp_path: Path
) -> None:
    sweep = load_sweep(path, [one.replace("FOLDER", str(tmp_path)) for one in settings])
    settings_of_task = {key: value for key, value in sweep.task.items() if key != "name"}
    config = load_task(targets("task")[sweep.task["name"]]).Config.model_validate(settings_of_task)
    assert "\\n" not in config.template, "a shell does not make a line break of it"
    if isinstance(config.choices, list):
        labels = [method.config["init_labels"] for method in sweep.methods if "init_labels" in method.config]
        assert all(label == config.choices for label in labels)


def test_commands_take_the_name(tuneoff: Callable[..., Done], tmp_path: Path) -> None:
    done = tuneoff("run", "quickstart", "--set", "methods=[no_such_method]", "--results", str(tmp_path))
    assert done.returncode == 2
    assert "there is no method 'no_such_method'" in done.stderr
    assert str(FOLDER / "quickstart.yaml") in done.stderr
