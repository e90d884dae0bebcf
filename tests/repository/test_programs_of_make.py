"""Programs that ``make`` starts find the modules that they import, on the path that their line in the Makefile sets."""

from __future__ import annotations

import ast
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = re.compile(
    r"^\t(?:cd (?P<folder>\S+) && )?(?P<settings>(?:\w+=\S+ )*)\S*python -m (?P<module>[\w.]+)", re.MULTILINE
)


def programs() -> dict[str, list[Path]]:
    """Module of each program that a line of the Makefile starts, with the folders that it is searched in."""
    found = {}
    for recipe in RECIPE.finditer((ROOT / "Makefile").read_text(encoding="utf-8")):
        folder = ROOT / (recipe["folder"] or ".")
        settings = dict(setting.split("=", 1) for setting in recipe["settings"].split())
        path = settings.get("PYTHONPATH", "").replace("$(CURDIR)", str(ROOT))
        found[recipe["module"]] = [folder, *(folder / part for part in path.split(":") if part)]
    return found


def imports(module: str, folders: list[Path], seen: set[str]) -> list[str]:
    """Modules that cannot be found, of all that a module in these folders imports, directly or through others there."""
    name = module.partition(".")[0]
    if name in seen:
        return []
    seen.add(name)
    places = [folder / name for folder in folders]
    files = [
        file for place in places for file in (place.with_suffix(".py"), *sorted(place.glob("*.py"))) if file.is_file()
    ]
    if name in (*sys.stdlib_module_names, "bench", "methods"):
        return []
    if not files:
        return [] if PathFinder.find_spec(name) else [name]
    missing = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for imported in names:
                missing += imports(imported, folders, seen)
    return missing


@pytest.fixture(autouse=True)
def the_path_of_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the folders of tests, which pytest has put on its own path."""
    monkeypatch.setattr("sys.path", [folder for folder in sys.path if not folder.startswith(str(ROOT / "tests"))])


@pytest.mark.parametrize("module", ["chaos", "overhead", "clean_exits", "false_calls", "race", "race.profile"])
def test_a_program_finds_what_it_imports(module: str) -> None:
    assert imports(module, programs()[module], set()) == []


def test_a_module_that_the_path_leaves_out_is_missed() -> None:
    folders = [folder for folder in programs()["overhead"] if folder.resolve() != ROOT / "tests"]
    assert "conftest" in imports("overhead", folders, set())
