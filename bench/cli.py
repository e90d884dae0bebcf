"""The command line: parses and delegates.

Exit codes: 0 all trials completed, 1 some failed, 2 bad input, 130 stopped.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench import report as reports
from bench.config import ConfigError, expand, load_sweep
from bench.record import Failed, TrialResult
from bench.spec import Sweep, TrialSpec
from bench.store import Store, StoreError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console()

SweepFile = Annotated[Path, typer.Argument(help="YAML file that says what to compare", metavar="SWEEP.yaml")]
ResultsDir = Annotated[Path, typer.Option("--results", help="folder that holds a folder for each sweep")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key.path=value, e.g. train.steps=10; may be repeated")
]


class LauncherName(StrEnum):
    """Where ranks run."""

    AUTO = "auto"
    RAY = "ray"
    LOCAL = "local"


@app.command()
def run(
    sweep_file: SweepFile,
    results: ResultsDir = Path("results"),
    launcher: Annotated[LauncherName, typer.Option(help="auto is ray where it is installed")] = LauncherName.AUTO,
    address: Annotated[str | None, typer.Option(help="of a running Ray cluster; default: a local one")] = None,
    settings: Settings = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="run failed trials again")] = False,
) -> None:
    """Run the trials of a sweep that have no record yet, and report all of them."""
    sweep, trials = _trials(sweep_file, settings)
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
    from bench.prepare import make_launcher, prepare
    from bench.schedule import Schedule

    # Batch systems ask with SIGTERM, and a job that a shell started in the background would ignore SIGINT.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    prepare(pending, lambda message: console.print(message, style="dim", highlight=False))
    launcher = make_launcher(name.value, store.scratch, address)
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
    from bench.display import results_table

    console.print(results_table(found))
    console.print(f"report: {folder / 'report.md'}", highlight=False)


@app.command()
def plan(sweep_file: SweepFile, settings: Settings = None) -> None:
    """Show the trials of a sweep and what each would train. Starts nothing, writes nothing."""
    from bench.display import planned_table
    from bench.plan import plan as planned

    sweep, trials = _trials(sweep_file, settings)
    console.print(planned_table(sweep.name, planned(trials)))


@app.command()
def report(directory: Annotated[Path, typer.Argument(help="results/<sweep>")]) -> None:
    """Render the records of a sweep again."""
    if not (directory / "trials").is_dir():
        raise ConfigError(f"{directory}: no folder 'trials'; give the folder of one sweep, e.g. results/quickstart")
    folder = reports.write(directory, shlex.join(["tuneoff", *sys.argv[1:]]))
    _print_results(Store(directory).read_all(), folder)


@app.command()
def methods(as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False) -> None:
    """List the methods that sweeps can name."""
    _list("method", as_json)


@app.command()
def tasks(as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False) -> None:
    """List the tasks that sweeps can name."""
    _list("task", as_json)


def _list(kind: str, as_json: bool) -> None:
    from bench.registry import describe

    found = describe("method" if kind == "method" else "task")
    if as_json:
        console.print_json(json.dumps([vars(entry) for entry in found]))
        return
    table = Table()
    for heading in (kind, "what it is", "source", "class"):
        table.add_column(heading, overflow="fold")
    for entry in found:
        table.add_row(*(Text(text) for text in (entry.name, entry.description, entry.source, entry.target)))
    console.print(table)


def _trials(sweep_file: Path, settings: list[str] | None) -> tuple[Sweep, list[TrialSpec]]:
    from bench.resolver import RegistryResolver

    sweep = load_sweep(sweep_file, settings or ())
    try:
        return sweep, expand(sweep, RegistryResolver())
    except ValueError as error:
        raise ConfigError(f"{sweep_file}: {error}") from error


def main() -> None:
    """Entry of the command ``tuneoff``."""
    try:
        app()
    except (ConfigError, StoreError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
