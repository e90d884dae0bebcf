"""Commands on sweeps: run, plan, report."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench import report as reports
from bench.commands.options import LauncherName, MethodsDir, ResultsDir, Settings, SweepFile, console, read_trials
from bench.config import ConfigError
from bench.record import Failed, TrialResult
from bench.spec import Sweep, TrialSpec
from bench.store import Store


def run(
    sweep_file: SweepFile,
    results: ResultsDir = Path("results"),
    launcher: Annotated[LauncherName, typer.Option(help="auto is ray where it is installed")] = LauncherName.AUTO,
    address: Annotated[str | None, typer.Option(help="of a running Ray cluster; default: a local one")] = None,
    settings: Settings = None,
    methods_dir: MethodsDir = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="run failed trials again")] = False,
) -> None:
    """Run the trials of a sweep that have no record yet, and report all of them."""
    sweep, trials = read_trials(sweep_file, settings, methods_dir)
    store = Store(results / sweep.name)
    with store.locked():
        records = {trial.trial_id: store.read(trial.trial_id) for trial in trials}
        if retry_failed:
            for trial_id, record in records.items():
                if record is not None and isinstance(record.outcome, Failed):
                    store.discard(trial_id)
                    records[trial_id] = None
        pending = [trial for trial in trials if records[trial.trial_id] is None]
        done = len(trials) - len(pending)
        console.print(f"{sweep.name}: {len(trials)} trials, {done} done, {len(pending)} to run", highlight=False)
        if pending:
            _run_pending(store, sweep, pending, done, launcher, address)
        folder = reports.write(store.root, shlex.join(["tuneoff", *sys.argv[1:]]))
    found = [record for trial in trials if (record := store.read(trial.trial_id)) is not None]
    _print_results(found, folder)
    raise typer.Exit(1 if any(isinstance(record.outcome, Failed) for record in found) else 0)


def _run_pending(
    store: Store, sweep: Sweep, pending: list[TrialSpec], done: int, name: LauncherName, address: str | None
) -> None:
    from bench.display import Display
    from bench.plugin_source import sources_of
    from bench.prepare import make_launcher, prepare
    from bench.schedule import Schedule

    # Batch systems ask with SIGTERM, and a job that a shell started in the background would ignore SIGINT.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    prepare(pending, lambda message: console.print(message, style="dim", highlight=False))
    plugins = sources_of([target for trial in pending for target in (trial.method.target, trial.task.target)])
    launcher = make_launcher(name.value, store.scratch, address, plugins)
    try:
        with Display(console, done + len(pending), done) as display:
            Schedule(store, launcher, sweep.name, display.start, display.progress, display.result).run(pending)
    except KeyboardInterrupt:
        console.print("stopped: finished trials are kept, and the same command goes on", highlight=False)
        raise
    finally:
        launcher.close()
        store.clear_scratch()


def _print_results(found: list[TrialResult], folder: Path) -> None:
    from bench.report.terminal import results_table

    console.print(results_table(found))
    console.print(f"report: {folder / 'report.html'}", highlight=False)


def plan(sweep_file: SweepFile, settings: Settings = None, methods_dir: MethodsDir = None) -> None:
    """Show the trials of a sweep and what each would train. Starts nothing, writes nothing."""
    from bench.display import planned_table
    from bench.plan import plan as planned

    sweep, trials = read_trials(sweep_file, settings, methods_dir)
    console.print(planned_table(sweep.name, planned(trials)))


def report(directory: Annotated[Path, typer.Argument(help="results/<sweep>")]) -> None:
    """Render the records of a sweep again."""
    if not (directory / "trials").is_dir():
        raise ConfigError(f"{directory}: no folder 'trials'; give the folder of one sweep, e.g. results/quickstart")
    folder = reports.write(directory, shlex.join(["tuneoff", *sys.argv[1:]]))
    _print_results(Store(directory).read_all(), folder)
