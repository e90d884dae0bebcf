"""Metrics by name: the built-in ones, imported when they are first used, and those of plugins."""

from __future__ import annotations

import functools
import importlib
import math
import re
from collections.abc import Iterator, Mapping

from bench.metrics import METRICS
from bench.metrics.metric import Metric

# Classes of plugins that this process has loaded, by "module:Class". Code that reads results finds them here, because
# it must not import a module that a record names.
LOADED: dict[str, type[Metric]] = {}


Known = Mapping[str, type[Metric]]


class KnownMetrics(Known):
    """Name to class, in the order in which results are shown.

    Args:
        plugins: Metrics beside the built-in ones.
    """

    def __init__(self, plugins: Known | None = None) -> None:
        self._plugins = dict(plugins or {})

    def __getitem__(self, name: str) -> type[Metric]:
        return self._plugins[name] if name in self._plugins else _built_in(METRICS[name])

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*METRICS, *self._plugins)))

    def __len__(self) -> int:
        return len(METRICS.keys() | self._plugins.keys())

    def __contains__(self, name: object) -> bool:  # without importing anything
        return name in METRICS or name in self._plugins


BUILT_IN = KnownMetrics()


@functools.cache
def _built_in(target: str) -> type[Metric]:
    module, _, name = target.partition(":")
    found: type[Metric] = getattr(importlib.import_module(module), name)
    return found


def class_problem(metric: type[Metric]) -> str | None:
    """What is wrong with the attributes of a class, on which reports rely; None if nothing is."""
    name = getattr(metric, "name", None)
    if not (isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", name)):
        return f"its name is {name!r}; it must be a text of small letters, digits and _, e.g. 'my_score'"
    direction = getattr(metric, "higher_is_better", "not set")
    if direction is not None and not isinstance(direction, bool):
        return f"its higher_is_better is {direction!r}; it must be True, False or None"
    best = metric.best
    if best is not None and (isinstance(best, bool) or not isinstance(best, int | float) or not math.isfinite(best)):
        return f"its best is {best!r}; it must be the score of texts that equal their reference, or None"
    return None
