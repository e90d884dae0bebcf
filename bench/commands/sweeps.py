"""Commands on sweeps: run, plan, report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench import report as reports
from bench.commands.options import (
    Address,
    HostCommand,
    Hosts,
    HostsFile,
    LauncherName,
    LauncherSettings,
    PluginsDir,
    ResultsDir,
    RuntimeEnv,
    Settings,
    SweepFile,
    console,
    know_metrics,
    read_launcher,
    read_stages,
)
from bench.driver.rounds import RoundRunner
from bench.driver.stages import Round
from bench.driver.status import read_status
from bench.launch.choose import AUTO
from bench.report.budget import budget
from bench.report.others import left_out_text
from bench.report.published import keep_published, load_published, published_files
from bench.report.up_to_date import TerminalPart, made_from, read_terminal_part, write_terminal_part
from bench.schema.validation import ConfigError
from bench.store.kept_sweep import keep_only, keep_sweep
from bench.store.records import Store


def run(
    sweep_file: SweepFile,
    results: ResultsDir = Path("results"),
    launcher: LauncherName = AUTO,
    address: Address = None,
    runtime_env: RuntimeEnv = None,
    hosts: Hosts = None,
    hosts_file: HostsFile = None,
    host_command: HostCommand = None,
    launcher_option: LauncherSettings = None,
    mirror: Annotated[
        str | None,
        typer.Option(help="keep a copy of the results there, and begin with what it holds: s3://..., file:///..."),
    ] = None,
    settings: Settings = None,
    plugins_dir: PluginsDir = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="run failed trials again")] = False,
    tracker: Annotated[
        list[str] | None, typer.Option(help="tensorboard, wandb, mlflow or module:Class; may be repeated")
    ] = None,
) -> None:
    """Run the trials of a sweep that have no record yet, stage by stage, and report all of them."""
    where = read_launcher(
        launcher,
        launcher_option,
        address=address,
        runtime_env=runtime_env,
        hosts=hosts,
        hosts_file=hosts_file,
        host_command=host_command,
    )
    sweep, stages = read_stages(sweep_file, settings, plugins_dir)
    published = published_files(sweep_file, sweep)
    store = Store(results / sweep.name)
    trackers = {**{name: {} for name in tracker or ()}, **sweep.trackers}
    with (
        store.locked(),
        RoundRunner(
            store,
            sweep.name,
            where,
            console,
            stages.targets,
            retry_failed,
            trackers,
            mirror,
            stages.metrics,
            stages.trains,
        ) as runner,
    ):
        runner.recover()
        runner.tell_moved(stages.known_trials())
        if not stages.searches:
            runner.tell_strays(stages.known_trials())
        keep_published(store.root, published)
        source = sweep_file.read_text(encoding="utf-8") if sweep_file.is_file() else None
        keep_sweep(store.root, sweep, source, settings or (), stages.searches)
        store.log("run", command=shlex.join(["tuneoff", *sys.argv[1:]]))
        past: list[Round] = []
        for trials in stages.rounds(store):
            past.append(trials)
            later = stages.to_come(past, runner.tuning_seconds)
            runner.run(trials, f"{sweep.name} {trials.stage}" if sweep.stages else sweep.name, later)
            if runner.cancelled:
                break
        if not runner.cancelled:  # Only now are all trials known.
            if stages.searches:
                runner.tell_strays([trial for one in past for trial in one.trials])
            keep_only(store.root, [known.trial_id for known in runner.found.values()])
        report_sweep(store)
        mirrored = runner.complete_mirror()
    for name in stages.without_settings:
        console.print(f"{name}: every trial of its tuning failed, so that it has no final trial", style="red")
    # A failed trial of a search is an answer: its settings do not work.
    failed = [known for known in runner.found.values() if known.failed and known.stage != "tune"]
    raise typer.Exit(1 if failed or runner.cancelled or stages.without_settings or not mirrored else 0)


def report(
    directory: Annotated[Path, typer.Argument(help="results/<sweep>")],
    published: Annotated[
        list[Path] | None,
        typer.Option(help="file of published numbers to show beside ours, from now on; may be repeated"),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="also list what earlier versions of the sweep have left, apart")
    ] = False,
    plugins_dir: PluginsDir = None,
) -> None:
    """Render the records of a sweep again."""
    if not (directory / "trials").is_dir():
        raise ConfigError(f"{directory}: no folder 'trials'; give the folder of one sweep, e.g. results/quickstart")
    for path in published or ():
        load_published(path)
    know_metrics(plugins_dir)
    keep_published(directory, published or ())
    store = Store(directory)
    report_sweep(store, again=True, everything=everything)


def report_sweep(store: Store, again: bool = False, everything: bool = False) -> None:
    """Render a sweep, unless its report is the one that this would make, and print its tables.

    Args:
        store: Of the sweep.
        again: Whether to render in any case.
        everything: Whether to list what earlier versions of the sweep have left.
    """
    status = read_status(store.root)
    missing = 0 if status is None else max(0, status.total - status.completed - status.failed)
    command = store.command()
    folder = store.root / "report"
    key = made_from(store, command, missing, everything)
    shown = None if key is None or again else read_terminal_part(folder, key)
    if shown is None:
        content = reports.load_content(store.root, command, missing, everything)
        reports.render(store.root, content)
        shown = _shown(content)
        if key is not None:
            write_terminal_part(folder, key, shown)
    for line in shown.headlines:
        console.print(line, style="bold", highlight=False, markup=False, soft_wrap=True)
    for table in shown.tables:
        console.print(table)
    for line in shown.remarks:
        console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {folder / 'report.html'}", highlight=False, markup=False)


def _shown(content: reports.Content) -> TerminalPart:
    """What a terminal shows of a report: its tables, its conclusions, and the budgets of training."""
    from bench.report.terminal import others_table, results_table, tuning_table

    tables = [
        *([tuning_table(content.tunings)] if content.tunings else []),
        *([results_table(content.results)] if content.results else []),
        *([others_table(content.records, content.others)] if content.others else []),
    ]
    left_out = [left_out_text(content.left_out, content.root)] if content.left_out and content.root else []
    return TerminalPart(
        tuple(tables),
        content.answer_sentences if content.results else (),
        (*(budget(comparison).sentence for comparison in content.comparisons if comparison.scored), *left_out),
    )
