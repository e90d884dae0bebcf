"""Writes a plugin project: a method, task or metric that works, its entry point and its test."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path
from string import Template

from bench.conformance.plugin_templates import files_of
from bench.plugins.offers import Kind
from bench.plugins.registry import offers_by_name
from bench.schema.validation import ConfigError


def write_project(name: str, parent: Path, kind: Kind = "method") -> Path:
    """Write the project into ``parent/name``; returns that folder.

    Raises:
        ConfigError: The name is no name of a module, is taken, or the folder exists.
    """
    _require_free(name, kind)
    folder = parent / name
    if folder.exists():
        raise ConfigError(f"new-{kind}: {str(folder)!r} is there already; choose another name or --into another folder")
    words = {
        "name": name,
        "dashed": name.replace("_", "-"),
        "class_name": _class_name(name, kind),
    }
    for file, text in files_of(kind).items():
        path = folder / Template(file).substitute(words)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(text).substitute(words), encoding="utf-8")
    return folder


def _class_name(name: str, kind: Kind) -> str:
    """The plugin's class, with its kind behind it where the name alone is Python's or one that its files use."""
    class_name = "".join(part.capitalize() for part in name.split("_"))
    code = "\n".join(text for file, text in files_of(kind).items() if file.endswith(".py"))
    taken = keyword.iskeyword(class_name) or re.search(rf"\b{class_name}\b", code) is not None
    return class_name + kind.capitalize() if taken else class_name


def _require_free(name: str, kind: Kind) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(f"new-{kind}: {name!r} cannot name a Python module; use small letters, digits and _")
    if name in offers_by_name(kind):
        raise ConfigError(f"new-{kind}: there is a {kind} {name!r} already; choose another name")
    if name.startswith("test_") or importlib.util.find_spec(name) is not None:
        raise ConfigError(f"new-{kind}: {name!r} is the name of a module that is installed here; choose another name")
