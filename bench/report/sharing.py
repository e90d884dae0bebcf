"""Makes records take little memory: records share equal parts, and curves are arrays of numbers instead of objects.

Five thousand trials have nearly all settings, versions and signatures in common, and differ in a few numbers.
"""

from __future__ import annotations

import gc
import json
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast, overload

from bench.schema.record import (
    Completed,
    DevPoint,
    Failed,
    Probed,
    Provenance,
    RankCost,
    Scores,
    TrainPoint,
    TrialResult,
)
from bench.schema.trial import JsonDict, Spec, TrialSpec

PointT = TypeVar("PointT", TrainPoint, DevPoint)
SpecT = TypeVar("SpecT", bound=Spec)


class Curve(Sequence[PointT]):
    """The points of a curve. A point is made from the array of numbers when it is read.

    Args:
        kind: Of the points.
        points: All of them.
    """

    __slots__ = ("_kind", "_names", "_numbers")

    def __init__(self, kind: type[PointT], points: Iterable[PointT]) -> None:
        self._kind: type[PointT] = kind
        self._names = tuple(kind.model_fields)
        self._numbers = array("d", (float(getattr(point, name)) for point in points for name in self._names))

    def __len__(self) -> int:
        return len(self._numbers) // len(self._names)

    @overload
    def __getitem__(self, place: int) -> PointT: ...

    @overload
    def __getitem__(self, place: slice) -> list[PointT]: ...

    def __getitem__(self, place: int | slice) -> PointT | list[PointT]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        first = range(len(self))[place] * len(self._names)
        values: JsonDict = dict(zip(self._names, self._numbers[first : first + len(self._names)], strict=True))
        point: PointT = self._kind.model_construct(**{**values, "step": int(values["step"])})
        return point

    def losses(self) -> Iterator[tuple[int, float]]:
        """Step and loss of every point, without making the points."""
        step, loss = (self._numbers[self._names.index(name) :: len(self._names)] for name in ("step", "loss"))
        return zip(map(int, step), loss, strict=True)


def losses(curve: Sequence[TrainPoint] | Sequence[DevPoint]) -> Iterable[tuple[int, float]]:
    """Step and loss of every point of any curve."""
    return curve.losses() if isinstance(curve, Curve) else [(point.step, point.loss) for point in curve]


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside the block Python's garbage collector is off.

    It would go through all records again and again while more are read, which takes longer than reading them. It would
    find nothing, because records have no reference cycles.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Pool:
    """Values of earlier records, which later ones share. Records are frozen, so that sharing changes nothing."""

    def __init__(self) -> None:
        self._met: dict[object, Any] = {}

    def value(self, value: Any) -> Any:
        """The first JSON value that equals this one."""
        return sys.intern(value) if isinstance(value, str) else self._met.setdefault(json.dumps(value), value)

    def spec(self, value: SpecT | None) -> SpecT | None:
        """The first part of a record that equals this one."""
        if value is None:
            return None
        met: SpecT = self._met.setdefault((type(value), value.model_dump_json()), value)
        return met

    def seedless(self, spec: TrialSpec) -> TrialSpec:
        """The trial with the parts of the first trial that differs from it only in its seed."""
        first: TrialSpec = self._met.setdefault((TrialSpec, spec.without_seed), spec)
        return self.slim(first, {"seed": spec.seed})

    def slim(self, value: SpecT, update: JsonDict) -> SpecT:
        """The value with other fields. Values share the set of names of their fields that were set."""
        fields = self._met.setdefault(frozenset(value.model_fields_set), value.model_fields_set)
        content = {name: getattr(value, name) for name in type(value).model_fields}
        made: Any = value.model_construct(_fields_set=fields, **content | update)
        return cast("SpecT", made)


def shared(records: Iterable[TrialResult]) -> Iterator[TrialResult]:
    """The same records, one by one, with shared parts."""
    pool = _Pool()
    for record in records:
        update: JsonDict = {
            "sweep": pool.value(record.sweep),
            "spec": pool.seedless(record.spec),
            "attempt": pool.slim(record.attempt, {}),
            "launcher": pool.value(record.launcher),
            "placement": pool.spec(record.placement),
        }
        if record.provenance is not None:
            update["provenance"] = _provenance(record.provenance, pool)
        if not isinstance(record.outcome, Failed):
            update["outcome"] = pool.slim(record.outcome, _parts(record.outcome, pool))
        yield pool.slim(record, update)


def _parts(outcome: Completed | Probed, pool: _Pool) -> JsonDict:
    parts: JsonDict = {
        "train_curve": Curve(TrainPoint, outcome.train_curve),
        "dev_curve": Curve(DevPoint, outcome.dev_curve),
        "parameters": pool.spec(outcome.parameters),
        "data": pool.value(outcome.data),
        "predicted": pool.spec(outcome.predicted),
        "ranks": [_rank(cost, pool) for cost in outcome.ranks],
    }
    for name in ("train", "decode"):
        if (cost := getattr(outcome, name)) is not None:
            parts[name] = pool.slim(cost, {})
    for name in ("scores", "dev_scores"):
        if (scores := getattr(outcome, name, None)) is not None:
            parts[name] = _scores(scores, pool)
    return parts


def _rank(cost: RankCost, pool: _Pool) -> RankCost:
    phases = {pool.value(name): pool.slim(phase, {}) for name, phase in cost.phases.items()}
    same = {name: pool.value(getattr(cost, name)) for name in ("memory_method", "device")}
    return pool.slim(cost, {"phases": phases, **same})


def _provenance(provenance: Provenance, pool: _Pool) -> Provenance:
    texts = ("tuneoff_version", "code_sha256", "git_revision", "python_version", "device")
    same = (*texts, "package_versions", "environment")
    return pool.slim(provenance, {name: pool.value(getattr(provenance, name)) for name in same})


def _scores(scores: Scores, pool: _Pool) -> Scores:
    same = ("sources_by_tag", "signatures", "higher_is_better", "absent", "scoring", "remarks")
    update: JsonDict = {name: pool.value(getattr(scores, name)) for name in same}
    of_all, of_tags = scores.values, scores.by_tag
    update["values"] = {pool.value(name): value for name, value in of_all.items()}
    update["by_tag"] = {
        pool.value(tag): {pool.value(name): value for name, value in values.items()} for tag, values in of_tags.items()
    }
    return pool.slim(scores, update)
