"""Commands on forecasts: plan, check-plan."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.commands.options import AsJson, PluginsDir, Settings, SweepFile, console, read_stages
from bench.schema.validation import ConfigError
from bench.store.records import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.plan.devices import Device
    from bench.schema.record import TrialResult
    from bench.schema.trial import TrialSpec


def plan(
    sweep_file: SweepFile,
    settings: Settings = None,
    plugins_dir: PluginsDir = None,
    device: Annotated[str, typer.Option(help="local, or a device of the table, e.g. h200")] = "local",
    devices: Annotated[int, typer.Option(min=1, help="how many there are")] = 1,
    price: Annotated[float | None, typer.Option(min=0.0, help="of one device for one hour")] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="results/<sweep> of the same device, whose step times set the rates")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a sweep would train, compute, need and cost, and whether it fits. Starts nothing, writes nothing."""
    from bench.commands.plan_table import plan_document, planned_table, totals_text
    from bench.plan.plan import plan as planned
    from bench.plan.plan import totals

    sweep, stages = read_stages(sweep_file, settings, plugins_dir)
    known = stages.known_trials()
    device_of = _device_of(device, calibrate)
    try:
        devices_of = [device_of(trial) for trial in known]
        trials = [planned([trial], its)[0] for trial, its in zip(known, devices_of, strict=True)]
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{sweep_file}: {error}") from error
    rates = {precision: rate for one in devices_of for precision, rate in one.flops_per_second.items()}
    chosen = replace(devices_of[0], flops_per_second=rates)
    found = totals(trials, devices, price)
    if as_json:
        console.print_json(json.dumps(plan_document(sweep.name, trials, chosen, found)))
        return
    console.print(planned_table(sweep.name, trials, chosen))
    console.print(totals_text(found, chosen, more_follow=bool(stages.searches)), highlight=False)
    for line in stages.outlook():
        console.print(line, highlight=False)


def check_plan(sweep_file: SweepFile, settings: Settings = None, plugins_dir: PluginsDir = None) -> None:
    """Run one training step of every configuration here, and print forecasts beside measurements, in Markdown."""
    from bench.plan.check import check, markdown

    sweep, stages = read_stages(sweep_file, settings, plugins_dir)
    print(markdown(sweep.name, list(check(stages.known_trials()))))  # noqa: T201 - to be redirected into a file


def _device_of(name: str, calibrate: Path | None) -> Callable[[TrialSpec], Device]:
    """The device of each trial. That of a CPU has the cores that its ranks get."""
    import torch

    from bench.measure.device_memory import device_memory
    from bench.plan.devices import find_device, known_gpu
    from bench.plan.plan import calibrated

    records = [] if calibrate is None else Store(calibrate).read_all()
    if name != "local":
        try:
            device = find_device(name)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    elif torch.cuda.is_available():
        found = known_gpu(torch.cuda.get_device_name())
        if found is None:
            raise ConfigError(
                f"--device local: {torch.cuda.get_device_name()} is not in the table; name one that is like it"
            )
        device = replace(found, memory_bytes=device_memory(torch.device("cuda")))
    else:
        return _cpu_of(calibrate, records)
    if calibrate is not None:
        device, trials = calibrated(device, records)
        if not trials:
            raise ConfigError(
                f"--calibrate {calibrate}: no trial there was trained on {device.name} and has a forecast"
            )
    return lambda _: device


def _cpu_of(calibrate: Path | None, records: Sequence[TrialResult]) -> Callable[[TrialSpec], Device]:
    """This machine's processor for each trial: measured, or as trials with as many threads found it."""
    from bench.launch.capacity import Cluster, Machine
    from bench.plan.devices import measured_cpu, this_cpu
    from bench.plan.plan import calibrated, planned_work

    here = this_cpu()
    cluster = Cluster([Machine(cpus=here.cores, gpus=0)])

    def measured(spec: TrialSpec) -> Device:
        tokens = planned_work(spec).micro_batch_tokens
        return measured_cpu(cluster.threads(spec), spec.resources.precision, tokens=tokens)

    @functools.cache
    def with_threads(threads: int) -> Device:
        alike = [one for one in records if one.provenance is not None and one.provenance.threads_per_rank == threads]
        return calibrated(here, alike)[0]

    def as_found(spec: TrialSpec) -> Device:
        threads, precision = cluster.threads(spec), spec.resources.precision
        device = with_threads(threads)
        if precision not in device.flops_per_second:
            raise ConfigError(
                f"--calibrate {calibrate}: no trial there was trained on {here.name} in {precision} with "
                f"{threads} thread{'s' * (threads != 1)} per rank and has a forecast"
            )
        return device

    return measured if calibrate is None else as_found
