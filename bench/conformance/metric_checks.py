"""The contract of metrics, as checks. ``tuneoff check-metric`` and tests run them, on metrics of plugins, too.

Imports no torch, so that a metric is checked in a second or two.
"""

from __future__ import annotations

import copy
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from bench.conformance.check_verdict import CheckVerdict
from bench.conformance.process_settings import PROCESS_SETTINGS
from bench.metrics.known import class_problem
from bench.metrics.metric import Array, Measured, Metric, MetricError, checked_statistics
from bench.metrics.texts import Texts, prepare
from bench.task import Answer, Choices, Example, Scoring

ROUNDING = 1e-9
SCORED = 16  # sources of a sample; more would only take longer
# Hash seeds of the two processes that have to agree.
HASH_SEEDS = ("1", "2")
ODD = (
    "",
    " ",
    "?!",
    "\U0001f642 \U0001f642",
    "a",
    "x " * 200,
    "\u6211\u662f\u4eba\u3002",
    "one\ntwo",
    "1.0e-3 % \\boxed{7}",
)


@dataclass(frozen=True)
class Sample:
    """Sources on which a metric is tried.

    Attributes:
        name: For messages.
        examples: With references, and facts of one form.
        scoring: The settings.
    """

    name: str
    examples: Sequence[Example]
    scoring: Scoring = field(default_factory=Scoring)

    def texts(self, predictions: Sequence[str], alone: bool = False) -> Texts:
        """Texts with these predictions; with ``alone`` each source has only one reference."""
        references = [one.references[:1] if alone else one.references for one in self.examples]
        facts = [one.facts for one in self.examples]
        return prepare(predictions, references, self.scoring, facts, [False] * len(predictions))

    @property
    def perfect(self) -> list[str]:
        return [one.references[0] for one in self.examples]

    @property
    def odd(self) -> list[str]:
        return [ODD[place % len(ODD)] for place in range(len(self.examples))]

    @property
    def damaged(self) -> dict[str, list[str]]:
        """Predictions that are worse than the references, by the kind of damage."""
        drawn = random.Random(1)
        words = [text.split() for text in self.perfect]
        return {
            "the references of other sources": [*self.perfect[1:], self.perfect[0]],
            "half of the words": [" ".join(some[: len(some) // 2]) for some in words],
            "words in another order": [" ".join(drawn.sample(some, len(some))) for some in words],
            "some other words": [" ".join("xyz" if drawn.random() < 0.3 else word for word in some) for some in words],
            "no words": [""] * len(words),
        }


def samples() -> list[Sample]:
    """Samples of the task facts: with triples, with slots, with texts alone, with answers in texts, and with labels."""
    from bench.tasks.facts.task import Facts

    some = Facts(Facts.Config()).load("dev")[:SCORED]
    few = some[: SCORED // 2]
    slots = [Example(one.id, (("name", one.facts[0][0]), ("near", one.facts[0][2])), "", one.references) for one in few]
    plain = [Example(one.id, (), one.source, one.references) for one in few]
    answers = [
        Example(one.id, (), one.source, (f"{one.references[0]} The answer is {place}.",))
        for place, one in enumerate(few)
    ]
    answered = Scoring(answer=Answer("last_number", "number"))
    shipped = [Sample("facts", some), Sample("slots", slots), Sample("texts", plain)]
    labels = ("a text on one entity", "a text on some entities", "a text on many entities")
    labelled = [replace(one, references=(labels[place % 3],)) for place, one in enumerate(plain)]
    chosen = Scoring(choices=Choices(labels, "whole", "none"))
    return [*shipped, Sample("answers", answers, answered), Sample("labels", labelled, chosen)]


@dataclass(frozen=True)
class Subject:
    """A metric and the samples on which it is tried."""

    metric_class: type[Metric]
    all_samples: Sequence[Sample]
    offered_as: str | None = None
    settings: dict[str, Any] = field(
        default_factory=lambda: {name: read() for name, (read, _) in PROCESS_SETTINGS.items()}
    )
    """The settings of the process before the metric was first used."""

    @cached_property
    def samples(self) -> list[Sample]:
        """The samples that the metric can score."""
        return [one for one in self.all_samples if self.made(one).absent(one.texts(one.perfect)) is None]

    def made(self, sample: Sample) -> Metric:
        return self.metric_class(sample.scoring)

    def variants(self) -> Iterator[tuple[Sample, Metric, str, list[str]]]:
        """Every sample with perfect, damaged and odd predictions."""
        for sample in self.samples:
            for name, predictions in {"perfect": sample.perfect, **sample.damaged, "odd texts": sample.odd}.items():
                yield sample, self.made(sample), name, predictions


def verdicts(
    metric_class: type[Metric], more: Sequence[Sample] = (), processes: bool = True, offered_as: str | None = None
) -> Iterator[CheckVerdict]:
    """Run every check, also after failures, unless there is nothing to score.

    Args:
        metric_class: The metric.
        more: Further sources on which it is tried, e.g. of its own task.
        processes: Whether scores of other processes are compared, too.
        offered_as: The name of the metric's file or entry point, which must be its name; None if it has neither.
    """
    subject = Subject(metric_class, [*samples(), *more], offered_as)
    for name, check in CHECKS.items():
        if check is _same_in_other_processes and not processes:
            continue
        try:
            with redirect_stdout(sys.stderr):
                remark = check(subject)
        except Exception as error:  # noqa: BLE001 - whatever a stranger's code raises is the reason of a failure
            reason = str(error) if isinstance(error, MetricError) else f"{type(error).__name__}: {error}"
            yield CheckVerdict(name, "fail", reason)
            if check in (_class_is_whole, _can_be_had):
                return
        else:
            yield CheckVerdict(name, "warn" if remark else "pass", remark or "")


def _class_is_whole(subject: Subject) -> None:
    if lacking := sorted(subject.metric_class.__abstractmethods__):
        raise MetricError(f"the class lacks {', '.join(lacking)}")
    if (problem := class_problem(subject.metric_class)) is not None:
        raise MetricError(problem)
    if subject.offered_as not in (None, subject.metric_class.name):
        raise MetricError(
            f"it is offered as {subject.offered_as!r} and calls itself {subject.metric_class.name!r}; give it one name"
        )
    subject.made(subject.all_samples[0])


def _can_be_had(subject: Subject) -> None:
    reasons = {}
    for sample in subject.all_samples:
        reason = subject.made(sample).absent(sample.texts(sample.perfect))
        if reason is not None and not (isinstance(reason, str) and reason.strip()):
            raise MetricError(f"absent gives {reason!r}; it must give None, or what is missing")
        reasons[sample.name] = reason
    if not subject.samples:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise MetricError(f"nothing was checked, because it is absent everywhere ({why}); name data with --task")


def _has_a_signature(subject: Subject) -> None:
    for sample in subject.samples:
        metric = subject.made(sample)
        signatures = [metric.signature(sample.texts(texts)) for texts in (sample.perfect, sample.perfect, sample.odd)]
        first, *_, last = signatures
        if not all(isinstance(one, str) and one.strip() and len(one.splitlines()) == 1 for one in signatures):
            raise MetricError(f"the signature is {first!r}; it must be one line that says what makes up the score")
        if len(set(signatures)) > 1:
            raise MetricError(f"the signature changes with the predictions, {first!r} and {last!r}")


def _statistics_are_a_table(subject: Subject) -> None:
    if not subject.metric_class.adds_up:
        return
    widths: dict[str, int] = {}
    for sample, metric, name, predictions in subject.variants():
        rows = checked_statistics(metric, sample.texts(predictions))
        if not np.isfinite(rows).all():
            raise MetricError(f"statistics of {name} are not finite: {_first(rows, ~np.isfinite(rows).all(axis=1))}")
        widths[f"{name} of {sample.name}"] = rows.shape[1]
    if len(set(widths.values())) > 1:
        raise MetricError(f"K, the number of statistics of a source, depends on the texts: {widths}")


def _statistics_are_of_one_source(subject: Subject) -> None:
    """The statistics of some sources, in any order, are their rows of the statistics of all sources."""
    if not subject.metric_class.adds_up:
        return
    for sample, metric, name, predictions in subject.variants():
        order = _shuffled(len(predictions))
        chosen = order if subject.metric_class.of_all_sources else order[: len(order) // 2]
        part = Sample(sample.name, [sample.examples[place] for place in chosen], sample.scoring)
        whole = checked_statistics(metric, sample.texts(predictions))[chosen]
        alone = checked_statistics(metric, part.texts([predictions[place] for place in chosen]))
        differing = ~np.isclose(whole, alone, rtol=ROUNDING, atol=ROUNDING).all(axis=1)
        if differing.any():
            place = int(np.flatnonzero(differing)[0])
            raise MetricError(
                f"statistics of a source depend on the other sources or on their order: with {name} of {sample.name}, "
                f"source {chosen[place]} has {_short(whole[place])} among all and {_short(alone[place])} among "
                f"{len(chosen)}. Parts of the sources would be scored wrongly; where that is meant (how rare words "
                "are), set of_all_sources = True"
            )


def _score_is_one_of_sums(subject: Subject) -> None:
    """Recorded scores equal the scores of sums, which tests and intervals use, for one sum and for many at once."""
    for sample, metric, name, predictions in subject.variants():
        texts = sample.texts(predictions)
        measured = metric.measure(texts)
        everything = range(len(predictions))
        _require_equal(
            measured.over(everything),
            metric.measure(_reordered(sample, predictions)).over(everything),
            f"the score of {name} depends on the order of the sources",
        )
        if measured.per_example is not None and len(measured.per_example) != len(predictions):
            raise MetricError(f"there are {len(measured.per_example)} scores of {len(predictions)} single sources")
        if metric.adds_up:
            _require_of_sums(metric, checked_statistics(metric, texts), measured, name)


def _require_of_sums(metric: Metric, rows: Array, measured: Measured, name: str) -> None:
    drawn = np.random.default_rng(1).integers(len(rows), size=(6, len(rows)))
    sums = np.stack([rows[chosen].sum(axis=0) for chosen in drawn])
    at_once = np.asarray(metric.score(sums.reshape(2, 3, -1)))
    if at_once.shape != (2, 3):
        raise MetricError(
            f"score gives {at_once.shape} for sums (2, 3, {rows.shape[1]}); it must give (2, 3), one number for each "
            "sum: write sums[..., 0] for the first statistic, and axis=-1 for all of them"
        )
    for place, chosen in enumerate(drawn):
        one = float(metric.score(sums[place]))
        _require_equal(float(at_once.reshape(-1)[place]), one, f"score of {name} is another for several sums at once")
        _require_equal(
            measured.over(chosen.tolist()), one, f"the score of {name} is not what score makes of summed statistics"
        )


def _scores_are_finite(subject: Subject) -> None:
    for sample, metric, name, predictions in subject.variants():
        measured = metric.measure(sample.texts(predictions))
        for place in range(len(predictions)):
            alone = measured.per_example[place] if measured.per_example is not None else 0.0
            for score in (measured.over([place]), alone):
                if not math.isfinite(score):
                    raise MetricError(
                        f"the score of one source is {score} with {name}: {predictions[place][:40]!r} for "
                        f"{sample.perfect[place][:40]!r}; of whatever texts, a score is a finite number"
                    )


def _references_score_best(subject: Subject) -> str | None:
    best = subject.metric_class.best
    for sample in subject.samples:
        score = _score(subject.made(sample), sample.texts(sample.perfect, alone=True))
        if best is not None:
            _require_equal(score, float(best), "references scored against themselves do not score best")
    return None


def _damage_is_told(subject: Subject) -> str | None:
    """Damage makes scores worse by the metric's direction. A remark if it changes no score."""
    higher, best = subject.metric_class.higher_is_better, subject.metric_class.best
    if higher is None:
        return None
    any_changed = False
    for sample in subject.samples:
        metric = subject.made(sample)
        perfect = _score(metric, sample.texts(sample.perfect, alone=True))
        scores = {name: _score(metric, sample.texts(texts, alone=True)) for name, texts in sample.damaged.items()}
        changed = {name: value for name, value in scores.items() if not _equal(value, perfect)}
        better = {name: value for name, value in changed.items() if (value > perfect) == higher}
        any_changed |= bool(changed)
        if better and (best is not None or len(better) == len(changed)):
            name, value = next(iter(better.items()))
            raise MetricError(
                f"{name} in place of the references score {value:.6g}, the references {perfect:.6g}: with "
                f"higher_is_better = {higher} the damaged texts are the better ones; is the direction wrong?"
            )
    return None if any_changed else "nothing that was done to the texts changes the score"


def _nothing_is_left_behind(subject: Subject) -> None:
    for sample, metric, name, predictions in subject.variants():
        with _left_behind(f"scoring {name}", subject.settings) as changed:
            texts = sample.texts(predictions)
            metric.absent(texts), metric.signature(texts)
            metric.measure(texts).over(range(len(predictions)))
        if changed:
            raise MetricError(changed[0])


@contextmanager
def _left_behind(what: str, before: dict[str, Any]) -> Iterator[list[str]]:
    """Yield a list that after the block names the settings and random states that it changed. They are restored."""
    changed: list[str] = []
    original = _random_states()
    for name, (read, put_back) in PROCESS_SETTINGS.items():
        if read() != before[name]:
            put_back(before[name])
    _draw_anew()
    states = _random_states()
    try:
        yield changed
    finally:
        for name, (read, put_back) in PROCESS_SETTINGS.items():
            if read() != before[name]:
                changed.append(f"{what} changes {name}; put back what you change")
                put_back(before[name])
        for name, (state, put_back) in _random_states().items():
            if name in states and state != states[name][0]:
                changed.append(
                    f"{what} changes the random numbers of {name}, which others draw too; use a generator of your own "
                    "with a fixed seed"
                )
            if name in original:
                put_back(original[name][0])


def _draw_anew() -> None:
    """Set random states that no seed of a metric produces."""
    random.seed("tuneoff check-metric")
    np.random.seed(random.randrange(2**32))
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(random.randrange(2**32))


def _random_states() -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    states: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "Python (random)": (random.getstate(), random.setstate),
        "numpy (np.random)": (
            json.dumps(np.random.get_state(legacy=False), default=lambda value: value.tolist()),
            lambda state: np.random.set_state(json.loads(state)),
        ),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = (
            tuple(torch.random.get_rng_state().tolist()),
            lambda state: torch.random.set_rng_state(torch.tensor(state, dtype=torch.uint8)),
        )
    return states


def _input_stays(subject: Subject) -> None:
    for sample, metric, name, predictions in subject.variants():
        texts = sample.texts(predictions)
        kept = copy.deepcopy(texts)
        measured = metric.measure(texts)
        first = measured.over(range(len(predictions)))
        if texts != kept or vars(texts) != vars(kept):
            raise MetricError(f"scoring {name} changes the texts, which other metrics read after it")
        if metric.adds_up:
            sums = checked_statistics(metric, texts)
            before = sums.copy()
            metric.score(sums)
            if not np.array_equal(sums, before):
                raise MetricError("score changes the sums that it is given; compute in arrays of your own")
        _require_equal(measured.over(range(len(predictions))), first, f"the score of {name} is another the second time")


def _same_again(subject: Subject) -> None:
    first, second = fingerprint(subject), fingerprint(subject)
    if first != second:
        raise MetricError(f"the same texts have another score the second time: {_differing(first, second)}")


def _same_in_other_processes(subject: Subject) -> str | None:
    """Scores do not depend on the hash seed of a process, which changes the order of sets."""
    metric_class = subject.metric_class
    if "<locals>" in metric_class.__qualname__ or metric_class.__module__ == "__main__":
        return "not checked: no other process can import the class"
    code = (
        "import sys\nsys.path[:] = sys.argv[3:]\nfrom bench.conformance import metric_checks\n"
        "metric_checks.print_fingerprint(*sys.argv[1:3])"
    )
    command = [sys.executable, "-c", code, metric_class.__module__, metric_class.__qualname__, *sys.path]
    running = [
        subprocess.Popen(
            command,
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in HASH_SEEDS
    ]
    outputs = [process.communicate() for process in running]
    for process, (_, errors) in zip(running, outputs, strict=True):
        if process.returncode:
            raise MetricError(f"another process cannot score: {errors.strip().splitlines()[-1:]}")
    first, second = (json.loads(output.splitlines()[-1]) for output, _ in outputs)
    if first != second:
        raise MetricError(
            f"scores depend on the hash seed of the process, say on the order of a set: {_differing(first, second)}"
        )
    return None


def print_fingerprint(module: str, name: str) -> None:
    """Print the scores of a class on the shipped samples, for the process that started this one."""
    import importlib

    metric_class: Any = importlib.import_module(module)
    for part in name.split("."):
        metric_class = getattr(metric_class, part)
    with redirect_stdout(sys.stderr):
        scores = fingerprint(Subject(metric_class, samples()))
    print(json.dumps(scores))  # noqa: T201


def fingerprint(subject: Subject) -> dict[str, float]:
    """All scores of all variants."""
    return {
        f"{name} of {sample.name}": _score(metric, sample.texts(predictions))
        for sample, metric, name, predictions in subject.variants()
    }


def _differing(first: dict[str, float], second: dict[str, float]) -> str:
    name = next(name for name in first if first[name] != second.get(name))
    return f"{name} get {first[name]!r} and {second.get(name)!r}"


def _score(metric: Metric, texts: Texts) -> float:
    return metric.measure(texts).over(range(len(texts)))


def _reordered(sample: Sample, predictions: Sequence[str]) -> Texts:
    order = _shuffled(len(predictions))
    other = Sample(sample.name, [sample.examples[place] for place in order], sample.scoring)
    return other.texts([predictions[place] for place in order])


def _shuffled(number: int) -> list[int]:
    return random.Random(1).sample(range(number), number)


def _equal(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=ROUNDING)


def _require_equal(score: float, expected: float, problem: str) -> None:
    if not _equal(score, expected):
        raise MetricError(f"{problem}: {score:.10g} instead of {expected:.10g}")


def _first(rows: Array, where: Any) -> str:
    place = int(np.flatnonzero(where)[0])
    return f"{_short(rows[place])} for source {place}"


def _short(row: Array) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in row[:6])}{', ...' if len(row) > 6 else ''}]"


CHECKS: dict[str, Callable[[Subject], str | None]] = {
    "class is whole": _class_is_whole,
    "can be had": _can_be_had,
    "has a signature": _has_a_signature,
    "statistics are a table": _statistics_are_a_table,
    "statistics are of one source": _statistics_are_of_one_source,
    "score is one of sums": _score_is_one_of_sums,
    "scores are finite": _scores_are_finite,
    "references score best": _references_score_best,
    "damage is told": _damage_is_told,
    "nothing is left behind": _nothing_is_left_behind,
    "input stays": _input_stays,
    "same again": _same_again,
    "same in other processes": _same_in_other_processes,
}
