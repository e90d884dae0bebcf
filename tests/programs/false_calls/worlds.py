"""Experiments without a difference between methods, or with a known one.

E experiments, m methods, S seeds, M sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bench.metrics.sums import bleu
from bench.statistics.spreads import jackknife

Array = NDArray[np.float64]
Kind = Literal["mean", "BLEU"]

WORLDS = {
    "equal": "seeds of all methods spread alike",
    "one wide": "the seeds of one method spread six times as far",
    "heavy tails": "seeds and sources follow Student's t with three degrees of freedom",
    "one untrained": "one method has no seeds: the base model",
    "ties": "nine of ten sources come out the same with every method",
    "shared": "half of the variance over seeds is common to all methods, which pairing takes off",
    "mixed": "every method spreads differently: standard deviations from 0.4 to 2.2 times the usual, log-normal",
}
DIVERGING = "diverging"  # 10 % of the seeds of every method lose 30 points: no test of means is honest there

# Standard deviations in points of the score: of a seed, and of single sources by method, and by method and seed.
SEED, SOURCE, BOTH = 1.5, 8.0, 8.0
# The same for the probability that a word is right, of which BLEU is made.
HIT, HIT_SEED, HIT_SOURCE = 0.62, 0.0105, 0.05


@dataclass(frozen=True)
class Design:
    """What an experiment is."""

    methods: int
    seeds: int
    sources: int
    kind: Kind
    world: str

    @property
    def standard_error(self) -> float:
        """Of a difference of two means of the usual spread, in points of a score that is a mean."""
        variance = SEED**2 / self.seeds + SOURCE**2 / self.sources + BOTH**2 / (self.seeds * self.sources)
        return float(np.sqrt(2 * variance))


def draw(design: Design, experiments: int, generator: np.random.Generator, shift: Array) -> tuple[Array, Array]:
    """Scores ``(E, m, S)`` and influences of sources ``(E, m, S, M)``.

    Args:
        design: Of the experiments.
        experiments: E.
        generator: Of all that is random.
        shift: What is added to the mean of each method, in points, ``(m,)``.
    """
    methods, seeds, sources = design.methods, design.seeds, design.sources
    of_seeds = _of_seeds(design, experiments, generator) + shift[:, None].astype(np.float32)
    if design.world == "ties":
        of_seeds *= 5  # only one source of ten can show it
    draws = _heavy if design.world == "heavy tails" else _normal
    of_sources = draws(generator, (experiments, methods, 1, sources))
    of_both = _normal(generator, (experiments, methods, seeds, sources))
    alike = generator.random((experiments, 1, 1, sources)) < 0.9 if design.world == "ties" else None
    if design.world == "one untrained":
        of_both[:, 0] = of_both[:, 0, :1]
    if design.kind == "BLEU":
        return _bleu(of_seeds, of_sources, of_both, alike, generator)
    if alike is not None:
        # Right or wrong, 0 or 100: most sources are so for all methods at once.
        right = (of_seeds[..., None] / 25 + 0.7 * of_sources + 0.7 * of_both > 0) * np.float32(100)
        values = np.where(alike, (generator.random(alike.shape) < 0.5) * np.float32(100), right)
    else:
        values = 60 + of_seeds[..., None] + np.float32(SOURCE) * of_sources + np.float32(BOTH) * of_both
    scores = values.mean(axis=-1)
    return scores.astype(np.float64), values - scores[..., None]


def _of_seeds(design: Design, experiments: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Effects of seeds in points, ``(E, m, S)``."""
    shape = (experiments, design.methods, design.seeds)
    spread = np.full((experiments, design.methods, 1), SEED, dtype=np.float32)
    if design.world == "one wide":
        spread[:, 0] *= 6
    elif design.world == "one untrained":
        spread[:, 0] = 0
    elif design.world == "mixed":
        spread *= np.exp(0.8 * _normal(generator, spread.shape))
    if design.world == "shared":
        common = _normal(generator, (experiments, 1, design.seeds))
        return spread * np.float32(np.sqrt(0.5)) * (_normal(generator, shape) + common)
    effects = spread * (_heavy if design.world == "heavy tails" else _normal)(generator, shape)
    if design.world == DIVERGING:
        effects -= np.float32(30) * (generator.random(shape) < 0.1)
    return effects


def _bleu(
    of_seeds: NDArray[np.float32],
    of_sources: NDArray[np.float32],
    of_both: NDArray[np.float32],
    alike: NDArray[np.bool_] | None,
    generator: np.random.Generator,
) -> tuple[Array, Array]:
    """Scores and influences of sentences whose words are right with a probability that seeds and sources move."""
    experiments, sources = len(of_sources), of_sources.shape[-1]
    points = np.float32(HIT_SEED / SEED)
    hit = HIT + points * of_seeds[..., None] + np.float32(HIT_SOURCE) * (of_sources + of_both)
    if alike is not None:
        hit = np.where(alike, HIT + np.float32(HIT_SOURCE) * _normal(generator, alike.shape), hit)
    np.clip(hit, 0.02, 0.98, out=hit)
    length = generator.integers(8, 25, size=(experiments, 1, 1, sources)).astype(np.float32)
    chance = generator.random(alike.shape if alike is not None else hit.shape, dtype=np.float32)
    matches = _matches(hit, length, chance)
    if sources >= 500:
        return _linear(matches, length)
    columns = [length, length, *matches, *(length - order for order in range(4))]
    statistics = np.stack(np.broadcast_arrays(*columns), axis=-1)
    return bleu(statistics.sum(axis=-2, dtype=np.float64)), jackknife(statistics, bleu)


def _matches(
    hit: NDArray[np.float32], length: NDArray[np.float32], chance: NDArray[np.float32]
) -> list[NDArray[np.float32]]:
    """N-grams of one to four words that are right: as many as expected, rounded up or down by chance."""
    power, found = hit.copy(), []
    for order in range(4):
        right = (length - order) * power
        right += chance
        np.floor(right, out=right)
        found.append(np.minimum(right, length - order, out=right))
        power *= hit
    return found


def _linear(matches: Sequence[NDArray[np.float32]], length: NDArray[np.float32]) -> tuple[Array, Array]:
    """Scores, and what the jackknife comes to with many sources: their derivative at the sums, times each source."""
    of_sources = [length, length, *matches, *(length - order for order in range(4))]
    sums = np.stack(np.broadcast_arrays(*(column.sum(axis=-1, dtype=np.float64) for column in of_sources)), axis=-1)
    influences = np.zeros_like(matches[0])
    for place, column in enumerate(of_sources):
        step = 1e-4 * np.maximum(sums, 1.0) * (np.arange(sums.shape[-1]) == place)
        slope = (bleu(sums + step) - bleu(sums - step)) / (2 * step[..., place])
        influences += column * (slope[..., None] * matches[0].shape[-1]).astype(np.float32)
    influences -= influences.mean(axis=-1, keepdims=True)
    return bleu(sums), influences


def _normal(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return generator.standard_normal(shape, dtype=np.float32)


def _heavy(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Of variance 1."""
    return (generator.standard_t(3, size=shape) / np.sqrt(3)).astype(np.float32)
