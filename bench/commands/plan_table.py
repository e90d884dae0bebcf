"""Prints a plan on a terminal, or as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from bench.plan.devices import Device
from bench.plan.plan import PlannedTrial, Totals
from bench.report.column import ABSENT, compact, size
from bench.schema.trial import JsonDict


def planned_table(sweep: str, trials: Sequence[PlannedTrial], device: Device) -> Table:
    """One line per trial, with its settings and its memory by part below."""
    table = Table(title=f"{sweep}: {len(trials)} trials on {device.name}", padding=(0, 1), collapse_padding=True)
    table.add_column("trial, settings, memory by part", overflow="fold", min_width=30)
    for heading in ("trained", "TFLOP", "peak", "step", "total"):
        table.add_column(heading, justify="right", no_wrap=True)
    for trial in trials:
        parameters, forecast = trial.parameters, trial.forecast
        lines = [*_settings(trial), *_memory(trial, device)]
        table.add_row(
            Text(trial.spec.trial_id).append("\n" + "\n".join(lines), style="dim"),
            compact(parameters.trained),
            ABSENT if forecast is None else f"{forecast.flops / 1e12:,.3g}",
            Text(size(max(trial.phases.values())), style="" if trial.fits else "red") if trial.phases else ABSENT,
            ABSENT if forecast is None or forecast.step_seconds is None else seconds(forecast.step_seconds),
            ABSENT if forecast is None or forecast.total_seconds is None else seconds(forecast.total_seconds),
        )
    return table


def totals_text(found: Totals, device: Device, *, more_follow: bool) -> str:
    """A sentence with the cost of the whole sweep, or of what is known of it if searches decide on more trials."""
    which = "in all trials that are known now" if more_follow else "in all"
    wall = "never: a trial has more ranks than there are devices"
    if math.isfinite(found.wall_hours):
        wall = f"{seconds(3600 * found.wall_hours)} on {found.devices} device{'s' * (found.devices != 1)}"
    price = "" if found.price is None else f", price {found.price:,.2f}"
    part = "" if found.with_forecast == found.trials else f" (of the {found.with_forecast} trials that have a forecast)"
    return (
        f"{which}{part}: {found.flops / 1e12:,.4g} TFLOP, {found.device_hours:,.2f} device-hours, {wall}{price}. "
        f"Rates: {device.source}."
    )


def plan_document(sweep: str, trials: Sequence[PlannedTrial], device: Device, found: Totals) -> JsonDict:
    """The plan as JSON, unrounded."""
    return {
        "sweep": sweep,
        # What trials took in all has no rate of memory; JSON has no infinity.
        "device": {name: None if value == math.inf else value for name, value in vars(device).items()},
        "totals": {
            "trials": found.trials,
            "predicted": found.with_forecast,
            "flops": found.flops,
            "device_hours": found.device_hours,
            "wall_hours": found.wall_hours if math.isfinite(found.wall_hours) else None,
            "devices": found.devices,
            "price": found.price,
        },
        "trials": [
            {
                "trial_id": trial.spec.trial_id,
                "parameters": trial.parameters.model_dump(),
                "predicted": None if trial.forecast is None else trial.forecast.model_dump(),
                "phase_memory_bytes": trial.phases,
                "taken_bytes": trial.taken_bytes,
                "fits": trial.fits,
                "too_large": trial.too_large,
                "remedies": trial.remedies,
                "remark": trial.remark,
            }
            for trial in trials
        ],
    }


def seconds(value: float) -> str:
    """A duration with a unit."""
    if value < 0.9995:
        return f"{1000 * value:.3g} ms"
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:,.0f} min" if value < 7200 else f"{value / 3600:,.1f} h"


def _settings(trial: PlannedTrial) -> list[str]:
    spec = trial.spec
    lines = []
    if config := {key: value for key, value in spec.method.config.items() if value is not None}:
        lines.append(", ".join(f"{key}={value}" for key, value in config.items()))
    if trial.parameters.trained:
        length = f"{spec.train.steps} steps" if spec.train.steps else f"{spec.train.epochs or 1:g} epochs"
        lines.append(f"{length}, batch {spec.train.batch_size}, learning rate {spec.train.learning_rate:g}")
    ranks = "1 rank" if spec.resources.ranks == 1 else f"{spec.resources.ranks} ranks"
    lines.append(f"{ranks}, ZeRO {spec.resources.zero_stage}, {spec.resources.precision}")
    if trial.parameters.trained:
        counts = trial.parameters
        lines.append(
            f"trained {counts.trained:,} of {counts.total:,} ({100 * counts.trained_fraction:.3f} %), "
            f"stored {counts.stored:,}"
        )
        if counts.coverage_text is not None:
            lines.append(counts.coverage_text)
    return lines


def _memory(trial: PlannedTrial, device: Device) -> list[str]:
    lines = [trial.remark] if trial.remark else []
    if trial.forecast is not None:
        parts = ", ".join(f"{part} {size(count)}" for part, count in trial.forecast.memory_bytes.items())
        lines.append(f"training: {parts}")
    if trial.phases:
        lines.append("phases: " + ", ".join(f"{phase} {size(count)}" for phase, count in trial.phases.items()))
    if trial.phases and trial.taken_bytes:
        lines.append(f"in each phase besides: {size(trial.taken_bytes)} for the device's context and messages")
    if trial.too_large:
        named = ", ".join(f"{phase} ({size(trial.phases[phase])})" for phase in trial.too_large)
        resources = trial.spec.resources
        limit = round(device.share_bytes(trial.spec)) - trial.taken_bytes
        divided = device.kind == "cpu" and resources.ranks * device.trials_at_once(trial.spec) > 1
        shared = ", the share of one rank" if divided else ""
        lines.append(f"does not fit into {size(limit)}{shared}: {named}")
        lines += ["would fit with " * (not remedy.startswith("nothing")) + remedy for remedy in trial.remedies]
    return lines
