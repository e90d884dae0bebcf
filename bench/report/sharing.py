"""Records that take little memory: what is equal in many of them is there once, and curves are numbers, not objects.

Of five thousand trials nearly all settings, versions and signatures are the same; what differs are a few numbers.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

from bench.schema.record import DevPoint, Failed, Provenance, Scores, TrainPoint, TrialResult
from bench.schema.trial import JsonDict, Spec, TrialSpec

PointT = TypeVar("PointT", TrainPoint, DevPoint)
SharedT = TypeVar("SharedT")


class Curve(Sequence[PointT]):
    """The points of a curve, each of which is made when it is asked for.

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


class _Pool:
    """Values that were met before. Records are frozen, so that nobody can tell one that is shared from its own."""

    def __init__(self) -> None:
        self._met: dict[tuple[type, str], Any] = {}

    def one(self, value: SharedT) -> SharedT:
        text = value.model_dump_json() if isinstance(value, Spec) else json.dumps(value)
        found: SharedT = self._met.setdefault((type(value), text), value)
        return found


def shared(records: Iterable[TrialResult]) -> Iterator[TrialResult]:
    """The same records, one by one, as they take least memory together."""
    pool = _Pool()
    for record in records:
        update: JsonDict = {"spec": _spec(record.spec, pool)}
        if record.provenance is not None:
            update["provenance"] = _provenance(record.provenance, pool)
        if record.placement is not None:
            update["placement"] = pool.one(record.placement)
        if not isinstance(record.outcome, Failed):
            of_outcome: JsonDict = {
                "train_curve": Curve(TrainPoint, record.outcome.train_curve),
                "dev_curve": Curve(DevPoint, record.outcome.dev_curve),
                "parameters": pool.one(record.outcome.parameters),
                "data": pool.one(record.outcome.data),
            }
            for name in ("scores", "dev_scores"):
                if (scores := getattr(record.outcome, name, None)) is not None:
                    of_outcome[name] = _scores(scores, pool)
            update["outcome"] = record.outcome.model_copy(update=of_outcome)
        yield record.model_copy(update=update)


def _spec(spec: TrialSpec, pool: _Pool) -> TrialSpec:
    return spec.model_copy(
        update={
            name: pool.one(getattr(spec, name))
            for name in ("method", "model", "task", "train", "decode", "resources", "label")
        }
    )


def _provenance(provenance: Provenance, pool: _Pool) -> Provenance:
    texts = ("tuneoff_version", "code_sha256", "git_revision", "python_version", "device")
    return provenance.model_copy(
        update={name: pool.one(getattr(provenance, name)) for name in (*texts, "package_versions", "environment")}
    )


def _scores(scores: Scores, pool: _Pool) -> Scores:
    same = ("sources_by_tag", "signatures", "higher_is_better", "absent", "scoring", "remarks")
    return scores.model_copy(update={name: pool.one(getattr(scores, name)) for name in same})
