"""Name -> "module:Class" -> class, for methods and for tasks.

Names come from the table of built-ins, from the entry points of installed packages, and for methods also from the files
of a folder. A text of the form ``module:Class`` stands for itself. What is broken or ambiguous is an error when it is
asked for by name; it never keeps others from being listed or used.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, cast

from bench.plugins.read_class import read_class
from bench.plugins.source import missing, modules_in, use_folder
from bench.schema.trial import MethodSpec, TaskSpec
from bench.task import Task
from bench.tasks import TASKS
from methods import METHODS

if TYPE_CHECKING:
    from bench.method import Method

Kind = Literal["method", "task"]

_TABLES: dict[Kind, dict[str, str]] = {"method": METHODS, "task": TASKS}
_GROUPS: dict[Kind, str] = {"method": "tuneoff.methods", "task": "tuneoff.tasks"}
BUILT_IN = "tuneoff"


class RegistryError(ValueError):
    """A name is unknown, taken twice, or its class cannot be loaded."""


@dataclass(frozen=True)
class Known:
    """A name that something offers."""

    name: str
    target: str
    """``module:Class``, or of a file in a folder ``module``, whose one method is meant."""
    origin: str
    """``tuneoff``, a distribution with its version, or a file."""


def known(kind: Kind, methods_dir: Path | None = None) -> dict[str, list[Known]]:
    """All names with who offers them, built-in ones first; more than one offer is a clash. Imports no plugin.

    Raises:
        PluginError: The folder cannot be used.
    """
    offers = [Known(name, target, BUILT_IN) for name, target in _TABLES[kind].items()]
    offers += [Known(point.name, point.value, _distribution(point)) for point in entry_points(group=_GROUPS[kind])]
    if methods_dir is not None and kind == "method":
        use_folder(methods_dir)
        offers += [Known(path.stem, path.stem, str(path)) for path in modules_in(methods_dir.expanduser().resolve())]
    found: dict[str, list[Known]] = {}
    for offer in offers:
        rivals = found.setdefault(offer.name, [])
        if offer.target not in {rival.target for rival in rivals}:  # the metadata of a package may be found twice
            rivals.append(offer)
    return found


def targets(kind: Kind) -> dict[str, str]:
    """Names of built-ins and installed packages and their ``module:Class``, without names that clash."""
    return {name: offers[0].target for name, offers in known(kind).items() if len(offers) == 1}


def resolve(kind: Kind, name: str, methods_dir: Path | None = None) -> str:
    """The ``module:Class`` of a name; a text of that form stands for itself.

    Raises:
        RegistryError: The name is unknown, or two offer it.
        PluginError: The folder cannot be used.
    """
    names = known(kind, methods_dir)
    if ":" in name:
        return name
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3)
        meant = f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
        folder = "; names of files come from --methods-dir" if kind == "method" and methods_dir is None else ""
        raise RegistryError(
            f"there is no {kind} {name!r}{meant or '.'} Known: {', '.join(names)}. Names of plugins come from the "
            f"metadata of installed packages (after a change of pyproject.toml, install again){folder}; "
            "'module:Class' works too"
        )
    return _only(kind, names[name])


def _base(kind: Kind) -> type[Any]:
    """The class that methods or tasks are subclasses of. That of methods imports torch, which names do not need."""
    if kind == "task":
        return Task
    from bench.method import Method

    return Method


def _only(kind: Kind, offers: list[Known]) -> str:
    """The target of the one offer of a name.

    Raises:
        RegistryError: There are several, or it is a file without exactly one method.
    """
    if len(offers) > 1:
        rivals = " and by ".join(f"{offer.origin} ({offer.target})" for offer in offers)
        raise RegistryError(
            f"the {kind} {offers[0].name!r} is given by {rivals}; uninstall one of them, rename one (a file, or an "
            "entry point in its pyproject.toml), or name the class itself as 'module:Class'"
        )
    target = offers[0].target
    return target if ":" in target else _class_in_file(kind, offers[0])


def _class_in_file(kind: Kind, offer: Known) -> str:
    module = _import(kind, offer.target, offer.target)
    classes = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, _base(kind))
        and (value.__module__ == module.__name__ or value.__module__.startswith(f"{module.__name__}."))
        and not (name.startswith("_") or inspect.isabstract(value))
    ]
    if len(classes) != 1:
        count = ", ".join(classes) if classes else f"no subclass of {_base(kind).__name__}"
        raise RegistryError(
            f"{offer.origin} defines {count}; a file gives one {kind} under its own name. Let a name begin with _ to "
            f"hide it, or write '{offer.target}:Class'"
        )
    return f"{offer.target}:{classes[0]}"


def load(kind: Kind, target: str) -> type[Any]:
    """The class behind ``module:Class``.

    Raises:
        RegistryError: It cannot be imported or is of another kind.
    """
    module_name, _, class_name = target.partition(":")
    module = _import(kind, target, module_name)
    base = _base(kind)
    if not hasattr(module, class_name):
        classes = [name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)]
        has = f"it has {', '.join(classes)}" if classes else f"it has no subclass of {base.__name__}"
        raise RegistryError(f"the {kind} {target!r} cannot be loaded: {module_name} has no {class_name!r}; {has}")
    found = getattr(module, class_name)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise RegistryError(f"{target!r} is not a {kind}: it must be a subclass of {base.__name__}")
    return found


def _import(kind: Kind, target: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]
        remedy = missing(module_name) if absent else "repair the plugin, install what it needs, or uninstall it"
        raise RegistryError(
            f"the {kind} {target!r} cannot be loaded: {type(error).__name__}: {error}; {remedy}"
        ) from error


@dataclass(frozen=True)
class Described:
    """What a listing tells of a method or task; ``problem`` says why it cannot be used."""

    name: str
    description: str
    source: str
    target: str
    origin: str
    problem: str | None = None


def describe(kind: Kind, methods_dir: Path | None = None) -> list[Described]:
    """All known methods or tasks, with the first line of their docstring and their source, broken ones included."""
    found = []
    for name, offers in known(kind, methods_dir).items():
        origin = " and ".join(offer.origin for offer in offers)
        try:
            target = _only(kind, offers)
            if target in _TABLES[kind].values() and (read := read_class(target)) is not None:
                found.append(Described(name, *read, target, origin))
                continue
            loaded = load(kind, target)
        except RegistryError as error:
            found.append(Described(name, "", "", offers[0].target, origin, str(error)))
            continue
        source = getattr(loaded, "paper", "") or getattr(loaded, "citation", "")
        found.append(Described(name, summary(loaded), source, target, origin))
    return found


def summary(found: type[Any]) -> str:
    """The first line of a class's own docstring."""
    return (found.__doc__ or "").strip().split("\n")[0]


def load_method(target: str) -> type[Method]:
    """A method's class; see :func:`load`."""
    return cast("type[Method]", load("method", target))


def make_method(spec: MethodSpec, tokenizer: Any = None) -> Method:
    """The method of a specification, with its settings; see :func:`load`."""
    method_class = load_method(spec.target)
    return method_class(method_class.Config(**spec.config), tokenizer)


def load_task(target: str) -> type[Task]:
    """A task's class; see :func:`load`."""
    return cast("type[Task]", load("task", target))


def make_task(spec: TaskSpec) -> Task:
    """The task of a specification, with its settings; see :func:`load`."""
    task_class = load_task(spec.target)
    return task_class(task_class.Config(**spec.config))


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
