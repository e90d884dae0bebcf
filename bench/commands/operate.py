"""Commands on running and finished sweeps: status, cancel."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from bench.commands.options import AsJson, console
from bench.schema.validation import ConfigError
from bench.store.lock import is_alive, read_holder
from bench.store.records import LOCK_FILE, CorruptRecordError, Store, damaged_files
from bench.store.requests import CancelRequest, Requests

# The driver looks for requests every second, unless it is busy committing.
ANSWER_SECONDS = 60.0

SweepFolder = Annotated[Path, typer.Argument(help="results/<sweep>", metavar="DIR")]


def status(
    directory: SweepFolder,
    as_json: AsJson = False,
    verify: Annotated[bool, typer.Option("--verify", help="read all files of all records; slow")] = False,
) -> None:
    """Show where a sweep stands; exit code 1 if a record is damaged."""
    from bench.driver.display import status_view
    from bench.driver.status import read_status

    store = _store(directory)
    holder = read_holder(directory / LOCK_FILE)
    alive = holder is not None and is_alive(holder, directory / LOCK_FILE)
    found = read_status(directory)
    damaged = _damaged(store, verify)
    if as_json:
        driver = None if holder is None else {"host": holder.host, "pid": holder.pid, "alive": alive}
        content = {
            "driver": driver,
            "status": None if found is None else {**found.model_dump(mode="json"), "queued": found.queued},
            "damaged": damaged,
        }
        console.print_json(json.dumps(content))
    else:
        if holder is None:
            console.print("no driver runs this sweep")
        else:
            states = {True: "runs this sweep", False: "ran this sweep and was killed", None: "holds this sweep"}
            console.print(f"process {holder.pid} on {holder.host} {states[alive]}", highlight=False, soft_wrap=True)
        if found is not None:
            left = found.remaining_seconds if alive else None
            aged = None if left is None else min(left, max(0.0, left - (time.time() - found.updated_at)))
            console.print(status_view(found, aged), soft_wrap=True)
        for why in damaged:
            console.print(f"damaged: {why}", style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(1 if damaged else 0)


def cancel(
    directory: SweepFolder,
    trial: Annotated[str | None, typer.Argument(help="id of a trial; default: all that have no record")] = None,
) -> None:
    """End one trial, or all that have no record; then no later round follows.

    Each gets the record of a cancelled trial. Those of a search get none if all end: the same command goes on.
    """
    store = _store(directory)
    holder = read_holder(directory / LOCK_FILE)
    if holder is None or is_alive(holder, directory / LOCK_FILE) is False:
        raise ConfigError(f"{directory}: no driver runs this sweep, so there is nothing to cancel")
    if trial is not None and store.has(trial):
        raise ConfigError(f"{trial} has its record already; there is nothing to cancel")
    answer = Requests(store.root).ask(CancelRequest(trial_id=trial), ANSWER_SECONDS)
    if answer is None:
        raise ConfigError(f"process {holder.pid} on {holder.host} did not answer within {ANSWER_SECONDS:g} s")
    if trial is not None and not answer.cancelled:
        raise ConfigError(f"{trial} neither runs nor waits; 'tuneoff status {directory}' lists what runs")
    console.print(f"cancelled {answer.cancelled} {'trial' if answer.cancelled == 1 else 'trials'}", highlight=False)


def _store(directory: Path) -> Store:
    if not (directory / LOCK_FILE).exists() and not (directory / "trials").is_dir():
        raise ConfigError(f"{directory}: nothing of a sweep is here; give the folder of one, e.g. results/quickstart")
    return Store(directory)


def _damaged(store: Store, verify: bool) -> list[str]:
    """What is wrong with records. Records that the index knows to be intact are not read."""
    found = []
    for trial_id in store.trial_ids():
        if not verify and store.index.known(trial_id) is not None:
            continue
        try:
            record = store.read(trial_id)
        except CorruptRecordError as error:
            found.append(str(error))
            continue
        if verify and record is not None:
            names = damaged_files(store.trials / trial_id, record, list(record.files))
            found.extend(f"{store.trials / trial_id / name} is not as it was committed" for name in names)
    return found
