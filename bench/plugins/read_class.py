"""What a listing tells of a class that Tuneoff ships, read from its source: to import a method takes torch."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

# Attributes with the source of a method or task. Their default is no source.
SOURCES = ("paper", "citation")


def read_class(target: str) -> tuple[str, str] | None:
    """The first line of a class's docstring, and its source; None where the file does not tell.

    A class with other bases than ``Method`` or ``Task`` may have inherited either.
    """
    module, _, name = target.partition(":")
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        return None
    tree = ast.parse(Path(found.origin).read_bytes())
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            lines = (ast.get_docstring(node) or "").split("\n")
            source = _source(node)
            return (lines[0], source) if bases in (["Method"], ["Task"]) and source is not None else None
    return None


def _source(node: ast.ClassDef) -> str | None:
    """The value of the attribute with the source, empty where there is none; None where it is no plain text."""
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id in SOURCES for target in targets):
            value = getattr(statement, "value", None)
            return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None
    return ""
