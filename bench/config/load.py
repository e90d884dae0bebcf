"""YAML and --set -> Sweep -> [TrialSpec]. Bad input is one message that names file, key and value.

Imports neither torch nor ray: the classes that validate the settings of methods and tasks are handed in.
"""

from __future__ import annotations

import copy
import errno
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bench.config.shipped import shipped_sweeps
from bench.plugins.registry import RegistryError
from bench.schema.printable import in_brief, in_short
from bench.schema.same_answer import distinct
from bench.schema.search_space import SearchSpace
from bench.schema.strict_yaml import YamlError, parse_yaml
from bench.schema.sweep import MethodEntry, Sweep
from bench.schema.trial import (
    DecodeSpec,
    EvaluationSpec,
    JsonDict,
    MethodSpec,
    ModelSpec,
    OptimizerSpec,
    ResourceSpec,
    TaskSpec,
    TrainSpec,
    TrialSpec,
)
from bench.schema.validation import ConfigError, check_attention, check_batches, check_sizes, refuse_decoding, validated

# Of a grid; all of them are listed before the first trial runs.
MOST_CHOICES = 1_000_000
# A bare text in place of these mappings stands for this key of theirs.
SHORT_FORMS = {"model": "path", "task": "name"}
# What YAML reads as null. It takes a comment alone for null, too.
NULLS = ("null", "Null", "NULL", "~", "")


class Resolver(Protocol):
    """Turns names into classes and validates their settings; see :mod:`bench.config.resolver`."""

    def method(self, name: str, config: JsonDict) -> MethodSpec: ...

    def task(self, name: str, config: JsonDict) -> TaskSpec: ...

    def stop(self, name: str, config: JsonDict) -> Sequence[str]: ...

    def model(self, spec: ModelSpec) -> ModelSpec: ...

    def trains(self, method: MethodSpec) -> bool: ...

    def search_space(self, method: MethodSpec) -> SearchSpace: ...

    def evaluation(self, spec: EvaluationSpec, where: str) -> EvaluationSpec: ...

    def check_together(self, method: MethodSpec, train: TrainSpec, resources: ResourceSpec, where: str) -> None: ...

    def optimizer(
        self, train: TrainSpec, resources: ResourceSpec, where: str
    ) -> tuple[TrainSpec, OptimizerSpec | None]: ...


def load_sweep(path: Path, settings: Sequence[str] = ()) -> Sweep:
    """Read a sweep and apply ``key.path=value`` settings to it.

    Raises:
        ConfigError: The file is not there or not a sweep.
    """
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        is_missing = error.errno in (errno.ENOENT, errno.ENAMETOOLONG)
        shipped = f"; sweeps that come with Tuneoff: {', '.join(shipped_sweeps())}" if is_missing else ""
        raise ConfigError(f"{in_short(str(path))}: cannot be read: {error.strerror}{shipped}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error}; save the file as UTF-8") from error
    except YamlError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping with name, task and methods")
    for setting in settings:
        set_key(raw, *setting_value(setting), f"--set {setting}")
    return validated(Sweep, raw, str(path))


def setting_value(setting: str, option: str = "--set") -> tuple[str, Any]:
    """Key and value of ``key.path=value``, which follows an option of the command line.

    Raises:
        ConfigError: It has no ``=``.
    """
    key, equals, value = setting.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{option} {setting}: expected {'key.path' if option == '--set' else 'name'}=value")
    return key, _value(value)


def _value(text: str) -> Any:
    """A number, a truth value, null, a list or a mapping where the text is one; else the text as it is written.

    Lists and mappings are in brackets: ``[0, 1]``, ``{beams: 4}``. ``{name} : {home}`` and ``{name}`` are texts. A text
    keeps its colons, line breaks and ``#``. Quotes around all of it make a text of anything.
    """
    try:
        value = parse_yaml(text) if text else ""
    except YamlError:
        return text
    if isinstance(value, list | dict):
        is_mapping = isinstance(value, dict) and not all(inner is None for inner in value.values())
        return value if text.lstrip()[:1] == "[" or (text.lstrip()[:1] == "{" and (is_mapping or not value)) else text
    is_quoted = text.lstrip()[:1] in ("'", '"')
    if not is_quoted and (isinstance(value, str) or "#" in text or (value is None and text.strip() not in NULLS)):
        return text
    return value


def set_key(raw: dict[str, Any], dotted: str, value: Any, where: str) -> None:
    """Set ``a.b.0.c`` in nested mappings and lists; a bare name in place of a mapping stands for its short form.

    Raises:
        ConfigError: The path does not exist.
    """
    *parents, last = dotted.split(".")
    node: Any = raw
    for depth, key in enumerate(parents):
        if isinstance(node, list):
            child = _element(node, key, where)
        else:
            child = node.setdefault(key, {})
            if isinstance(child, str) and (short := SHORT_FORMS.get(key)):
                child = node[key] = {short: child}
        if not isinstance(child, dict | list):
            raise ConfigError(f"{where}: {'.'.join(parents[: depth + 1])} is {in_brief(child)}, which has no keys")
        node = child
    if isinstance(node, list):
        path = ".".join(parents)
        if not any(isinstance(entry, dict) for entry in node) and parents != ["methods"]:
            raise ConfigError(f"{where}: set the whole list, as in {path}=[...]; it is {in_brief(node)}")
        example = f"{path}.{last}.name" if last.isdecimal() else f"{path}.0.{last}"
        raise ConfigError(f"{where}: name a key of an entry, as in {example}")
    node[last] = value


def _element(entries: list[Any], index: str, where: str) -> Any:
    if not index.isdecimal() or int(index) >= len(entries):
        raise ConfigError(f"{where}: {index!r} is not an index of a list of {len(entries)} (0 is the first)")
    if isinstance(entries[int(index)], str):
        entries[int(index)] = {"name": entries[int(index)]}
    return entries[int(index)]


def expand(sweep: Sweep, resolver: Resolver) -> list[TrialSpec]:
    """All trials of a sweep: grid x methods x their grids x seeds, in this order, without repetitions.

    Two trials of one answer are one: what trains nothing is not repeated for training settings. What merged decoding
    costs is measured with the first seed alone, because every comparison takes time and all seeds show the same.

    Raises:
        ConfigError: A setting is invalid.
    """
    trials: list[TrialSpec] = []
    for shared in combinations(sweep.grid):
        for number, entry in enumerate(sweep.methods):
            for own in combinations(entry.grid):
                configured = configure(sweep, entry, f"methods.{number}", shared, own, resolver)
                trials += [
                    configured.model_copy(update={"seed": seed, "compares_merged": seed == sweep.seeds[0]})
                    for seed in sweep.seeds
                ]
    return list(distinct(trials, lambda trial: resolver.trains(trial.method)))


def combinations(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every choice of one value per key; one empty choice for an empty grid."""
    for key, values in grid.items():
        if not values:
            raise ConfigError(f"grid.{key}: an empty list asks for no trial at all")
    if (asked := math.prod(map(len, grid.values()))) > MOST_CHOICES:
        raise ConfigError(f"grid: {asked:,} choices of its values are more than {MOST_CHOICES:,}; name fewer")
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def configure(
    sweep: Sweep, entry: MethodEntry, where: str, shared: JsonDict, own: JsonDict, resolver: Resolver
) -> TrialSpec:
    """The final trial, with seed 0, of a method under one choice of the sweep's grid and one of its own settings.

    Args:
        sweep: The sweep.
        entry: One of its methods.
        where: What messages call the entry.
        shared: Dotted key to value, chosen for all methods.
        own: Dotted key to value, chosen for this method.
        resolver: Of names.

    Raises:
        ConfigError: A setting is invalid.
    """
    parts: dict[str, Any] = {
        "model": sweep.model.model_dump(),
        "task": copy.deepcopy(sweep.task),
        "train": {**sweep.train.model_dump(exclude_unset=True), **copy.deepcopy(entry.train)},
        "decode": sweep.decode.model_dump(exclude_unset=True),
        "resources": {**sweep.resources.model_dump(exclude_unset=True), **copy.deepcopy(entry.resources)},
        "config": copy.deepcopy(entry.config),
    }
    if {"steps", "epochs"} & entry.train.keys():
        # A method that names its own length replaces the sweep's, in whichever unit that is.
        for unit in {"steps", "epochs"} - entry.train.keys():
            parts["train"].pop(unit, None)
    for choice, place in ((shared, "grid"), (own, f"{where}.grid")):
        for key, value in choice.items():
            if key.split(".")[0] not in parts or "." not in key:
                known = ", ".join(f"{part}.…" for part in parts)
                raise ConfigError(f"{place}: {key!r} is not a key that can vary; it starts with one of {known}")
            if entry.sets(key):
                raise ConfigError(f"{where}.{key} has no effect: {place} varies it; leave one of them out")
            # A copy, because a later key may set something within it.
            set_key(parts, key, copy.deepcopy(value), place)
    train = validated(TrainSpec, parts["train"], f"{where}.train")
    resources = validated(ResourceSpec, parts["resources"], f"{where}.resources")
    check_batches(train, resources, where)
    train, optimizer = resolver.optimizer(train, resources, where)
    task_config = {key: value for key, value in parts["task"].items() if key != "name"}
    if "name" not in parts["task"]:
        raise ConfigError("task.name is missing: say which task, e.g. 'task: facts'")
    if not isinstance(parts["task"]["name"], str):
        raise ConfigError(f"task.name: expected a text, e.g. facts, got {in_brief(parts['task']['name'])}")
    try:
        method = resolver.method(entry.name, parts["config"])
    except (ConfigError, RegistryError) as error:
        raise type(error)(f"{where}: {error}") from error
    resolver.check_together(method, train, resources, where)
    task = resolver.task(parts["task"]["name"], task_config)
    if "stop" not in parts["decode"]:
        parts["decode"]["stop"] = list(resolver.stop(parts["task"]["name"], task_config))
    decode = validated(DecodeSpec, parts["decode"], "decode")
    check_sizes(train, decode, where)
    if task.config.get("choices") is not None:
        refuse_decoding(decode)
    _refuse_filled_in(ModelSpec, parts["model"], "model")
    model = resolver.model(validated(ModelSpec, parts["model"], "model"))
    check_attention(model, resources, where)
    for number, evaluation in enumerate(sweep.evaluations):
        _refuse_filled_in(EvaluationSpec, evaluation.model_dump(), f"evaluations.{number}")
    evaluations = [
        resolver.evaluation(evaluation, f"evaluations.{number}") for number, evaluation in enumerate(sweep.evaluations)
    ]
    if evaluations and resources.zero_stage == 3:
        raise ConfigError(
            f"{where}.resources.zero_stage: 3 cannot be had with evaluations, which need the whole model on one rank; "
            "set a lower zero_stage, or leave evaluations out"
        )
    label = ",".join(f"{key.split('.', 1)[1]}={value}" for key, value in {**shared, **own}.items())
    return TrialSpec(
        method=method,
        model=model,
        task=task,
        train=train,
        optimizer=optimizer,
        decode=decode,
        resources=resources,
        seed=0,
        label=label,
        evaluations=evaluations,
    )


def _refuse_filled_in(spec: type[ModelSpec | EvaluationSpec], part: JsonDict, where: str) -> None:
    """A sweep does not say what is found out when it is read: it would be overwritten, or taken for found.

    Raises:
        ConfigError: It does.
    """
    for name in spec.FILLED_IN:
        if part.get(name) is not None:
            raise ConfigError(
                f"{where}.{name}: {in_brief(part[name])}: this is found out when the sweep is read; leave it out"
            )
