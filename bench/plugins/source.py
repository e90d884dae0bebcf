"""Finds the files of a plugin, hashes them, and makes other processes find them.

A plugin is any ``module:Class`` that Tuneoff does not ship. Files are found and read, and no plugin is imported.
Imports neither torch nor ray.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions, version
from pathlib import Path

from bench.schema.home import with_home

# These packages travel with every trial, and have a fingerprint of their own.
SHIPPED = frozenset({"bench", "methods"})


class PluginError(ValueError):
    """The code of a plugin cannot be found or used. The message says what to do."""


@dataclass(frozen=True)
class PluginSource:
    """The Python files of a plugin's module and of its neighbours."""

    folder: Path
    """The folder that has to be on ``sys.path``."""
    tops: tuple[Path, ...]
    """Packages (folders) and single files in that folder: the plugin's own, and those of its imports that lie there."""
    origin: str
    """Distribution and version, or the file."""

    def files(self) -> list[Path]:
        """All Python files, in a fixed order."""
        return [path for top in self.tops for path in ([top] if top.is_file() else sorted(top.rglob("*.py")))]

    def sha256(self) -> str:
        """Hash over names and contents of the files."""
        digest = hashlib.sha256()
        for path in self.files():
            digest.update(f"{path.relative_to(self.folder).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def plugin_source(target: str) -> PluginSource | None:
    """The source of a ``module:Class``; None for a class that Tuneoff ships.

    A plugin in a folder of its own may import its neighbours there, which then belong to it. In the environment's
    site-packages only the top-level module belongs to the plugin, because distributions install everything else.

    Raises:
        PluginError: There is no such module on this machine.
    """
    top = target.partition(":")[0].partition(".")[0]
    return None if top in SHIPPED else _plugin_source(top)


def _plugin_source(name: str) -> PluginSource:
    module_spec = importlib.util.find_spec(name)
    if module_spec is None:
        raise PluginError(missing(name))
    top = _location(module_spec)
    if top is None:
        raise PluginError(f"the module {name!r} is no Python file and no package, so its source cannot be told")
    folder = top.parent
    tops = [top]
    if not _is_site(folder):
        for each in tops:  # grows while it is walked: neighbours may have neighbours
            tops.extend(path for path in neighbours(each) if path not in tops)
    return PluginSource(folder, (top, *sorted(tops[1:])), _distribution(name) or str(top))


@functools.cache
def _distribution(name: str) -> str | None:
    distributions = packages_distributions().get(name)
    return f"{distributions[0]} {version(distributions[0])}" if distributions else None


def missing(name: str) -> str:
    """A message about a module that is missing, with the remedy."""
    return (
        f"no module {name!r} can be found; install the package that has it, put its folder on PYTHONPATH, or give the "
        "folder of its file with --plugins-dir"
    )


def _location(module: ModuleSpec) -> Path | None:
    """The package folder or the file of a top-level module; None if it has neither."""
    if module.submodule_search_locations:
        return Path(next(iter(module.submodule_search_locations))).resolve()
    return Path(module.origin).resolve() if module.origin and module.origin.endswith(".py") else None


def _is_site(folder: Path) -> bool:
    paths = sysconfig.get_paths()
    return folder in {Path(paths[key]).resolve() for key in ("purelib", "platlib", "stdlib")}


def neighbours(top: Path) -> Iterator[Path]:
    """Modules in the same folder that ``top`` imports by their absolute names."""
    for path in [top] if top.is_file() else sorted(top.rglob("*.py")):
        for name in sorted(_imported(path) - SHIPPED):
            for candidate in (top.parent / name, top.parent / f"{name}.py"):
                if candidate.is_file() or (candidate / "__init__.py").is_file():
                    yield candidate
                    break


def _imported(path: Path) -> set[str]:
    """Top-level names that a file imports; none if it is no Python, which its import will report."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


def use_folder(folder: Path) -> None:
    """Make the modules of a folder importable, here and in the processes that this one starts.

    Raises:
        PluginError: There is no such folder, or one of its modules would hide another one of the same name.
    """
    folder = with_home(folder).resolve()
    if not folder.is_dir():
        raise PluginError(f"--plugins-dir: there is no folder {str(folder)!r}")
    for path in modules_in(folder, every=True):
        name = path.stem
        other = importlib.util.find_spec(name)
        # The folder of a plugin project has the name of its plugin. If its parent is on sys.path, Python takes the
        # folder for an empty package, which may be hidden.
        itself = other is not None and other.origin is None and _location(other) == folder
        if name in sys.stdlib_module_names or (other is not None and _location(other) != path and not itself):
            where = f" ({other.origin})" if other is not None and other.origin else ""
            raise PluginError(f"--plugins-dir: {path} would hide the module {name!r}{where}; give it another name")
    share([folder])
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()


def share(folders: Iterable[Path]) -> None:
    """Make the processes that this one starts find the modules of these folders, too."""
    before = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    added = [str(folder) for folder in dict.fromkeys(folders) if str(folder) not in before and not _is_site(folder)]
    if added:
        os.environ["PYTHONPATH"] = os.pathsep.join([*added, *before])


def modules_in(folder: Path, every: bool = False) -> list[Path]:
    """Modules and packages of a folder; unless ``every``, without private ones and tests, which are no plugins."""
    modules = [
        path
        for path in sorted(folder.iterdir())
        if (path.suffix == ".py" and path.is_file()) or (path / "__init__.py").is_file()
    ]
    return modules if every else [path for path in modules if not path.stem.startswith(("_", "test_", "conftest"))]


def sources_of(targets: Sequence[str]) -> list[PluginSource]:
    """The sources of the plugins among these targets, each once."""
    sources = [source for target in targets if (source := plugin_source(target)) is not None]
    return list({source.tops: source for source in sources}.values())
