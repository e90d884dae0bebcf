"""Name -> "module:Class" -> class, for methods, tasks, metrics and optimisers.

Names come from the table of built-ins, from the entry points of installed packages, and from the files of a folder. A
text of the form ``module:Class`` needs no lookup. A broken or ambiguous name raises an error when it is used; others
can still be listed and used.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from pydantic import TypeAdapter, ValidationError

from bench.optimizers import OPTIMIZERS
from bench.plugins.offers import Kind, kinds_of
from bench.plugins.read_class import read_class
from bench.plugins.source import missing, modules_in, use_folder
from bench.schema.home import with_home
from bench.schema.printable import in_brief
from bench.schema.search_space import SearchSpace
from bench.schema.trial import MethodSpec, TaskSpec
from bench.task import Task
from bench.tasks import TASKS
from methods import METHODS

if TYPE_CHECKING:
    from bench.method import Method
    from bench.metrics import Metric
    from bench.metrics.known import Known
    from bench.optimizers.optimizer import Optimizer

GROUPS: dict[Kind, str] = {
    "method": "tuneoff.methods",
    "task": "tuneoff.tasks",
    "metric": "tuneoff.metrics",
    "optimizer": "tuneoff.optimizers",
}
BUILT_IN = "tuneoff"
_SEARCH_SPACE = TypeAdapter(SearchSpace)


class RegistryError(ValueError):
    """A name is unknown, taken twice, or its class cannot be loaded."""


@dataclass(frozen=True)
class Offer:
    """A name, the class that it stands for, and who offers it."""

    name: str
    target: str
    """``module:Class``; for a file in a folder ``module``, whose only class of the kind is meant."""
    origin: str
    """``tuneoff``, a distribution with its version, or a file."""


def offers_by_name(
    kind: Kind, plugins_dir: Path | None = None, requested: Collection[str] = ()
) -> dict[str, list[Offer]]:
    """All names with their offers, built-in ones first. Several offers of a name are a clash. Imports no plugin.

    Args:
        kind: Methods, tasks, metrics or optimisers.
        plugins_dir: A folder whose files are plugins, too. Their imports tell their kinds.
        requested: Names whose files are offers of this kind, whatever they import.

    Raises:
        PluginError: The folder cannot be used.
    """
    offers = [Offer(name, target, BUILT_IN) for name, target in table(kind).items()]
    offers += [Offer(point.name, point.value, _distribution(point)) for point in entry_points(group=GROUPS[kind])]
    if plugins_dir is not None:
        use_folder(plugins_dir)
        offers += [
            Offer(path.stem, path.stem, str(path))
            for path in modules_in(with_home(plugins_dir).resolve())
            if path.stem in requested or kind in kinds_of(path)
        ]
    by_name: dict[str, list[Offer]] = {}
    for offer in offers:
        rivals = by_name.setdefault(offer.name, [])
        if offer.target not in {rival.target for rival in rivals}:  # the metadata of a package may be found twice
            rivals.append(offer)
    return by_name


def table(kind: Kind) -> dict[str, str]:
    """The names of the built-in classes of a kind, to their ``module:Class``."""
    if kind == "metric":
        from bench.metrics import METRICS  # imports numpy, which names of methods and tasks do not need

        return METRICS
    return {"method": METHODS, "task": TASKS, "optimizer": OPTIMIZERS}[kind]


def targets(kind: Kind) -> dict[str, str]:
    """The names of built-in and installed classes, to their ``module:Class``, without names that clash."""
    return {name: offers[0].target for name, offers in offers_by_name(kind).items() if len(offers) == 1}


def resolve(kind: Kind, name: str, plugins_dir: Path | None = None) -> str:
    """The ``module:Class`` of a name. A text of that form is returned as it is.

    Raises:
        RegistryError: The name is unknown, or has several offers.
        PluginError: The folder cannot be used.
    """
    return resolve_all(kind, [name], plugins_dir)[name]


def resolve_all(kind: Kind, names: Sequence[str], plugins_dir: Path | None = None) -> dict[str, str]:
    """The results of :func:`resolve` for several names. Installed packages are searched once."""
    offered = offers_by_name(kind, plugins_dir, names)
    return {name: name if ":" in name else _resolved(kind, name, offered, plugins_dir) for name in names}


def _resolved(kind: Kind, name: str, offered: dict[str, list[Offer]], plugins_dir: Path | None) -> str:
    if name not in offered:
        close = difflib.get_close_matches(name, offered, n=3)
        meant = f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
        folder = "; names of files come from --plugins-dir" if plugins_dir is None else ""
        raise RegistryError(
            f"there is no {kind} {in_brief(name)}{meant or '.'} Known: {', '.join(offered)}. Names of plugins come "
            f"from the metadata of installed packages (after a change of pyproject.toml, install again){folder}; "
            "'module:Class' works too"
        )
    return _only(kind, offered[name])


def _base(kind: Kind) -> type[Any]:
    """The base class of a kind. That of methods imports torch, so that it is imported here and not above."""
    if kind == "task":
        return Task
    if kind == "metric":
        from bench.metrics import Metric

        return Metric
    if kind == "optimizer":
        from bench.optimizers.optimizer import Optimizer

        return Optimizer
    from bench.method import Method

    return Method


def _only(kind: Kind, offers: list[Offer]) -> str:
    """The target of the one offer of a name.

    Raises:
        RegistryError: There are several offers, or the offer is a file without exactly one class of the kind.
    """
    if len(offers) > 1:
        rivals = " and by ".join(f"{offer.origin} ({offer.target})" for offer in offers)
        raise RegistryError(
            f"the {kind} {offers[0].name!r} is given by {rivals}; uninstall one of them, rename one (a file, or an "
            "entry point in its pyproject.toml), or name the class itself as 'module:Class'"
        )
    target = offers[0].target
    return target if ":" in target else _class_in_file(kind, offers[0])


def _class_in_file(kind: Kind, offer: Offer) -> str:
    module = _import(kind, offer.target, offer.target)
    own = classes_in(kind, module)
    # If all classes are abstract, the abstract one is meant. Loading it says what it lacks.
    classes = [name for name, value in own.items() if not inspect.isabstract(value)] or list(own)
    if len(classes) != 1:
        count = ", ".join(classes) if classes else f"no subclass of {_base(kind).__name__}"
        raise RegistryError(
            f"{offer.origin} defines {count}; a file gives one {kind} under its own name. Let a name begin with _ to "
            f"hide it, or write '{offer.target}:Class'"
        )
    return f"{offer.target}:{classes[0]}"


def classes_in(kind: Kind, module: ModuleType) -> dict[str, type[Any]]:
    """The public classes of a kind that a module or package defines itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, _base(kind))
        and (value.__module__ == module.__name__ or value.__module__.startswith(f"{module.__name__}."))
        and not name.startswith("_")
    }


def load(kind: Kind, target: str) -> type[Any]:
    """The class behind ``module:Class``.

    Raises:
        RegistryError: The class cannot be imported, is of another kind, or lacks a method of its kind.
    """
    loaded = class_of(kind, target)
    if lacking := sorted(getattr(loaded, "__abstractmethods__", ())):
        raise RegistryError(f"the {kind} {target!r} cannot be used: its class lacks {', '.join(lacking)}")
    if (problem := _wrong_attribute(kind, loaded)) is not None:
        raise RegistryError(f"the {kind} {target!r} cannot be used: {problem}")
    return loaded


def _wrong_attribute(kind: Kind, loaded: type[Any]) -> str | None:
    """What is wrong with the attributes of a class of methods or tasks; None if nothing is."""
    if kind not in ("method", "task"):
        return None
    settings = _base(kind).Config.__base__
    config = getattr(loaded, "Config", None)
    if not (isinstance(config, type) and issubclass(config, settings)):
        return f"its Config is {in_brief(config)}; it must be a subclass of {settings.__name__}"
    if kind == "method":
        if not isinstance(loaded.trains, bool):
            return f"its trains is {in_brief(loaded.trains)}; it must be True or False"
        try:
            _SEARCH_SPACE.validate_python(loaded.search_space)
        except ValidationError as error:
            first = error.errors()[0]
            key = "".join(f"[{part!r}]" for part in first["loc"][:1])
            return f"its search_space{key} is {in_brief(first['input'])}; it must map keys to Range or Choices"
    return None


def class_of(kind: Kind, target: str) -> type[Any]:
    """The class behind ``module:Class``, which may be incomplete, for a check of the contract.

    Raises:
        RegistryError: The class cannot be imported or is of another kind.
    """
    module_name, _, class_name = target.partition(":")
    module = _import(kind, target, module_name)
    base = _base(kind)
    if not hasattr(module, class_name):
        classes = [name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)]
        has = f"it has {', '.join(classes)}" if classes else f"it has no subclass of {base.__name__}"
        raise RegistryError(f"the {kind} {target!r} cannot be loaded: {module_name} has no {class_name!r}; {has}")
    loaded = getattr(module, class_name)
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        article = "an" if kind[0] in "aeiou" else "a"
        raise RegistryError(f"{target!r} is not {article} {kind}: it must be a subclass of {base.__name__}")
    return loaded


def _import(kind: Kind, target: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]
        remedy = missing(module_name) if absent else "repair the plugin, install what it needs, or uninstall it"
        raise RegistryError(
            f"the {kind} {target!r} cannot be loaded: {type(error).__name__}: {error}; {remedy}"
        ) from error


@dataclass(frozen=True)
class Described:
    """A method, task or metric in a listing; ``problem`` says why it cannot be used."""

    name: str
    description: str
    source: str
    target: str
    origin: str
    problem: str | None = None


def describe(kind: Kind, plugins_dir: Path | None = None) -> list[Described]:
    """Describe all classes of a kind, including broken ones: the first line of the docstring, and the source."""
    described = []
    for name, offers in offers_by_name(kind, plugins_dir).items():
        origin = " and ".join(offer.origin for offer in offers)
        try:
            target = _only(kind, offers)
            if target in table(kind).values() and (read := read_class(target)) is not None:
                described.append(Described(name, *read, target, origin))
                continue
            loaded = load_metric(target, name) if kind == "metric" else load_any(kind, target)
        except RegistryError as error:
            described.append(Described(name, "", "", offers[0].target, origin, str(error)))
            continue
        source = getattr(loaded, "paper", "") or getattr(loaded, "citation", "")
        described.append(Described(name, summary(loaded), source, target, origin))
    return described


def summary(described: type[Any]) -> str:
    """The first line of a class's own docstring."""
    return (described.__doc__ or "").strip().split("\n")[0]


def load_any(kind: Kind, target: str) -> type[Any]:
    """As :func:`load`, and optimisers may also be classes of torch's kind, see :func:`load_optimizer`.

    Raises:
        RegistryError: As there.
    """
    return load_optimizer(target) if kind == "optimizer" else load(kind, target)


def load_method(target: str) -> type[Method]:
    """A method's class; see :func:`load`."""
    return cast("type[Method]", load("method", target))


def make_method(spec: MethodSpec, tokenizer: Any = None) -> Method:
    """The method of a specification, with its settings; see :func:`load`."""
    method_class = load_method(spec.target)
    config = method_class.Config(**spec.config)
    try:
        inspect.signature(method_class).bind(config, tokenizer)
    except TypeError as error:
        raise RegistryError(
            f"the method {spec.target!r} cannot be made: {error}; its __init__ takes (self, config, tokenizer)"
        ) from error
    return method_class(config, tokenizer)


def load_optimizer(name: str) -> type[Optimizer]:
    """The class of an optimiser, by one of Tuneoff's names or by ``module:Class``, which may also be one of torch's.

    Raises:
        RegistryError: It cannot be imported, or is none.
    """
    target = OPTIMIZERS.get(name, name)
    module_name, _, class_name = target.partition(":")
    found = getattr(_import("optimizer", target, module_name), class_name, None)
    from torch.optim import Optimizer as OptimizerOfTorch

    if isinstance(found, type) and issubclass(found, OptimizerOfTorch):
        from bench.optimizers.optimizer import optimizer_of_torch_class

        return optimizer_of_torch_class(found)
    return cast("type[Optimizer]", load("optimizer", target))


def load_task(target: str) -> type[Task]:
    """A task's class; see :func:`load`."""
    return cast("type[Task]", load("task", target))


def make_task(spec: TaskSpec) -> Task:
    """The task of a specification, with its settings; see :func:`load`."""
    task_class = load_task(spec.target)
    task = task_class(task_class.Config(**spec.config))
    if spec.plugin_metrics:  # some may be named by their class
        called = {metric.target: metric.name for metric in spec.plugin_metrics}
        task.scoring = replace(task.scoring, metrics=tuple(called.get(name, name) for name in task.scoring.metrics))
    return task


def load_metric(target: str, name: str | None = None) -> type[Metric]:
    """A metric's class; see :func:`load`. From now on this process can test differences in its scores.

    Args:
        target: ``module:Class``.
        name: The name in the sweep; None if it names the class itself.

    Raises:
        RegistryError: The class cannot be loaded, is no sound metric, or has another name.
    """
    from bench.metrics.known import LOADED, class_problem

    metric = cast("type[Metric]", load("metric", target))
    if (problem := class_problem(metric)) is not None:
        raise RegistryError(f"the metric {target!r} cannot be used: {problem}")
    if name is not None and name != metric.name:
        raise RegistryError(
            f"the metric {target!r} is offered as {name!r} and calls itself {metric.name!r}, under which its scores "
            "would be found; give it one name"
        )
    if target != table("metric").get(metric.name):
        LOADED[target] = metric
    return metric


def metrics_of(spec: TaskSpec) -> Known:
    """The metrics of a task: the built-in ones, and those of plugins that the task names."""
    from bench.metrics.known import BUILT_IN as SHIPPED_METRICS
    from bench.metrics.known import KnownMetrics

    if not spec.plugin_metrics:
        return SHIPPED_METRICS
    return KnownMetrics({metric.name: load_metric(metric.target) for metric in spec.plugin_metrics})


def load_metrics(plugins_dir: Path | None = None) -> None:
    """Load all metrics of plugins, so that differences in their scores can be tested.

    Broken metrics are left out: a report that needs one says so.

    Raises:
        PluginError: The folder cannot be used.
    """
    for offers in offers_by_name("metric", plugins_dir).values():
        for offer in offers:
            if offer.origin == BUILT_IN:
                continue
            module = offer.target.partition(":")[0]
            try:
                for name in classes_in("metric", _import("metric", offer.target, module)):
                    load_metric(f"{module}:{name}")
            except RegistryError:
                continue


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
