"""Pairs the configurations of two sweeps for a comparison, and names both sides of a pair."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.report.configurations import Configuration
from bench.schema.labels import labels, settings_of
from bench.schema.trial import TrialSpec, titled

# Parts of a sweep file in which two methods always differ.
OF_METHODS = ("method", "config")


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a configuration, the folder of its predictions, and its name beside the other side."""

    root: Path
    configuration: Configuration
    name: str

    @property
    def spec(self) -> TrialSpec:
        return self.configuration.results[0].spec

    @property
    def settings(self) -> dict[str, str]:
        """Key of the sweep file to value as JSON, of all that changes the answer but the seed."""
        return settings_of(self.spec, self.configuration.trains or not self.configuration.completed)


@dataclass(frozen=True)
class Paired:
    """Pairs of configurations, and the names of those without a counterpart."""

    pairs: tuple[tuple[Side, Side], ...]
    left_over: tuple[str, ...]


def with_names(ones: Sequence[Side], others: Sequence[Side]) -> tuple[list[Side], list[Side]]:
    """The same sides with names of folder, method and the settings that tell it from others of its method."""
    sides = [*ones, *others]
    done = [side.configuration for side in sides if side.configuration.completed]
    untrained = {configuration.results[0].spec.method.target for configuration in done if not configuration.trains}
    found = labels([side.spec for side in sides], untrained)
    folders = _short_names([side.root for side in sides])
    made = [
        replace(side, name=f"{folders[side.root]}: {titled(side.configuration.method, label.text)}")
        for side, label in zip(sides, found, strict=True)
    ]
    return made[: len(ones)], made[len(ones) :]


def counterparts(ones: Sequence[Side], others: Sequence[Side]) -> Paired:
    """Pairs of one method whose settings differ least, each for the other, in no more settings than any third.

    Equal configurations are pairs, and so are those that differ by what sets two sweeps apart, as their precision. What
    has several that are equally near is left over: nobody could tell which is meant.
    """
    settings = {id(side): side.settings for side in (*ones, *others)}

    def nearest(side: Side, among: Sequence[Side]) -> Side | None:
        distances = sorted(
            (_distance(settings[id(side)], settings[id(other)]), place)
            for place, other in enumerate(among)
            if _comparable(side.spec, other.spec)
        )
        if not distances or (len(distances) > 1 and distances[0][0] == distances[1][0]):
            return None
        return among[distances[0][1]]

    pairs = [
        (one, other) for one in ones if (other := nearest(one, others)) is not None and nearest(other, ones) is one
    ]
    met = {id(side) for pair in pairs for side in pair}
    return Paired(tuple(pairs), tuple(side.name for side in (*ones, *others) if id(side) not in met))


def differences(first: Side, second: Side) -> list[str]:
    """What two configurations differ in beside their methods and what their names say, a sentence."""
    ones, others = first.settings, second.settings
    same_method = first.configuration.method == second.configuration.method
    keys = [
        key
        for key in sorted(ones.keys() | others.keys())
        if ones.get(key) != others.get(key) and (same_method or key.split(".")[0] not in OF_METHODS)
    ]
    if not first.configuration.trains or not second.configuration.trains:
        keys = [key for key in keys if not key.startswith("train.")]
    changes = [f"{key} ({_value_text(ones.get(key))}, {_value_text(others.get(key))})" for key in keys]
    return [f"They differ in {', '.join(changes)}."] if changes else []


def _comparable(one: TrialSpec, other: TrialSpec) -> bool:
    return (one.method.name, one.task.name) == (other.method.name, other.task.name)


def _distance(one: dict[str, str], other: dict[str, str]) -> int:
    return sum(one.get(key) != other.get(key) for key in one.keys() | other.keys())


def _value_text(value: str | None, most: int = 40) -> str:
    text = "not set" if value in (None, "null") else str(value)
    return text if len(text) <= most else f"{text[:most]}…"


def _short_names(roots: Sequence[Path]) -> dict[Path, str]:
    """Each folder by as many of its last parts as it takes to tell it from the others."""
    distinct = {root: Path(os.path.normpath(root.absolute())).parts for root in roots}
    called: dict[Path, str] = {}
    for root, parts in distinct.items():
        count = 1
        while count < len(parts) and any(
            other[-count:] == parts[-count:] for other in distinct.values() if other != parts
        ):
            count += 1
        called[root] = "/".join(parts[-count:])
    return called
