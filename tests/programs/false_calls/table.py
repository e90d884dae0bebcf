"""The page with the results of the simulation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from bench.statistics.estimates import LEVEL
from false_calls.procedures import PROCEDURES
from false_calls.simulation import EFFECT, Counted, Covered
from false_calls.worlds import DIVERGING, WORLDS

CHOSEN = list(PROCEDURES)[-1]
# Standard errors of a simulated share that a true 5 % may be exceeded by in the worst of some hundred designs.
MONTE_CARLO = 3.5

Found = tuple[Sequence[Counted], Sequence[Covered]]


def limit(experiments: int) -> float:
    """The largest share that may come out of so many experiments, by chance, if the true share is 5 %."""
    return LEVEL + MONTE_CARLO * math.sqrt(LEVEL * (1 - LEVEL) / experiments)


def too_often(found: Found) -> list[Counted]:
    """Designs in which the procedure of the reports calls equal methods different."""
    return [
        one
        for one in found[0]
        if one.procedure == CHOSEN
        and one.design.world != DIVERGING
        and one.false / one.experiments > limit(one.experiments)
    ]


def page(found: Found, experiments: int) -> str:
    """Markdown."""
    counted, covered = found
    lines = [
        "# False calls: what was tried to tell methods apart",
        "",
        f"`make false-calls`, {datetime.now(UTC):%Y-%m-%d}. At most {experiments} experiments a design, fewer of large "
        "ones (250 at least). Designs: 3, 8 and 13 methods, 3, 5 and 10 seeds, 20, 64, 500 and 2,000 sources, a BLEU "
        "of simulated sentences and a mean score.",
        "",
        "Family-wise rate: the share of experiments with equal methods in which any pair is called different; promised "
        f"are 5 %. Each cell: the mean over designs, and the worst design with the number of its experiments in "
        f"brackets. Power: the share of pairs found that differ by {EFFECT:g} standard errors, with a third of the "
        "methods better, over all designs of the world.",
        "",
        *(f"- {world}: {what}" for world, what in WORLDS.items()),
        "",
        *_summary(counted),
        "",
        f"## {CHOSEN.strip('*')}, design by design",
        "",
        "Family-wise rate in %, mean score / BLEU.",
        "",
        *_whole(counted),
        "",
        "## With 3 seeds and 500 sources, mean score",
        "",
        "Family-wise rate in % / power in %.",
        "",
        *_slice(counted),
        "",
        "## Seeds that diverge rarely",
        "",
        "10 % of the seeds of every method lose 30 points; 500 sources. Methods are equal here too, but most sets of "
        "three seeds show nothing of it, and no test of means can know: reports say when a seed is an outlier.",
        "",
        *_diverging(counted),
        "",
        "## Intervals of a mean",
        "",
        "Share of 95 % intervals that hold the true score on new seeds and new sources: over seeds and sources "
        "together, in brackets over seeds alone; mean score.",
        "",
        *_covered(covered),
    ]
    return "\n".join(lines) + "\n"


def _table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    cells = list(heading)
    separator = "| --- |" + " ---: |" * (len(cells) - 1)
    return ["| " + " | ".join(cells) + " |", separator, *("| " + " | ".join(row) + " |" for row in rows)]


def _of(counted: Sequence[Counted], procedure: str, world: str) -> list[Counted]:
    return [one for one in counted if one.procedure == procedure and one.design.world == world]


def _summary(counted: Sequence[Counted]) -> list[str]:
    def cell(procedure: str, world: str) -> str:
        members = _of(counted, procedure, world)
        mean = 100 * sum(one.false / one.experiments for one in members) / len(members)
        worst = max(members, key=lambda one: one.false / one.experiments)
        return f"{mean:.1f}, {100 * worst.false / worst.experiments:.1f} ({worst.experiments})"

    def power(procedure: str, world: str) -> str:
        members = _of(counted, procedure, world)
        return f"{100 * sum(one.found for one in members) / len(members):.0f}"

    rates = _table(
        ["family-wise rate, %", *WORLDS], ([name, *(cell(name, world) for world in WORLDS)] for name in PROCEDURES)
    )
    powers = _table(["power, %", *WORLDS], ([name, *(power(name, world) for world in WORLDS)] for name in PROCEDURES))
    return [*rates, "", *powers]


def _whole(counted: Sequence[Counted]) -> list[str]:
    rates = {
        (one.design.methods, one.design.seeds, one.design.sources, one.design.kind, one.design.world): one
        for one in counted
        if one.procedure == CHOSEN
    }
    shapes = sorted({key[:3] for key in rates if key[4] != DIVERGING})

    def cell(shape: tuple[int, int, int], world: str) -> str:
        pair = [one for kind in ("mean", "BLEU") if (one := rates.get((*shape, kind, world))) is not None]
        return " / ".join(f"{100 * one.false / one.experiments:.1f}" for one in pair)

    return _table(
        ["methods, seeds, sources", *WORLDS],
        ([", ".join(map(str, shape)), *(cell(shape, world) for world in WORLDS)] for shape in shapes),
    )


def _slice(counted: Sequence[Counted]) -> list[str]:
    def cell(procedure: str, methods: int, world: str) -> str:
        (one,) = (
            one
            for one in _of(counted, procedure, world)
            if (one.design.methods, one.design.seeds, one.design.sources, one.design.kind) == (methods, 3, 500, "mean")
        )
        return f"{100 * one.false / one.experiments:.1f} / {100 * one.found:.0f}"

    columns = [(methods, world) for methods in (3, 8, 13) for world in ("equal", "one wide")]
    return _table(
        ["", *(f"{methods} methods, {world}" for methods, world in columns)],
        ([name, *(cell(name, *column) for column in columns)] for name in PROCEDURES),
    )


def _diverging(counted: Sequence[Counted]) -> list[str]:
    members = _of(counted, CHOSEN, DIVERGING)
    return _table(
        ["family-wise rate, %", *(f"{seeds} seeds" for seeds in (3, 5, 10))],
        (
            [
                f"{methods} methods",
                *(
                    f"{100 * one.false / one.experiments:.1f}"
                    for seeds in (3, 5, 10)
                    for one in members
                    if (one.design.methods, one.design.seeds) == (methods, seeds)
                ),
            ]
            for methods in (3, 8, 13)
        ),
    )


def _covered(covered: Sequence[Covered]) -> list[str]:
    by_shape = {(one.design.seeds, one.design.sources, one.design.world): one for one in covered}
    shapes = sorted({key[:2] for key in by_shape})
    worlds = [world for world in WORLDS if any(key[2] == world for key in by_shape)]

    def cell(one: Covered) -> str:
        return f"{100 * one.both / one.intervals:.1f} ({100 * one.seeds_alone / one.intervals:.1f})"

    return _table(
        ["seeds, sources", *worlds],
        ([", ".join(map(str, shape)), *(cell(by_shape[*shape, world]) for world in worlds)] for shape in shapes),
    )
