"""Runs every procedure on every design, with and without a difference, and counts intervals that hold the mean."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bench.statistics.estimates import LEVEL
from bench.statistics.spreads import Crossed, crossed, method_spread
from false_calls.procedures import PROCEDURES, joint_resamples
from false_calls.worlds import DIVERGING, WORLDS, Design, draw

METHODS, SEEDS, SOURCES = (3, 8, 13), (3, 5, 10), (20, 64, 500, 2000)
# A third of the methods is better by so many standard errors of a difference, where power is measured.
EFFECT = 4.0
# Elements (methods, seeds, sources) that are drawn at once, and experiments of the slow procedure.
AT_ONCE = 400_000
MOST_RESAMPLED = 60


@dataclass(frozen=True)
class Counted:
    """How often one procedure found a difference in one design."""

    design: Design
    procedure: str
    experiments: int
    false: int  # experiments with at least one pair of equals called different
    found: float  # share of the pairs that differ, over experiments of their own
    false_beside: float  # share of those experiments in which a pair of equals was called different


@dataclass(frozen=True)
class Covered:
    """How often an interval of a method's mean held the true score on new seeds and new sources."""

    design: Design
    intervals: int
    both: int  # over seeds and sources
    seeds_alone: int


def designs() -> Iterator[Design]:
    """All of them, the diverging ones last."""
    for methods, seeds, sources, kind in itertools.product(METHODS, SEEDS, SOURCES, ("mean", "BLEU")):
        for world in WORLDS if kind == "mean" else list(WORLDS)[:5]:
            yield Design(methods, seeds, sources, kind, world)
    for methods, seeds in itertools.product(METHODS, SEEDS):
        yield Design(methods, seeds, 500, "mean", DIVERGING)


def simulate(experiments: int, tell: Callable[[str], None]) -> tuple[list[Counted], list[Covered]]:
    """Everything, on all cores.

    Args:
        experiments: Without a difference, of a small design; large ones get fewer.
        tell: Called with a line on each design.
    """
    counted: list[Counted] = []
    covered: list[Covered] = []
    with ProcessPoolExecutor() as pool:
        for of_design, of_mean in pool.map(partial(_whole, experiments=experiments), designs()):
            counted += of_design
            covered += [] if of_mean is None else [of_mean]
            chosen = of_design[-1]
            tell(f"{chosen.design}: {chosen.false}/{chosen.experiments} called, {chosen.found:.0%} found")
    return counted, covered


def _whole(design: Design, experiments: int) -> tuple[list[Counted], Covered | None]:
    """Everything that is counted for one design."""
    elements = design.methods * design.seeds * design.sources
    number = max(250, min(experiments, int(experiments * 15_000 / elements)))
    of_mean = design.kind == "mean" and design.methods == METHODS[0] and design.world not in ("ties", DIVERGING)
    return run(design, number, max(50, number // 6)), coverage(design, number) if of_mean else None


def run(design: Design, null: int, different: int) -> list[Counted]:
    """Every procedure on the same experiments."""
    better = np.arange(design.methods) >= design.methods - max(1, design.methods // 3)
    first, second = np.triu_indices(design.methods, k=1)
    differs = better[first] != better[second]
    equal = _calls(design, null, np.zeros(design.methods))
    unequal = _calls(design, different, better * EFFECT * design.standard_error)
    return [
        Counted(
            design,
            name,
            len(equal[name]),
            int(equal[name].any(axis=1).sum()),
            float(unequal[name][:, differs].mean()),
            float(unequal[name][:, ~differs].any(axis=1).mean()),
        )
        for name in PROCEDURES
    ]


def _calls(design: Design, experiments: int, shift: NDArray[np.float64]) -> dict[str, NDArray[np.bool_]]:
    found: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in PROCEDURES}
    generator = np.random.default_rng(zlib.crc32(f"{design} {shift.any()}".encode()))
    for drawn in batches(design, experiments, generator, shift):
        for name, procedure in PROCEDURES.items():
            if procedure is joint_resamples:
                left = MOST_RESAMPLED - sum(map(len, found[name]))
                found[name].append(procedure(_first(drawn, left), generator, True))
            else:
                found[name].append(procedure(drawn, generator, not shift.any()))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def batches(
    design: Design, experiments: int, generator: np.random.Generator, shift: NDArray[np.float64]
) -> Iterator[Crossed]:
    """Experiments as procedures take them, some at a time."""
    trains = np.ones(design.methods, dtype=bool)
    trains[0] = design.world != "one untrained"
    size = max(1, AT_ONCE // (design.methods * design.seeds * design.sources))
    for start in range(0, experiments, size):
        yield crossed(*draw(design, min(size, experiments - start), generator, shift), trains)


def coverage(design: Design, experiments: int) -> Covered:
    """Of the intervals of the first method, whose true score is 60."""
    from scipy.special import stdtrit

    generator = np.random.default_rng(zlib.crc32(f"{design} coverage".encode()))
    size = max(1, AT_ONCE // (design.methods * design.seeds * design.sources))
    both = alone = 0
    for start in range(0, experiments, size):
        scores, influences = draw(design, min(size, experiments - start), generator, np.zeros(design.methods))
        one, moved = scores[:, 0], influences[:, 0]
        distance = np.abs(one.mean(axis=-1) - 60.0)
        trains = design.world != "one untrained"
        both += int((distance <= method_spread(one, moved, trains).half_width(LEVEL)).sum())
        error = one.std(axis=-1, ddof=1) / np.sqrt(design.seeds)
        alone += int((distance <= -stdtrit(design.seeds - 1, LEVEL / 2) * error).sum())
    return Covered(design, experiments, both, alone)


def _first(of: Crossed, count: int) -> Crossed:
    return Crossed(of.scores[:count], of.of_means[:count], of.of_seeds[:count], of.sources, of.trains)
