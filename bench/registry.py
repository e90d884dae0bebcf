"""Name -> "module:Class" -> class, for methods and for tasks: tables of built-ins, entry points for the rest."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, cast

from bench.method import Method
from bench.task import Task
from bench.tasks import TASKS
from methods import METHODS

Kind = Literal["method", "task"]

_TABLES: dict[Kind, dict[str, str]] = {"method": METHODS, "task": TASKS}
_GROUPS: dict[Kind, str] = {"method": "tuneoff.methods", "task": "tuneoff.tasks"}
_BASES: dict[Kind, type[Any]] = {"method": Method, "task": Task}


class RegistryError(ValueError):
    """A name is unknown, taken twice, or its class cannot be loaded."""


def targets(kind: Kind) -> dict[str, str]:
    """All known names and their ``module:Class``, built-in ones first.

    Raises:
        RegistryError: Two distributions give the same name.
    """
    known = dict(_TABLES[kind])
    origin = dict.fromkeys(known, "tuneoff")
    for point in entry_points(group=_GROUPS[kind]):
        if point.name in known and known[point.name] != point.value:
            raise RegistryError(
                f"the {kind} {point.name!r} is given by {origin[point.name]} and by {_distribution(point)}; "
                "uninstall one of them, or have one rename its entry point"
            )
        known[point.name] = point.value
        origin[point.name] = _distribution(point)
    return known


def resolve(kind: Kind, name: str) -> str:
    """The ``module:Class`` of a name; a text of that form stands for itself.

    Raises:
        RegistryError: The name is unknown.
    """
    if ":" in name:
        return name
    known = targets(kind)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        meant = f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
        raise RegistryError(
            f"there is no {kind} {name!r}{meant} Known: {', '.join(known)}. Names of plugins come from installed "
            "packages; 'module:Class' works too"
        )
    return known[name]


def load(kind: Kind, target: str) -> type[Any]:
    """The class behind ``module:Class``.

    Raises:
        RegistryError: It cannot be imported or is of another kind.
    """
    module_name, _, class_name = target.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:
        raise RegistryError(f"the {kind} {target!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, _BASES[kind])):
        raise RegistryError(f"{target!r} is not a {kind}: it must be a subclass of {_BASES[kind].__name__}")
    return found


@dataclass(frozen=True)
class Described:
    """What a listing tells of a method or task."""

    name: str
    description: str
    source: str
    target: str


def describe(kind: Kind) -> list[Described]:
    """All known methods or tasks, with the first line of their docstring and their source."""
    return [
        Described(name, _summary(found), getattr(found, "paper", "") or getattr(found, "citation", ""), target)
        for name, target in targets(kind).items()
        for found in (load(kind, target),)
    ]


def _summary(found: type[Any]) -> str:
    return (found.__doc__ or "").strip().split("\n")[0]


def load_method(target: str) -> type[Method]:
    """A method's class; see :func:`load`."""
    return cast("type[Method]", load("method", target))


def load_task(target: str) -> type[Task]:
    """A task's class; see :func:`load`."""
    return cast("type[Task]", load("task", target))


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value
