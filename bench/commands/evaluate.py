"""The command evaluate: it scores an adapter, a model or the base model without training."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

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
    read_launcher,
)
from bench.commands.sweeps import report_sweep
from bench.config.load import load_sweep, setting_value
from bench.driver.rounds import RoundRunner
from bench.driver.status import read_status, restore_status
from bench.launch.choose import AUTO
from bench.schema.record import Failed
from bench.schema.validation import ConfigError
from bench.store.kept_sweep import keep_beside
from bench.store.records import Store


def evaluate(
    sweep_file: SweepFile,
    stored: Annotated[
        list[Path] | None,
        typer.Argument(
            help="what to score: the folder of a trial or of an adapter of ours, of an adapter of peft, or of a whole "
            "model; several may be named. None: the base model",
            metavar="[RESULT]...",
        ),
    ] = None,
    shots: Annotated[
        int, typer.Option(min=0, help="training pairs that stand before each source, drawn by the seed")
    ] = 0,
    label: Annotated[
        str | None, typer.Option(help="what the row is called; default: the folder's name and a piece of its hash")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="of the row; default: that of the trial, else the first of the sweep")
    ] = None,
    results: ResultsDir = Path("results"),
    launcher: LauncherName = AUTO,
    address: Address = None,
    runtime_env: RuntimeEnv = None,
    hosts: Hosts = None,
    hosts_file: HostsFile = None,
    host_command: HostCommand = None,
    launcher_option: LauncherSettings = None,
    settings: Settings = None,
    plugins_dir: PluginsDir = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="score again what failed")] = False,
) -> None:
    """Score an adapter, a model or the base model on a sweep's task, without training: a row beside the sweep's.

    Task, base model, decoding and scores are those of the sweep file, so that the row can be compared with its trials;
    an adapter's template, precision and format of base weights are its own. The record lies in the sweep's folder, and
    the same command does nothing new.
    """
    from bench.config.evaluation import Evaluations
    from bench.config.resolver import RegistryResolver
    from bench.driver.stages import Round
    from bench.plugins.source import PluginError, use_folder

    where = read_launcher(
        launcher,
        launcher_option,
        address=address,
        runtime_env=runtime_env,
        hosts=hosts,
        hosts_file=hosts_file,
        host_command=host_command,
    )
    if label is not None and len(stored or ()) != 1:
        raise ConfigError("--label names one row: give one RESULT with it")
    sweep = load_sweep(sweep_file, settings or ())
    try:
        if plugins_dir is not None:
            use_folder(plugins_dir)
        made = Evaluations(sweep, RegistryResolver(plugins_dir), [setting_value(one)[0] for one in settings or ()])
        trials = [made.stored_trial(path, shots, seed, label) for path in stored or ()] or [
            made.base_trial(shots, seed)
        ]
    except (PluginError, ValueError) as error:
        raise ConfigError(f"{sweep_file}: {error}") from error
    store = Store(results / sweep.name)
    targets = [part.target for trial in trials for _, part in trial.resolved]
    with store.locked():
        of_sweep = read_status(store.root)
        try:
            with RoundRunner(
                store, sweep.name, where, console, targets, retry_failed, sweep.trackers, keep=keep_beside
            ) as runner:
                runner.recover()
                store.log("evaluate", command=shlex.join(["tuneoff", *sys.argv[1:]]))
                runner.run(
                    Round("final", tuple({trial.trial_id: trial for trial in trials}.values())),
                    f"{sweep.name} evaluate",
                )
        finally:
            restore_status(store.root, of_sweep)  # of which the report says how much is still to come
        report_sweep(store)
        ids = [known.trial_id for known in runner.found.values()]
        found = [record for trial_id in ids if (record := store.read(trial_id)) is not None]
    failed = [(record, record.outcome) for record in found if isinstance(record.outcome, Failed)]
    for record, outcome in failed:
        console.print(f"{record.trial_id}: {outcome.message}", style="red", markup=False, soft_wrap=True)
    raise typer.Exit(1 if failed else 0)
