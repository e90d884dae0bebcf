"""What the driver does before the first trial: read the data once, fetch the model, start the launcher."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bench import models
from bench.cluster_access import joined_address
from bench.config import ConfigError
from bench.data import tokenization
from bench.hub import DEFAULT_BRANCH, commit_of
from bench.launch import Launcher
from bench.method import MethodError
from bench.metrics.checks import check_metrics
from bench.plan import planned_parameters
from bench.plugin_source import PluginSource, share
from bench.resolver import instantiate
from bench.spec import JsonDict, TrialSpec
from bench.split_data import told_of
from bench.splits import told_left_out, told_oddities
from bench.task import Example, Split, Task
from bench.token_cache import read_split
from bench.token_check import check_tokens

Examples = dict[Split, Sequence[Example]]


def prepare(trials: Sequence[TrialSpec], say: Callable[[str], None], metrics: Sequence[str] = ()) -> None:
    """Find malformed data, models that cannot say them and methods that do not fit a model before any trial starts.

    Converts the embedded model once.

    Args:
        trials: What is about to run.
        say: Takes what people should know, a line each.
        metrics: Scores that settings are chosen by.

    Raises:
        ConfigError: The data or the model cannot be used, or a method refuses the model.
    """
    read: dict[str, tuple[Task, Examples]] = {}
    try:
        _check_methods(trials, say)  # the quickest to find out
        if any(trial.model.path == models.EMBEDDED for trial in trials) and not models.embedded_folder().is_dir():
            say(f"converting {models.EMBEDDED} to safetensors, once, into {models.embedded_folder()}")
            models.embedded_model()
        told: dict[str, None] = {}
        for trial in {(trial.task.model_dump_json(), trial.model, trial.splits): trial for trial in trials}.values():
            task, examples, found = _read(trial, say)
            read[trial.task.model_dump_json()] = task, examples
            doubts = check_metrics(task, list(examples["dev"]), metrics)
            for line in _lines(trial, task, found, doubts):
                if line not in told:  # of several models, or splits that another stage reads too
                    told[line] = None
                    say(line)
        for model in dict.fromkeys(trial.model for trial in trials if trial.model.commit is not None):
            known = commit_of(model.path, model.revision, "model")
            by = " (as the cache knows it: the hub cannot be asked)" if known.source == "cache" else ""
            say(f"model {model.path}: {model.revision or DEFAULT_BRANCH} is commit {model.commit}{by}")
        _check_tokens(trials, read, say)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_methods(trials: Sequence[TrialSpec], say: Callable[[str], None]) -> None:
    """Patch each base model, without weights, with each method.

    Raises:
        ConfigError: A method refuses a model.
        ModelError: A model cannot be had as the sweep says.
    """
    refusals = []
    kinds = {(one.method.model_dump_json(), one.model): (one.method, one.model) for one in trials}
    for method, model in kinds.values():
        try:
            planned_parameters(method, model)
        except models.ModelError:
            raise
        except Exception as error:  # noqa: BLE001 - code of strangers
            if isinstance(error, MethodError) and not isinstance(error.__cause__, NotImplementedError | RuntimeError):
                refusals.append(f"methods: {method.name} on {model.path}: {error}")
            else:  # some look at weights, which a model without them does not have
                say(f"method {method.name}: whether it fits {model.path} shows in its trial: {error}")
    if refusals:
        raise ConfigError("\n".join(dict.fromkeys(refusals)))


def _read(trial: TrialSpec, say: Callable[[str], None]) -> tuple[Task, Examples, JsonDict]:
    """Read what a trial will read, leaving its tokens where ranks find them. What there is to tell of it comes last.

    Raises:
        ConfigError: The embedding has no row for one of the tokens.
    """
    task = instantiate(trial.task)
    tokens = tokenization(trial.model, task.config)
    try:
        splits = {split: read_split(trial.task, task, split, tokens, say) for split in trial.splits}
    except models.ModelError as error:
        raise ConfigError(f"{trial.model.path}: tokens fit the embedding: {error}") from error
    return task, {split: data.examples for split, data in splits.items()}, told_of(splits)


def _lines(trial: TrialSpec, task: Task, found: JsonDict, doubts: Sequence[str]) -> Iterator[str]:
    """What people should know of the data of a trial."""
    name = trial.task.name
    counts = [f"{found['train_pairs' if split == 'train' else f'{split}_sources']} {split}" for split in trial.splits]
    yield f"task {name}: {', '.join(counts)} examples"
    yield from (f"task {name}: {doubt}" for doubt in doubts)
    if task.licence_note:
        yield f"task {name}: the data are licensed {task.licence}: {task.licence_note}"
    yield from (f"task {name}: left out of {left_out}" for left_out in told_left_out(found["left_out"]))
    yield from (f"task {name}: warning: {oddity}" for oddity in told_oddities(found))


def _check_tokens(
    trials: Sequence[TrialSpec], read: Mapping[str, tuple[Task, Examples]], say: Callable[[str], None]
) -> None:
    """Once for each base model, task and list of banned tokens.

    Raises:
        ConfigError: With a model, next to nothing that the task wants can be said.
    """
    kinds = {(one.model, one.task.model_dump_json(), tuple(one.decode.banned_token_ids)) for one in trials}
    for model, task_json, banned in sorted(kinds, key=str):
        task, splits = read[task_json]
        findings = check_tokens(model, task, splits, banned)
        if problems := [str(finding) for finding in findings if finding.outcome == "problem"]:
            raise ConfigError("\n".join(problems))
        for finding in findings:
            if finding.outcome == "warning":
                say(f"warning: {finding}")


def make_launcher(
    name: str,
    outbox: Path,
    address: str | None,
    plugins: Sequence[PluginSource] = (),
    runtime_env: JsonDict | None = None,
) -> Launcher:
    """The launcher of this name; ``auto`` is Ray where Ray is installed.

    Args:
        name: ``auto``, ``ray`` or ``local``.
        outbox: Where attempts wait for the store.
        address: Of a running Ray cluster: ``auto``, ``host:port`` or ``ray://host:port``.
        plugins: What ranks must be able to import besides ``bench`` and ``methods``.
        runtime_env: More of Ray's runtime environment on a running cluster.

    Raises:
        ConfigError: Ray is asked for and not installed, an address is given to a launcher that has no use for it, or
            the cluster cannot be joined.
    """
    share(source.folder for source in plugins)
    has_ray = importlib.util.find_spec("ray") is not None
    if name == "local" or (name == "auto" and not has_ray and address is None):
        if address is not None:
            raise ConfigError(f"--address {address} has no effect with --launcher local; leave one of them out")
        from bench.launch_local import LocalLauncher

        return LocalLauncher(outbox)
    if not has_ray:
        raise ConfigError("--launcher ray needs the package ray; install it, or use --launcher local")
    from bench.embedded_cluster import EmbeddedCluster

    # Before ray is imported, which then reads how to authenticate.
    cluster = EmbeddedCluster() if address is None else joined_address(address)
    from bench.launch_ray import RayLauncher

    return RayLauncher(outbox, cluster, [top for source in plugins for top in source.tops], runtime_env)
