"""Resolves a sweep on the driver, once: names to classes, with validated settings and hashes of data and weights."""

from __future__ import annotations

import difflib
import functools
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from bench.config.lm_eval_tasks import resolved_evaluation
from bench.config.resolved_methods import Resolved, ResolvedMethods
from bench.metrics import METRICS
from bench.models import model_files
from bench.models.hub_files import quantized_on_hub
from bench.optimizers import OPTIMIZERS
from bench.plugins.registry import (
    RegistryError,
    load_method,
    load_metric,
    load_optimizer,
    load_task,
    make_method,
    make_task,
    metrics_of,
    resolve,
    resolve_all,
)
from bench.plugins.source import PluginError, plugin_source
from bench.report.columns import COLUMNS
from bench.schema.printable import in_brief
from bench.schema.search_space import SearchSpace
from bench.schema.trial import (
    EvaluationSpec,
    JsonDict,
    MethodSpec,
    MetricSpec,
    ModelSpec,
    OptimizerSpec,
    ResourceSpec,
    TaskSpec,
    TrainSpec,
)
from bench.schema.validation import ConfigError, validated
from bench.task import Task, TaskError
from bench.tasks.hub_commits import HubError, commit_of

if TYPE_CHECKING:
    from bench.optimizers.optimizer import Optimizer

# Packages of optimisers whose version a record has, so that their source need not be hashed nor sent to other machines.
VERSIONED = frozenset({"bench", "bitsandbytes", "deepspeed", "torch", "transformers"})
# Names that scores may not have: results.csv and searches have them for something else.
RESERVED = frozenset({"dev_loss", "reference_perplexity", *(column.name for column in COLUMNS)})


class RegistryResolver:
    """Resolves with the registries of methods and tasks. Data and weights are hashed once for all trials.

    Args:
        plugins_dir: A folder whose files are methods, tasks and metrics too.
    """

    def __init__(self, plugins_dir: Path | None = None) -> None:
        self.plugins_dir = plugins_dir
        self._kept = ResolvedMethods()
        self._target = functools.cache(partial(resolve, "method", plugins_dir=plugins_dir))
        self._whose = functools.cache(_whose)
        self._known_methods: dict[str, tuple[JsonDict, Resolved]] = {}  # by target and all settings

    def method(self, name: str, config: JsonDict) -> MethodSpec:
        """A method entry with all its settings, defaults included. Its class is asked, or the cache."""
        target = self._target(name)
        if (resolved := self._kept.get(target, config)) is None:
            method_class = load_method(target)
            settings = validated(method_class.Config, config, f"method {name}: config")
            resolved = Resolved(
                config=settings.model_dump(mode="json"),
                trains=method_class.trains,
                search_space=method_class.search_space,
                needed_steps=settings.needed_steps,
            )
            self._kept.add(target, config, resolved)
        spec = MethodSpec(name=name.rpartition(":")[2], target=target, config=resolved.config, **self._whose(target))
        self._known_methods[_method_key(spec)] = config, resolved
        return spec

    def remember(self) -> None:
        """Write the cache for the next command."""
        self._kept.save()

    def task(self, name: str, config: JsonDict) -> TaskSpec:
        """A task with all its settings; its files must be there."""
        return _task(name, json.dumps(config), self.plugins_dir)[0]

    def stop(self, name: str, config: JsonDict) -> tuple[str, ...]:
        """The strings that end a prediction of a task, unless a sweep names others."""
        return _task(name, json.dumps(config), self.plugins_dir)[1]

    def model(self, spec: ModelSpec) -> ModelSpec:
        """A model whose folder, if it is one, is complete, or whose commit on the hub is known."""
        return _model(spec)

    def evaluation(self, spec: EvaluationSpec, where: str) -> EvaluationSpec:
        """An evaluation whose task the lm-evaluation-harness knows, with the version of both."""
        return resolved_evaluation(spec, where)

    def trains(self, method: MethodSpec) -> bool:
        """Whether the method trains anything; the untouched base model does not."""
        known_method = self._known_methods.get(_method_key(method))
        return load_method(method.target).trains if known_method is None else known_method[1].trains

    def search_space(self, method: MethodSpec) -> SearchSpace:
        """The search space that the method declares."""
        known_method = self._known_methods.get(_method_key(method))
        return load_method(method.target).search_space if known_method is None else known_method[1].search_space

    def check_together(self, method: MethodSpec, train: TrainSpec, resources: ResourceSpec, where: str) -> None:
        """A method that adapts in training is trained without ZeRO, in fp32 and without checkpoints.

        One that trains in turns is trained without ZeRO. Both are trained by an optimiser that scores what it trains.
        No training ends before what the settings of its method say has come.

        Raises:
            ConfigError: It would not be.
        """
        _check_deepspeed(resources, where)
        if resources.zero_stage and self._says(method, "trains_in_turns"):
            raise ConfigError(
                f"{where}.resources.zero_stage: {resources.zero_stage}: {method.name} leaves some of what it trains "
                "out of some steps, and ZeRO 1 to 3 step all of it as one; set zero_stage: 0"
            )
        if train.optimizer != "adamw" and load_optimizer(train.optimizer).scores_other_weights:
            self._check_averaged(method, f"{where}.train.optimizer: {train.optimizer}")
        self._check_length(method, train, where)
        plain = resources.zero_stage == 0 and resources.precision == "fp32"
        makes_checkpoints = resources.checkpoint_every_steps is not None
        if plain and not makes_checkpoints:
            return
        if not self._says(method, "adapts_in_training"):
            return
        if makes_checkpoints:
            raise ConfigError(
                f"{where}.resources.checkpoint_every_steps: {method.name} with these settings adapts while it trains "
                "and remembers things that no checkpoint holds; leave it out"
            )
        resource_settings = f"zero_stage: {resources.zero_stage}, precision: {resources.precision}"
        raise ConfigError(
            f"{where}.resources: {resource_settings}: {method.name} with these settings reads gradients and changes "
            "trained tensors between steps, which ZeRO 1 to 3, bf16 and fp16 would silently undo; set zero_stage: 0 "
            "and precision: fp32"
        )

    def _check_averaged(self, method: MethodSpec, optimizer: str) -> None:
        """Each step trains all of what an average of all steps is scored of, and nothing else changes it.

        Raises:
            ConfigError: It is not so.
        """
        if self._says(method, "trains_in_turns"):
            does = "leaves some of what it trains out of some steps"
        elif self._says(method, "adapts_in_training"):
            does = "with these settings reads gradients or changes trained tensors between steps"
        else:
            return
        raise ConfigError(
            f"{optimizer} scores other weights than it trains, made of all steps, and {method.name} {does}; use adamw"
        )

    def _check_length(self, method: MethodSpec, train: TrainSpec, where: str) -> None:
        """A training whose steps are known has those that the settings of its method count on.

        Raises:
            ConfigError: It ends before.
        """
        known_method = self._known_methods.get(_method_key(method))
        if train.steps is None or known_method is None:
            return
        needed, why = known_method[1].needed_steps
        if train.steps < needed:
            raise ConfigError(
                f"{where}.config.{why}, and training ends after {train.steps:,} steps; set it to {train.steps}"
            )

    def optimizer(
        self, train: TrainSpec, resources: ResourceSpec, where: str
    ) -> tuple[TrainSpec, OptimizerSpec | None]:
        """The optimiser of ``train``, under the name by which ranks find it; and whose it is, if it is not Tuneoff's.

        Raises:
            ConfigError: It cannot be had, not with these options, or not with these resources.
        """
        place = f"{where}.train.optimizer"
        if train.optimizer == "adamw" and not train.optimizer_options:
            return train, None  # without importing torch
        from bench.optimizers.optimizer import OptimizerError

        try:
            target = resolve("optimizer", train.optimizer, self.plugins_dir)
            found = train if train.optimizer in OPTIMIZERS else train.model_copy(update={"optimizer": target})
            kind = load_optimizer(found.optimizer)
            _check_placement(kind, found, resources, place)
            _check_optimizer(target, found.model_dump_json(), resources.checkpoint_every_steps is not None)
        except (RegistryError, PluginError) as error:
            raise ConfigError(f"{place}: {error}") from error
        except OptimizerError as error:
            reason = str(error)
            reason = (
                f"{where}.train.{reason}"
                if reason.startswith("optimizer_options.")
                else f"{place}: {train.optimizer} {reason}"
            )
            raise ConfigError(reason) from error
        if target.partition(":")[0].partition(".")[0] in VERSIONED:
            return found, None
        whose = self._whose(target)
        return found, OptimizerSpec(name=train.optimizer, target=target, **whose) if whose else None

    def _says(self, method: MethodSpec, what: Literal["adapts_in_training", "trains_in_turns"]) -> bool:
        """What a method with its settings says of itself."""
        config, resolved = self._known_methods.get(_method_key(method), (None, None))
        if resolved is not None and (known := getattr(resolved, what)) is not None:
            return bool(known)
        answer = bool(getattr(make_method(method), what))
        if config is not None and resolved is not None:
            resolved = resolved.model_copy(update={what: answer})
            self._known_methods[_method_key(method)] = config, resolved
            self._kept.add(method.target, config, resolved)
        return answer


def _check_placement(kind: type[Optimizer], train: TrainSpec, resources: ResourceSpec, where: str) -> None:
    """An optimiser is not asked for what it cannot.

    Raises:
        ConfigError: It would be.
    """
    if (why := kind.needs_zero_0()) is not None and resources.zero_stage:
        raise ConfigError(
            f"{where}: {train.optimizer} {why}; set resources.zero_stage: 0 (it is {resources.zero_stage}), or use "
            "adamw"
        )
    if not kind.scales_rate and train.schedule != "constant":
        raise ConfigError(
            f"{where}: {train.optimizer} needs no schedule; set train.schedule: constant (it is {train.schedule})"
        )
    if not kind.checkpoints and resources.checkpoint_every_steps is not None:
        raise ConfigError(
            f"{where}: {train.optimizer} keeps what no checkpoint holds; leave resources.checkpoint_every_steps out"
        )


@functools.cache
def _check_optimizer(target: str, train: str, with_checkpoints: bool) -> None:
    """Once for all trials with the same settings."""
    optimizer = load_optimizer(target)(TrainSpec.model_validate_json(train))
    optimizer.check()
    if with_checkpoints:
        optimizer.check_checkpoints()


def _check_deepspeed(resources: ResourceSpec, where: str) -> None:
    """Keys that are passed on are those that DeepSpeed knows and heeds at this stage, with values that it takes."""
    if not any(resources.deepspeed.get(part) for part in ("comms_logger", "flops_profiler", "zero_optimization")):
        return
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    place = f"{where}.resources.deepspeed"
    zero_settings = resources.deepspeed.get("zero_optimization", {})
    aliases = {name: field.alias for name, field in DeepSpeedZeroConfig.model_fields.items() if field.alias}
    for name, alias in aliases.items():
        if given := sorted({name, alias} & zero_settings.keys()):
            if len(given) > 1:
                raise ConfigError(f"{place}.zero_optimization: {name} and {alias} are one key; leave one out")
            if resources.zero_stage < 3:
                raise ConfigError(
                    f"{place}.zero_optimization.{given[0]} has no effect with zero_stage: {resources.zero_stage}; it "
                    "is a key of stage 3: leave it out"
                )
    _check_section(DeepSpeedZeroConfig, zero_settings, {"stage": resources.zero_stage}, f"{place}.zero_optimization")
    _check_section(CommsLoggerConfig, resources.deepspeed.get("comms_logger", {}), {}, f"{place}.comms_logger")
    of_profiler = vars(DeepSpeedFlopsProfilerConfig({})).keys()
    _check_names(resources.deepspeed.get("flops_profiler", {}), set(of_profiler), f"{place}.flops_profiler")


def _check_section(model: Any, settings: JsonDict, beside: JsonDict, where: str) -> None:
    """Check a part of DeepSpeed's configuration.

    Args:
        model: DeepSpeed's class of it.
        settings: Of the sweep.
        beside: Other settings that have a say in it.
        where: Of the settings, for messages.

    Raises:
        ConfigError: A key is unknown, or a value impossible.
    """
    _check_names(settings, _names(model), where)
    try:
        model(**beside, **settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, (where, *first["loc"])))
        raise ConfigError(f"{key}: {first['msg']} (it is {first['input']!r})") from error


def _check_names(settings: JsonDict, known: set[str], where: str) -> None:
    if unknown := sorted(settings.keys() - known):
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{where}: DeepSpeed has no key {unknown[0]!r}{hint}")


def _names(model: Any) -> set[str]:
    """What fields of a pydantic model are called in a file."""
    return {*model.model_fields, *(field.alias for field in model.model_fields.values() if field.alias)}


def _method_key(method: MethodSpec) -> str:
    return f"{method.target} {method.config!r}"


@functools.cache
def _task(name: str, config: str, plugins_dir: Path | None) -> tuple[TaskSpec, tuple[str, ...]]:
    """A task, and the strings that end its predictions."""
    try:
        target = resolve("task", name, plugins_dir)
        task_class = load_task(target)
    except RegistryError as error:
        raise RegistryError(f"task.name: {error}") from error
    settings = validated(task_class.Config, json.loads(config), f"task {name}")
    try:
        settings = task_class.pinned(settings)
    except TaskError as error:
        raise ConfigError(f"task {name}: {error}") from error
    task = task_class(settings)
    metrics = _metrics(task, name, plugins_dir)
    called = {metric.target: metric.name for metric in metrics}
    resolved_metrics = {"metrics": [called.get(one, one) for one in settings.metrics]} if metrics else {}
    spec = TaskSpec(
        name=name.rpartition(":")[2],
        target=target,
        config=settings.model_dump(mode="json") | resolved_metrics,
        data_sha256=task.data_sha256(),
        plugin_metrics=metrics,
        **_whose(target),
    )
    _check_scoring(spec, name)
    return spec, task.stop


def _metrics(task: Task, name: str, plugins_dir: Path | None) -> list[MetricSpec]:
    """The metrics of plugins that a task, or its settings, name; that all names are known is seen here.

    Raises:
        ConfigError: One is unknown, or its class cannot be used.
    """
    found: dict[str, MetricSpec] = {}
    for names, key in ((task.scoring.metrics, "scoring.metrics"), (task.config.metrics, "metrics")):
        try:
            for metric_name, target in resolve_all("metric", names, plugins_dir).items():
                if target == METRICS.get(metric_name):
                    continue
                metric = load_metric(target, None if ":" in metric_name else metric_name)
                made = MetricSpec(name=metric.name, target=target, **_whose(target))
                if metric.name in RESERVED:
                    raise RegistryError(  # noqa: TRY301
                        f"the metric {target!r} is called {metric.name!r}, as another column of reports is; rename it"
                    )
                if metric.name in METRICS or found.setdefault(metric.name, made) != made:
                    other = found[metric.name].target if metric.name in found else "Tuneoff"
                    raise RegistryError(  # noqa: TRY301
                        f"the metrics {target!r} and that of {other} are both called {metric.name!r}; rename one"
                    )
        except (RegistryError, TypeError) as error:
            raise ConfigError(f"task {name}: {key}: {error}") from error
    return list(found.values())


def _check_scoring(spec: TaskSpec, name: str) -> None:
    """Every command that reads a task finds out here whether its settings of scores are what there is."""
    from bench.metrics.checks import check_scoring  # sacrebleu is not needed to list what there is

    check_scoring(make_task(spec).scoring, f"task {name}: scoring", metrics_of(spec))


def _whose(target: str) -> dict[str, str]:
    """Origin and hash of the source of a plugin; empty for classes of Tuneoff."""
    source = plugin_source(target)
    return {} if source is None else {"origin": source.origin, "source_sha256": source.sha256()}


@functools.cache
def _model(spec: ModelSpec) -> ModelSpec:
    if spec.path == model_files.EMBEDDED:
        if spec.revision is not None:
            raise ConfigError(f"model.revision: {spec.revision!r} has no effect with the embedded model; leave it out")
        model_files.embedded_package()
        return spec
    if (folder := model_files.local_folder(spec)) is not None:
        if spec.revision is not None:
            raise ConfigError(
                f"model.revision: {in_brief(spec.revision)} has no effect with the folder {spec.path!r}; leave it out"
            )
        quantized = model_files.quantized_by(folder)
        known = {"weights_sha256": model_files.weights_sha256(spec)}
    else:
        try:
            commit = commit_of(spec.path, spec.revision, "model").sha
        except HubError as error:
            raise ConfigError(f"model.path: {error}") from error
        quantized = quantized_on_hub(spec.path, commit)
        known = {"commit": commit}
    if quantized is not None and spec.quantization not in (None, quantized):
        raise ConfigError(
            f"model.quantization: {spec.quantization} cannot be had of {spec.path!r}, whose weights are quantised "
            f"already, by {quantized}; leave it out, or name a checkpoint that is not quantised"
        )
    return spec.model_copy(update={**known, "checkpoint_quantization": model_files.packed_as(quantized)})
