"""Commands on sweeps: run, plan, report."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench import report as reports
from bench.commands.options import MethodsDir, ResultsDir, Settings, SweepFile, console, read_stages
from bench.commands.rounds import RoundRunner
from bench.place import LauncherName, Place, read_runtime_env
from bench.published import keep_published, load_published, published_files
from bench.record import Failed, TrialResult
from bench.search_store import read_searches
from bench.status import read_status
from bench.store import Store
from bench.tuning_summary import tunings
from bench.validation import ConfigError


def run(
    sweep_file: SweepFile,
    results: ResultsDir = Path("results"),
    launcher: Annotated[LauncherName, typer.Option(help="auto is ray where it is installed")] = LauncherName.AUTO,
    address: Annotated[
        str | None, typer.Option(help="of a Ray cluster: auto, host:port or ray://host:port; default: a local one")
    ] = None,
    runtime_env: Annotated[
        Path | None, typer.Option(help="YAML or JSON file with more of Ray's runtime environment, for --address")
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option(help="keep a copy of the results there, and begin with what it holds: s3://..., file:///..."),
    ] = None,
    settings: Settings = None,
    methods_dir: MethodsDir = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="run failed trials again")] = False,
    tracker: Annotated[
        list[str] | None, typer.Option(help="tensorboard, wandb, mlflow or module:Class; may be repeated")
    ] = None,
) -> None:
    """Run the trials of a sweep that have no record yet, stage by stage, and report all of them."""
    place = Place(launcher, address, read_runtime_env(runtime_env, address))
    sweep, stages = read_stages(sweep_file, settings, methods_dir)
    published = published_files(sweep_file, sweep)
    store = Store(results / sweep.name)
    trackers = {**{name: {} for name in tracker or ()}, **sweep.trackers}
    with (
        store.locked(),
        RoundRunner(store, sweep.name, place, stages.targets, retry_failed, trackers, mirror, stages.metrics) as runner,
    ):
        runner.recover()
        runner.tell_moved(stages.known_trials())
        keep_published(store.root, published)
        store.log("run", command=shlex.join(["tuneoff", *sys.argv[1:]]))
        for trials in stages.rounds(store):
            runner.run(trials, f"{sweep.name} {trials.stage}" if sweep.stages else sweep.name)
        folder = _write_report(store)
        mirrored = runner.complete_mirror()
    _print_results(list(runner.found.values()), folder)
    for name in stages.without_settings:
        console.print(f"{name}: every trial of its tuning failed, so that it has no final trial", style="red")
    # A trial that fails while settings are searched is an answer: these settings do not work.
    failed = [r for r in runner.found.values() if isinstance(r.outcome, Failed) and r.spec.stage != "tune"]
    raise typer.Exit(1 if failed or stages.without_settings or not mirrored else 0)


def _print_results(found: list[TrialResult], folder: Path) -> None:
    from bench.report.terminal import results_table, tuning_table

    searches = tunings(read_searches(folder.parent), found)
    if searches:
        console.print(tuning_table(searches))
    if finals := [record for record in found if record.spec.stage == "final"]:
        console.print(results_table(finals))
        for line in json.loads((folder / "report.json").read_text(encoding="utf-8"))["headlines"]:
            console.print(line, style="bold", highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {folder / 'report.html'}", highlight=False)


def report(
    directory: Annotated[Path, typer.Argument(help="results/<sweep>")],
    published: Annotated[
        list[Path] | None,
        typer.Option(help="file of published numbers to show beside ours, from now on; may be repeated"),
    ] = None,
) -> None:
    """Render the records of a sweep again."""
    if not (directory / "trials").is_dir():
        raise ConfigError(f"{directory}: no folder 'trials'; give the folder of one sweep, e.g. results/quickstart")
    for path in published or ():
        load_published(path)
    keep_published(directory, published or ())
    store = Store(directory)
    _print_results(store.read_all(), _write_report(store))


def _write_report(store: Store) -> Path:
    """Render a sweep, with the command that ran it and how much of it is still to come."""
    status = read_status(store.root)
    missing = 0 if status is None else max(0, status.total - status.completed - status.failed)
    return reports.write(store.root, store.command(), missing)
