"""Where the code of a plugin lies: its files, their hash, and how it reaches the processes of a trial.

A plugin is any ``module:Class`` that Tuneoff does not ship. Nothing is imported here: files are found and read.
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

# Travel with every trial, and have a fingerprint of their own.
SHIPPED = frozenset({"bench", "methods"})


class PluginError(ValueError):
    """The code of a plugin cannot be found or used. The message says what to do."""


@dataclass(frozen=True)
class PluginSource:
    """The Python files that a plugin's module and its neighbours are made of."""

    folder: Path
    """What has to be on ``sys.path``."""
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
    """The source of a ``module:Class``; None for what Tuneoff ships.

    A plugin in a folder of its own may import its neighbours there, which then belong to it. What lies in the
    environment's site-packages is a distribution's business, and only the top-level module itself is the plugin.

    Raises:
        PluginError: There is no such module on this machine.
    """
    top = target.partition(":")[0].partition(".")[0]
    return None if top in SHIPPED else _plugin_source(top)


def _plugin_source(name: str) -> PluginSource:
    found = importlib.util.find_spec(name)
    if found is None:
        raise PluginError(missing(name))
    top = _location(found)
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
    """What to do about a module that is not there."""
    return (
        f"no module {name!r} can be found; install the package that has it, put its folder on PYTHONPATH, or give the "
        "folder of its file with --plugins-dir"
    )


def _location(found: ModuleSpec) -> Path | None:
    """The package folder or the file of a top-level module."""
    if found.submodule_search_locations:
        return Path(next(iter(found.submodule_search_locations))).resolve()
    return Path(found.origin).resolve() if found.origin and found.origin.endswith(".py") else None


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
    """Top-level names that a file imports; nothing of a file that is no Python, whose import will say so."""
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
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise PluginError(f"--plugins-dir: there is no folder {str(folder)!r}")
    for path in modules_in(folder, every=True):
        name = path.stem
        found = importlib.util.find_spec(name)
        # The folder of a plugin project has the name of its plugin. To who stands beside, it is a package too, an empty
        # one, which nobody misses.
        itself = found is not None and found.origin is None and _location(found) == folder
        if name in sys.stdlib_module_names or (found is not None and _location(found) != path and not itself):
            where = f" ({found.origin})" if found is not None and found.origin else ""
            raise PluginError(f"--plugins-dir: {path} would hide the module {name!r}{where}; give it another name")
    share([folder])
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()


def share(folders: Iterable[Path]) -> None:
    """Have the processes that this one starts find the modules of these folders too."""
    before = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    added = [str(folder) for folder in dict.fromkeys(folders) if str(folder) not in before and not _is_site(folder)]
    if added:
        os.environ["PYTHONPATH"] = os.pathsep.join([*added, *before])


def modules_in(folder: Path, every: bool = False) -> list[Path]:
    """Files and packages of a folder; unless ``every``, without private ones and tests, which are no plugins."""
    found = [
        path
        for path in sorted(folder.iterdir())
        if (path.suffix == ".py" and path.is_file()) or (path / "__init__.py").is_file()
    ]
    return found if every else [path for path in found if not path.stem.startswith(("_", "test_", "conftest"))]


def sources_of(targets: Sequence[str]) -> list[PluginSource]:
    """The plugins behind these targets, each once."""
    found = [source for target in targets if (source := plugin_source(target)) is not None]
    return list({source.tops: source for source in found}.values())
