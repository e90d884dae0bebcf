"""Commands on tasks: list them, show what one holds, check the contract."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from bench.commands.options import AsJson, PluginsDir, console
from bench.commands.projects import Into, NewName, announce_project
from bench.config.load import setting_value
from bench.schema.validation import ConfigError

if TYPE_CHECKING:
    from bench.commands.task_overview import Overview
    from bench.schema.trial import ModelSpec, TaskSpec
    from bench.task import Task

TaskName = Annotated[str, typer.Argument(help="a name that 'tuneoff tasks' lists, or module:Class", metavar="NAME")]
TaskSettings = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value of the task's own settings, e.g. path=../data/e2e; may repeat"),
]


def tasks(
    name: Annotated[str | None, typer.Argument(help="show what this task holds", metavar="[NAME]")] = None,
    settings: TaskSettings = None,
    model: Annotated[
        str | None, typer.Option(help="model whose tokens are counted; default: the embedded one, once it was used")
    ] = None,
    plugins_dir: PluginsDir = None,
    as_json: AsJson = False,
) -> None:
    """List the tasks that sweeps can name, or show settings, counts, licence, examples and lengths of one."""
    if name is None:
        from bench.commands.catalogue import print_listing

        print_listing("task", as_json, plugins_dir)
        return
    try:
        _show(name, settings, model, plugins_dir, as_json)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_task(
    name: TaskName,
    settings: TaskSettings = None,
    model: Annotated[
        str | None,
        typer.Option(help="model whose tokens are tried on references; default: the embedded one, once it was used"),
    ] = None,
    plugins_dir: PluginsDir = None,
    as_json: AsJson = False,
) -> None:
    """Check that a task keeps what sweeps rely on, and that a model can say it; exit code 1 if not."""
    from bench.commands.catalogue import print_verdicts
    from bench.conformance.task_checks import verdicts
    from bench.plugins.registry import metrics_of

    spec, task = load_task_with(name, settings, plugins_dir)
    found = list(verdicts(task, _model(model), metrics_of(spec)))
    print_verdicts(f"the contract of tasks: {name}", found, as_json)
    raise typer.Exit(1 if any(verdict.outcome == "fail" for verdict in found) else 0)


def new_task(name: NewName, into: Into = Path()) -> None:
    """Write a plugin project that works: entry point, task, data and test, to be changed into your task."""
    announce_project("task", name, into)


def load_task_with(
    name: str, settings: list[str] | None, plugins_dir: Path | None = None, metrics: Sequence[str] = ()
) -> tuple[TaskSpec, Task]:
    """A task with settings ``key=value``, and metrics beside those that it names.

    Raises:
        ConfigError: It is not known, or a setting is invalid.
    """
    from bench.config.resolver import RegistryResolver
    from bench.plugins.registry import make_task

    try:
        config = dict(map(setting_value, settings or ()))
        if metrics:
            config["metrics"] = [*config.get("metrics", ()), *metrics]
        spec = RegistryResolver(plugins_dir).task(name, config)
        return spec, make_task(spec)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _show(name: str, settings: list[str] | None, model: str | None, plugins_dir: Path | None, as_json: bool) -> None:
    from bench.commands.task_overview import overview
    from bench.plugins.registry import load_task, resolve, summary
    from bench.plugins.settings import settings_of

    task_class = load_task(resolve("task", name, plugins_dir))
    described = settings_of(task_class.Config)
    about: dict[str, Any] = {
        "name": name,
        "description": summary(task_class),
        "citation": task_class.citation,
        "licence": ": ".join(filter(None, (task_class.licence, task_class.licence_note))),
        "scores": list(task_class.scoring.metrics),
    }
    task = _loadable(name, settings, plugins_dir, [setting.name for setting in described if setting.required])
    found = None if task is None else overview(task, *_tokenizer(model))
    if as_json:
        holds = None if found is None else asdict(found)
        console.print_json(json.dumps({**about, "settings": [vars(one) for one in described], "holds": holds}))
        return
    console.print(Text(f"{name}: {about['description']}"))
    for key in ("citation", "licence"):
        console.print(Text(f"{key}: {about[key]}", style="bold yellow" if task_class.licence_note else "dim"))
    console.print(Text(f"official scores: {', '.join(about['scores'])}", style="dim"))
    from bench.commands.catalogue import settings_table

    console.print(settings_table(described))
    if found is not None:
        _print_overview(found)


def _loadable(name: str, settings: list[str] | None, plugins_dir: Path | None, required: list[str]) -> Task | None:
    """The task, or None where it needs settings of which none are given, so that its settings alone can be shown."""
    given = {setting.partition("=")[0] for setting in settings or ()}
    if not given and required:
        return None
    return load_task_with(name, settings, plugins_dir)[1]


def _tokenizer(model: str | None) -> tuple[Any, Any]:
    """Tokenizer and architecture of a model; of the embedded one where it was converted before."""
    from bench.models import base

    spec = _model(model)
    return (None, None) if spec is None else (base.load_tokenizer(spec), base.architecture(spec))


def _model(path: str | None) -> ModelSpec | None:
    """A model by its path; the embedded one where it was converted before."""
    from bench.models import base
    from bench.schema.trial import ModelSpec

    if path is None and not base.embedded_folder().is_dir():
        return None
    return ModelSpec(path=path or base.EMBEDDED)


def _print_overview(found: Overview) -> None:
    from bench.tasks.splits import oddity_sentences, omission_lines

    table = Table()
    for heading in ("split", "sources", "references", "first tag"):
        table.add_column(heading, justify="right" if heading in ("sources", "references") else "left", overflow="fold")
    for split, counts in found.counts.items():
        tags = ", ".join(f"{number:,} {tag}" for tag, number in list(counts.tags.items())[:8])
        table.add_row(split, f"{counts.sources:,}", f"{counts.references:,}", tags)
    console.print(table)
    for line in omission_lines({split: counts.skipped for split, counts in found.counts.items()}):
        console.print(Text(f"left out of {line}"))
    for split, problem in found.missing.items():
        console.print(Text(f"{split}: {problem}", style="yellow"))
    for sentence in oddity_sentences(found.oddities):
        console.print(Text(f"warning: {sentence}", style="yellow"))
    if found.data_sha256:
        console.print(Text(f"sha256 of the data: {found.data_sha256}", style="dim"))
    if found.lengths:
        _print_lengths(found)
    else:
        console.print(Text("give --model to see lengths in tokens", style="dim"))
    for number, (read, written) in enumerate(found.examples, start=1):
        console.print(Text(f"\nexample {number}: the model reads", style="bold"))
        console.print(Text(read))
        console.print(Text("and is to write", style="bold"))
        console.print(Text(written))


def _print_lengths(found: Overview) -> None:
    table = Table(title="tokens")
    table.add_column("")
    percents = next(iter(next(iter(found.lengths.values())).values())).percentiles
    for percent in percents:
        table.add_column("longest" if percent == 100 else f"{percent} %", justify="right")
    table.add_column("truncated", justify="right")
    for split, of_split in found.lengths.items():
        for what, lengths in of_split.items():
            cut = f"{lengths.too_long:,} ({100 * lengths.truncated_fraction:.2f} %)"
            table.add_row(f"{split} {what}", *(f"{value:,}" for value in lengths.percentiles.values()), cut)
    console.print(table)
