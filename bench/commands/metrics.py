"""Commands on metrics: what there is, whether one keeps what reports and tests rely on, a project to start from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.commands.options import AsJson, PluginsDir
from bench.commands.projects import Into, NewName, announce_project
from bench.commands.tasks import TaskSettings
from bench.schema.validation import ConfigError
from bench.task import TaskError

if TYPE_CHECKING:
    from bench.conformance.metric_checks import Sample


def metrics(plugins_dir: PluginsDir = None, as_json: AsJson = False) -> None:
    """List the metrics that tasks and sweeps can name."""
    from bench.commands.catalogue import print_listing

    print_listing("metric", as_json, plugins_dir)


def check_metric(
    name: Annotated[str, typer.Argument(help="a name that 'tuneoff metrics' lists, or module:Class", metavar="NAME")],
    task: Annotated[str | None, typer.Option("--task", help="also try it on the dev sources of this task")] = None,
    settings: TaskSettings = None,
    plugins_dir: PluginsDir = None,
    as_json: AsJson = False,
) -> None:
    """Check that a metric keeps what reports, intervals and tests rely on; exit code 1 if not."""
    from bench.commands.catalogue import print_verdicts
    from bench.conformance.metric_checks import verdicts
    from bench.plugins.registry import RegistryError, class_of, resolve

    if settings and task is None:
        raise ConfigError("--set has no effect without --task; name the task, or leave it out")
    try:
        metric = class_of("metric", resolve("metric", name, plugins_dir))
    except RegistryError as error:
        raise ConfigError(str(error)) from error
    more = [] if task is None else [_sample(task, settings, plugins_dir)]
    found = list(verdicts(metric, more, offered_as=None if ":" in name else name))
    print_verdicts(f"the contract of metrics: {name}", found, as_json)
    raise typer.Exit(1 if any(verdict.outcome == "fail" for verdict in found) else 0)


def _sample(task: str, settings: list[str] | None, plugins_dir: Path | None) -> Sample:
    """The first dev sources of a task, scored as it is."""
    from bench.commands.tasks import load_task_with
    from bench.conformance.metric_checks import SCORED, Sample
    from bench.tasks.splits import load_split

    loaded = load_task_with(task, settings, plugins_dir)[1]
    try:
        return Sample(task, load_split(loaded, "dev")[:SCORED], loaded.scoring)
    except TaskError as error:
        raise ConfigError(f"task {task}: {error}") from error


def new_metric(name: NewName, into: Into = Path()) -> None:
    """Write a plugin project that works: entry point, metric and test, to be changed into your metric."""
    announce_project("metric", name, into)
