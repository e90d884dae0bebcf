"""Recognises methods, tasks, metrics and optimisers in a folder by the imports of its files, without importing them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from bench.plugins.source import neighbours

Kind = Literal["method", "task", "metric", "optimizer"]

# Helpers: a file that imports one of these from bench.metrics or bench.optimizers need not be a metric or an optimiser.
_NO_BASES = frozenset({"Array", "Measured", "MetricError", "OptimizerError", "Score", "Sources", "Texts"})
_WORDS = re.compile(r"^\s*(?:from|import)\s+(bench\.(?:method|tasks?|metrics|optimizers)\b|methods\b)", re.MULTILINE)


def kinds_of(module: Path) -> frozenset[Kind]:
    """The kinds of plugin that a module offers, by the base classes that it or its neighbours import.

    A module that imports none of them counts as a method, so that a listing shows what is wrong with it.

    Args:
        module: A file, or the folder of a package.
    """
    seen = [module]
    for each in seen:  # grows while it is walked
        if kinds := frozenset(kind for path in _files(each) for kind in _imported(path)):
            return kinds
        seen.extend(path for path in neighbours(each) if path not in seen)
    return frozenset({"method"})


def _files(module: Path) -> list[Path]:
    return [module] if module.is_file() else sorted(module.rglob("*.py"))


def _imported(path: Path) -> Iterator[Kind]:
    content = path.read_bytes()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # a broken file is offered, too, so that a listing shows what is wrong with it
        for name in _WORDS.findall(content.decode("utf-8", errors="replace")):
            yield from _kind(name, None)
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _kind(alias.name, None)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                if node.module == "bench":
                    yield from _kind(f"bench.{alias.name}", None)
                else:
                    yield from _kind(node.module, alias.name)


def _kind(module: str, name: str | None) -> Iterator[Kind]:
    """The kind whose base class is imported, if any; ``name`` is None if the module itself is imported."""
    top, _, rest = module.partition(".")
    part = rest.partition(".")[0]
    whole = name in (None, "*")
    if top == "methods" or (top == "bench" and part == "method" and (whole or name == "Method")):
        yield "method"
    elif top == "bench" and (part == "tasks" or (part == "task" and (whole or name == "Task"))):
        yield "task"
    elif top == "bench" and part == "metrics" and (name is None or whole or _is_base(name)):
        yield "metric"
    elif top == "bench" and part == "optimizers" and (name is None or whole or _is_base(name)):
        yield "optimizer"


def _is_base(name: str) -> bool:
    return name[:1].isupper() and not name.isupper() and name not in _NO_BASES
