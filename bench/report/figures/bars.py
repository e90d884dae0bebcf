"""Stacked bars of memory by part and phase, and of time by phase."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bench.report.configurations import Configuration
from bench.report.figures.picture import Picture, finished_picture
from bench.report.figures.style import PARTS, drawing
from bench.report.figures.words import drawable_text
from bench.report.planned import with_different_costs
from bench.schema.record import DOWNLOAD, Completed

MOST_BARS = 24
LONGEST_BAR = 44
TIMED_PHASES = ("load", "patch", "initialise", "train", "validate", "save", "decode", "score")
MEMORY_PHASES = ("train", "decode")

# Parts of one bar: label to size.
Parts = dict[str, float]


def memory_bars(configurations: Sequence[Configuration], name: str) -> Picture | None:
    """Measured memory of the worst rank while training and while decoding, mean over seeds."""
    bars = [
        (f"{configuration.name}, {phase}", parts)
        for configuration in with_different_costs(configurations)
        for phase in MEMORY_PHASES
        if (parts := _mean_parts(configuration, partial(_memory, phase)))
    ]
    caption = (
        "Peak of the phase on the worst rank, mean over seeds: what was there before a model was loaded (on a CPU the "
        "interpreter and its libraries), what was there when the phase began (weights; for training the optimiser as "
        "well), and what the phase itself added (activations, gradients, logits, caches)."
    )
    return _stacked(bars, name, "Memory by part and phase", "MiB", caption)


def planned_memory_bars(configurations: Sequence[Configuration], name: str) -> Picture | None:
    """Forecast memory of training, by part."""
    bars = [
        (configuration.name, parts)
        for configuration in with_different_costs(configurations)
        if (parts := _mean_parts(configuration, _planned))
    ]
    caption = (
        "What the planner expects at the peak of training on one rank; on a CPU beyond what was there before the "
        "model, and with the best state so far. The table of plan against measurement says how far it was right."
    )
    return _stacked(bars, name, "Planned training memory by part", "MiB", caption)


def time_bars(configurations: Sequence[Configuration], name: str) -> Picture | None:
    """Seconds of every phase on the slowest rank, mean over seeds."""
    bars = [
        (configuration.name, parts)
        for configuration in with_different_costs(configurations)
        if (parts := _mean_parts(configuration, _seconds))
    ]
    caption = (
        "Seconds of each phase on the slowest rank, mean over seeds; start-up of processes and the download of the "
        "base model are not in it."
    )
    return _stacked(bars, name, "Time by phase", "seconds", caption)


def _memory(phase: str, outcome: Completed) -> Parts:
    costs = [cost for cost in outcome.ranks if phase in cost.phases]
    if not costs:
        return {}
    cost = max(costs, key=lambda one: one.phases[phase].peak_memory_bytes)
    found = cost.phases[phase]
    start = max(cost.baseline_memory_bytes, min(found.start_memory_bytes, found.peak_memory_bytes))
    return {
        "before the model": cost.baseline_memory_bytes / 2**20,
        "at the start of the phase": (start - cost.baseline_memory_bytes) / 2**20,
        "added by the phase": max(0, found.peak_memory_bytes - start) / 2**20,
    }


def _planned(outcome: Completed) -> Parts:
    if outcome.predicted is None:
        return {}
    return {part: count / 2**20 for part, count in outcome.predicted.memory_bytes.items()}


def _seconds(outcome: Completed) -> Parts:
    phases = dict.fromkeys([*TIMED_PHASES, *(phase for cost in outcome.ranks for phase in cost.phases)])
    phases.pop(DOWNLOAD, None)
    found = {
        phase: max((cost.phases[phase].seconds for cost in outcome.ranks if phase in cost.phases), default=0.0)
        for phase in phases
    }
    return {phase: seconds for phase, seconds in found.items() if 0 < seconds < math.inf}


def _mean_parts(configuration: Configuration, parts_of: Callable[[Completed], Parts]) -> Parts:
    found = [parts for _, outcome in configuration.with_costs if (parts := parts_of(outcome))]
    labels = dict.fromkeys(label for parts in found for label in parts)
    return {label: sum(parts.get(label, 0.0) for parts in found) / len(found) for label in labels}


def _stacked(bars: Sequence[tuple[str, Parts]], name: str, title: str, unit: str, caption: str) -> Picture | None:
    if not bars:
        return None
    shown = bars[:MOST_BARS]
    labels = list(dict.fromkeys(label for _, parts in shown for label in parts))
    with drawing(7.4, 1.0 + 0.27 * len(shown)) as figure:
        axes = figure.add_subplot()
        tooltips: dict[str, str] = {}
        left = [0.0] * len(shown)
        for number, label in enumerate(labels):
            sizes = [parts.get(label, 0.0) for _, parts in shown]
            style: dict[str, Any] = {"color": PARTS[number % len(PARTS)], "height": 0.66, "label": drawable_text(label)}
            bars_drawn = axes.barh(range(len(shown)), sizes, left=left, **style)
            for place, (bar, size) in enumerate(zip(bars_drawn, sizes, strict=True)):
                mark = f"part-{number}-{place}"
                bar.set_gid(mark)
                tooltips[mark] = f"{shown[place][0]}: {label} {size:,.1f} {unit}"
            left = [at + size for at, size in zip(left, sizes, strict=True)]
        for place, end in enumerate(left):
            axes.annotate(
                f"{end:,.0f}" if max(left) >= 100 else f"{end:,.1f}",
                (end, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.set_yticks(range(len(shown)), [drawable_text(bar, LONGEST_BAR) for bar, _ in shown])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.1, y=0.02)
        axes.set_xlabel(unit)
        figure.legend(loc="outside upper center", ncols=min(4, len(labels)))
        few = f" The first {len(shown)} of {len(bars)} bars are shown." if len(shown) < len(bars) else ""
        return finished_picture(figure, name, title, caption + few, tooltips)
