"""Reads the description of a class that Tuneoff ships from its source, because importing a method imports torch."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

# Attributes with the source of a method or task. Their default is no source.
SOURCES = ("paper", "citation")


def read_class(target: str) -> tuple[str, str] | None:
    """The first line of a class's docstring, and its paper or citation; None if the file does not contain them.

    A class with other bases than ``Method`` or ``Task`` may inherit either, so that it has to be imported.
    """
    module, _, name = target.partition(":")
    module_spec = importlib.util.find_spec(module)
    if module_spec is None or module_spec.origin is None:
        return None
    tree = ast.parse(Path(module_spec.origin).read_bytes())
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            lines = (ast.get_docstring(node) or "").split("\n")
            source = _source(node)
            return (
                (lines[0], source)
                if bases in (["Method"], ["Task"], ["LoRAFamily"], ["StartedLoRA"]) and source is not None
                else None
            )
    return None


def _source(node: ast.ClassDef) -> str | None:
    """The value of the attribute with the paper or citation; empty without one; None if it is no plain text."""
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id in SOURCES for target in targets):
            value = getattr(statement, "value", None)
            return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None
    return ""
