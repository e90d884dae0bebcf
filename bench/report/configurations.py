"""Trials that differ only in their seed, together: the rows of every table. And which of them may be compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from bench.report.column import Column, Shown
from bench.report.columns import column_or_score, columns_of, metric_columns, present
from bench.report.row_labels import row_labels
from bench.schema.record import Completed, Failed, TrialResult
from bench.schema.same_answer import answer_key, cost_class, untrained
from bench.schema.trial import on_base, titled
from bench.statistics.estimates import Basis, Estimate, common_seeds, estimate

if TYPE_CHECKING:
    from bench.statistics.significance import Significance

# Class of configurations to the trials of the stage cost that measured it, by repetition.
Costs = Mapping[str, Sequence[TrialResult]]


@dataclass(frozen=True, eq=False)
class Configuration:
    """One configuration: the trials that differ only in their seed."""

    results: tuple[TrialResult, ...]
    costs: tuple[TrialResult, ...] = ()  # of the stage cost: trials of the same class that ran alone, by repetition
    counted_seeds: frozenset[int] | None = None  # that means are over; None: all that completed
    intervals: Mapping[str, Estimate] = field(default_factory=dict)  # over seeds and sources, of scores that have one
    label: str = ""  # what tells it from the other rows of its method in the same table
    unsaid: tuple[str, ...] = ()  # keys of the sweep file in which these rows differ and that no label names

    @property
    def name(self) -> str:
        """What it is called, which no other row of its table is."""
        return titled(self.method, self.label)

    @property
    def method(self) -> str:
        return self.results[0].spec.method.name

    @cached_property
    def completed(self) -> list[tuple[TrialResult, Completed]]:
        """Completed trials with their outcomes, by seed."""
        return [(result, result.outcome) for result in self.results if isinstance(result.outcome, Completed)]

    @cached_property
    def counted(self) -> list[tuple[TrialResult, Completed]]:
        """Completed trials that means are over."""
        return [pair for pair in self.completed if self._counts(pair[0].spec.seed)]

    @cached_property
    def trains(self) -> bool:
        """False for what comes out the same with every seed: the untouched base model, and what is loaded."""
        return any(result.varies_over_seeds for result, _ in self.completed)

    def _counts(self, seed: int) -> bool:
        return self.counted_seeds is None or seed in self.counted_seeds

    @property
    def seeds(self) -> str:
        """How many seeds are counted, and of how many if that differs."""
        done, asked = len(self.counted), len(self.results)
        return str(done) if done == asked else f"{done} of {asked}"

    def estimate(self, name: str) -> Estimate | None:
        """Mean and spread of a column over the counted seeds that have it."""
        if name not in self._estimates:
            basis: Basis = "repetitions" if self.was_measured_alone(name) else "seeds"
            self._estimates[name] = self.intervals.get(name) or estimate(list(self.values(name).values()), basis)
        return self._estimates[name]

    def mean(self, name: str) -> float | None:
        """Mean of a column over the counted seeds that have it."""
        found = self.estimate(name)
        return None if found is None else found.mean

    def values(self, name: str) -> dict[int, float]:
        """Counted seed to value of a column; repetition to value where the stage cost measured it."""
        column = column_or_score(name)
        if self.was_measured_alone(name):
            measured = [(result.spec.repetition, column.number(result)) for result in self.costs]
        else:
            measured = [(result.spec.seed, column.number(result)) for result, _ in self.counted]
        return {number: value for number, value in measured if value is not None}

    def was_measured_alone(self, name: str) -> bool:
        """Whether a column comes from the stage cost; without trials of that stage, it comes from its own."""
        return bool(self.costs) and column_or_score(name).measured_alone

    @cached_property
    def _estimates(self) -> dict[str, Estimate | None]:
        return {}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Configurations that share model and task: one table."""

    model: str
    task: str
    configurations: tuple[Configuration, ...]  # best first by the first metric; those without a score last
    leaders: tuple[str, ...] = ()  # the best in the first metric and all that cannot be told apart from it

    @cached_property
    def metrics(self) -> tuple[Column, ...]:
        return metric_columns(result for configuration in self.configurations for result in configuration.results)

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """Scores, then costs: those that some configuration has."""
        records = [result for configuration in self.configurations for result in configuration.results]
        return present((*self.metrics, *columns_of(Shown.CONFIGURATIONS)), records)

    @property
    def several_seeds(self) -> bool:
        return len({result.spec.seed for configuration in self.configurations for result in configuration.results}) > 1

    def is_best(self, configuration: Configuration, column: Column) -> bool:
        """Whether no other configuration has a better mean; in the first metric, whether it is among the leaders.

        None is best alone, among equals or without a direction; nor by a cost that was measured alone and lies within
        the spread of another, or has none.
        """
        if self.leaders and self.metrics and column.name == self.metrics[0].name:
            return configuration.name in self.leaders and len(self.leaders) < len(self.scored)
        found = configuration.estimate(column.name)
        if found is None or column.higher_is_better is None or len(self.scored) < 2:
            return False
        means = self._means(column)
        if len(means) < 2 or found.mean != (max if column.higher_is_better else min)(means):
            return False
        others = (
            other for other in self.configurations if other is not configuration and other.mean(column.name) is not None
        )
        return not any(_within_spread(configuration, other, column.name) for other in others)

    def _means(self, column: Column) -> set[float]:
        """The different means of a column, each once: a table of thousands of rows asks for every row."""
        if column.name not in self._known_means:
            means = {
                mean for configuration in self.configurations if (mean := configuration.mean(column.name)) is not None
            }
            if not column.varies_over_seeds:
                means = {mean for mean in means if mean > 0}  # What trains nothing is no method with few parameters.
            self._known_means[column.name] = means
        return self._known_means[column.name]

    @cached_property
    def _known_means(self) -> dict[str, set[float]]:
        return {}

    @property
    def scored(self) -> tuple[Configuration, ...]:
        """Configurations with at least one completed trial."""
        return tuple(configuration for configuration in self.configurations if configuration.completed)


def _within_spread(one: Configuration, other: Configuration, name: str) -> bool:
    """Whether measurements alone do not tell two configurations apart: they overlap, or were not repeated."""
    if not (one.was_measured_alone(name) and other.was_measured_alone(name)):
        return False
    ones, others = one.values(name).values(), other.values(name).values()
    if min(len(ones), len(others)) < 2:
        return True
    return min(ones) <= max(others) and min(others) <= max(ones)


def configurations(results: Iterable[TrialResult], costs: Costs | None = None) -> list[Configuration]:
    """Records by everything but the seed, in order of method, label and seed; named by what differs in their table.

    Args:
        results: Final trials.
        costs: Class of configurations to the trials that measured its cost alone.
    """
    found = list(results)
    indifferent = untrained(found)
    groups: dict[str, list[TrialResult]] = {}
    answers: dict[str, str] = {}  # by what is the same for all seeds
    for result in sorted(found, key=lambda result: (result.spec.method.name, result.spec.label, result.spec.seed)):
        spec = result.spec
        if spec.without_seed not in answers:
            trains = spec.method.target not in indifferent
            answers[spec.without_seed] = answer_key(spec, trains, without=("seed",))
        groups.setdefault(answers[spec.without_seed], []).append(result)
    costs = costs or {}
    called = row_labels(found)
    made = []
    for members in groups.values():
        spec, label = members[0].spec, called[members[0].trial_id]
        measured = costs.get(cost_class(spec, spec.method.target not in indifferent), ())
        made.append(Configuration(tuple(_once(members)), tuple(measured), label=label.text, unsaid=label.unsaid))
    return made


def _once(members: Sequence[TrialResult]) -> list[TrialResult]:
    """One record for each seed: what trains nothing may have run again when training settings changed."""
    by_seed: dict[int, TrialResult] = {}
    for result in members:
        if isinstance(by_seed.setdefault(result.spec.seed, result).outcome, Failed):
            by_seed[result.spec.seed] = result
    return list(by_seed.values())


def _by_table(made: Sequence[Configuration]) -> dict[tuple[str, str], list[int]]:
    """Model and task to the places of their configurations."""
    tables: dict[tuple[str, str], list[int]] = {}
    for place, configuration in enumerate(made):
        spec = configuration.results[0].spec
        tables.setdefault((spec.model.path, spec.task.name), []).append(place)
    return tables


def comparisons(results: Sequence[TrialResult], costs: Costs | None = None) -> tuple[Comparison, ...]:
    """The configurations of each model and task, best first by the first metric that the records name."""
    made = configurations(results, costs)
    return tuple(
        Comparison(model, task, _best_first(over_common_seeds([made[place] for place in places])))
        for (model, task), places in sorted(_by_table(made).items())
    )


def names(results: Sequence[TrialResult]) -> dict[str, str]:
    """Trial id to the name of the row that the trial belongs to."""
    return {
        result.trial_id: configuration.name
        for configuration in configurations(results)
        for result in configuration.results
    }


def over_common_seeds(members: Sequence[Configuration]) -> list[Configuration]:
    """The same with means over the seeds that all completed, where these are enough; see :func:`common_seeds`."""
    having = [
        tuple(r.spec.seed for r, _ in configuration.completed)
        for configuration in members
        if configuration.completed and configuration.trains
    ]
    common = common_seeds(having)
    if common is None or all(len(seeds) == len(common) for seeds in having):
        return list(members)
    return [
        replace(configuration, counted_seeds=frozenset(common)) if configuration.trains else configuration
        for configuration in members
    ]


def with_tests(comparison: Comparison, found: Significance | str | None) -> Comparison:
    """The same with what tests found: intervals over seeds and sources, and the group that leads."""
    if found is None or isinstance(found, str):
        return comparison
    tested = [
        replace(configuration, intervals={found.metric: found.estimates[configuration.name]})
        if configuration.name in found.estimates
        and len(found.estimates[configuration.name].values) == len(configuration.values(found.metric))
        else configuration
        for configuration in comparison.configurations
    ]
    return replace(comparison, configurations=tuple(tested), leaders=found.leaders if found.conclusive else ())


def chosen_of_methods(members: Iterable[Configuration]) -> list[Configuration]:
    """Of several configurations of a method, the one with the lowest dev loss; in the order that they come in.

    What is loaded was chosen by whoever loads it, and stands for itself.

    Not the one with the best test score: that would be tested as if it had been fixed beforehand.
    """
    chosen: dict[str, Configuration] = {}
    members = list(members)
    for configuration in members:
        best = chosen.setdefault(_chosen_among(configuration), configuration)
        if _by_dev_loss(configuration) < _by_dev_loss(best):
            chosen[_chosen_among(configuration)] = configuration
    return [configuration for configuration in members if chosen[_chosen_among(configuration)] is configuration]


def _chosen_among(configuration: Configuration) -> str:
    spec = configuration.results[0].spec
    if spec.loaded is not None:
        return configuration.name
    return titled(configuration.method, on_base("", spec.model.stored_in))


def _by_dev_loss(configuration: Configuration) -> tuple[float, str]:
    loss = configuration.mean("dev_loss")
    return math.inf if loss is None else loss, configuration.name


def _best_first(members: Sequence[Configuration]) -> tuple[Configuration, ...]:
    first = next(iter(metric_columns(result for configuration in members for result in configuration.results)), None)

    def rank(configuration: Configuration) -> tuple[int, float]:
        found = configuration.estimate(first.name) if first is not None else None
        if first is None or found is None:
            return (1, 0.0)
        return (0, -found.mean if first.higher_is_better else found.mean)

    return tuple(sorted(members, key=rank))


def failed(results: Iterable[TrialResult]) -> list[tuple[TrialResult, Failed]]:
    """Failed trials with their outcomes."""
    return [(result, result.outcome) for result in results if isinstance(result.outcome, Failed)]
