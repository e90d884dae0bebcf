"""Groups trials that differ only in their seed into configurations, the rows of every table, and compares them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from bench.report.column import Column, Shown
from bench.report.columns import column_or_score, columns_of, metric_columns, present
from bench.report.one_kind import Devices, chosen_kind, kind_name, kinds_text
from bench.report.row_labels import TableModels, row_labels
from bench.schema.record import Completed, Failed, TrialResult
from bench.schema.same_answer import answer_key, cost_class, untrained
from bench.schema.trial import on_base, titled
from bench.statistics.estimates import FEWEST_SEEDS, Basis, Estimate, common_seeds, estimate

if TYPE_CHECKING:
    from bench.statistics.significance import Significance

# Class of configurations to the trials of the stage cost that measured it, by repetition.
Costs = Mapping[str, Sequence[TrialResult]]


@dataclass(frozen=True, eq=False)
class Configuration:
    """One configuration: the trials that differ only in their seed."""

    results: tuple[TrialResult, ...]
    costs: tuple[TrialResult, ...] = ()  # of the stage cost: trials of the same class that ran alone, by repetition
    counted_seeds: frozenset[int] | None = None  # seeds that means are over; None: all completed ones
    intervals: Mapping[str, Estimate] = field(default_factory=dict)  # over seeds and sources, by score
    label: str = ""  # distinguishes it from the other rows of its method in the same table
    unsaid: tuple[str, ...] = ()  # keys of the sweep file in which these rows differ and that no label names
    costs_on: Devices | None = None  # whose final trials costs are taken from, where the table has several kinds
    alone_on: Devices | None = None  # likewise of the stage cost

    @property
    def name(self) -> str:
        """The name of the row, which no other row of its table has."""
        return titled(self.method, self.label)

    @property
    def method(self) -> str:
        return self.results[0].spec.method.name

    @cached_property
    def completed(self) -> list[tuple[TrialResult, Completed]]:
        """Completed trials with their outcomes, by seed."""
        return [(result, result.outcome) for result in self.results if isinstance(result.outcome, Completed)]

    @cached_property
    def counted_results(self) -> list[tuple[TrialResult, Completed]]:
        """Completed trials that means are over."""
        return [pair for pair in self.completed if self._counts(pair[0].spec.seed)]

    @cached_property
    def with_costs(self) -> list[tuple[TrialResult, Completed]]:
        """Completed trials whose costs count here: their own, on the kind of device that the table's costs are of."""
        return [pair for pair in self.completed if pair[0].has_own_costs and self.costs_on in (None, pair[0].devices)]

    @cached_property
    def trains(self) -> bool:
        """Whether anything is trained: not of the untouched base model, nor of loaded adapters and models."""
        return any(outcome.train is not None for _, outcome in self.completed)

    @cached_property
    def varies_over_seeds(self) -> bool:
        """Whether seeds differ: it is trained, or the seed draws its texts or its examples."""
        return any(result.varies_over_seeds for result, _ in self.completed)

    def _counts(self, seed: int) -> bool:
        return self.counted_seeds is None or seed in self.counted_seeds

    @property
    def seeds(self) -> str:
        """The number of counted seeds, and of all seeds if that differs."""
        num_counted, num_seeds = len(self.counted_results), len(self.results)
        return str(num_counted) if num_counted == num_seeds else f"{num_counted} of {num_seeds}"

    def estimate(self, name: str) -> Estimate | None:
        """Mean and spread of a column over the counted seeds that have it."""
        if name not in self._estimates:
            basis: Basis = "repetitions" if self.was_measured_alone(name) else "seeds"
            self._estimates[name] = self.intervals.get(name) or estimate(list(self.values(name).values()), basis)
        return self._estimates[name]

    def mean(self, name: str) -> float | None:
        """Mean of a column over the counted seeds that have it."""
        estimated = self.estimate(name)
        return None if estimated is None else estimated.mean

    def values(self, name: str) -> dict[int, float]:
        """Counted seed to value of a column; repetition to value if the stage cost has measured it."""
        column = column_or_score(name)
        if self.was_measured_alone(name):
            numbered, kind = [(result.spec.repetition, result) for result in self.costs], self.alone_on
        else:
            numbered, kind = [(result.spec.seed, result) for result, _ in self.counted_results], self.costs_on
        if column.is_cost and kind is not None:
            numbered = [pair for pair in numbered if pair[1].devices == kind]
        measured = ((number, column.number(result)) for number, result in numbered)
        return {number: value for number, value in measured if value is not None}

    def was_measured_alone(self, name: str) -> bool:
        """Whether the stage cost has measured a column. Without trials of that stage, it comes from final trials."""
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
    tested: int = 0  # configurations that the leaders are the leading ones of

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

        No configuration is best if there is only one, if all means are equal, or if the column has no direction. A cost
        that was measured alone is not the best if repetitions overlap with those of another configuration, if either
        was not repeated, or if that of another was not measured alone.
        """
        if self.leaders and self.metrics and column.name == self.metrics[0].name:
            return configuration.name in self.leaders and len(self.leaders) < self.tested
        mean = configuration.mean(column.name)
        if mean is None or column.higher_is_better is None or len(self.scored) < 2:
            return False
        means = self._means(column)
        if len(means) < 2 or mean != (max if column.higher_is_better else min)(means):
            return False
        others = (
            other for other in self.configurations if other is not configuration and other.mean(column.name) is not None
        )
        return not any(_within_spread(configuration, other, column.name) for other in others)

    def _means(self, column: Column) -> set[float]:
        """The different means of a column. They are kept, because each of thousands of rows needs them."""
        if column.name not in self._known_means:
            means = {
                mean for configuration in self.configurations if (mean := configuration.mean(column.name)) is not None
            }
            if not column.varies_over_seeds:
                means = {mean for mean in means if mean > 0}  # A method that trains nothing is not the smallest one.
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
    """Whether costs do not tell two configurations apart, of which one or both were measured alone.

    They overlap, are single, or were measured in different ways.
    """
    alone = [configuration.was_measured_alone(name) for configuration in (one, other)]
    if not all(alone):
        return any(alone)
    ones, others = one.values(name).values(), other.values(name).values()
    if min(len(ones), len(others)) < 2:
        return True
    return min(ones) <= max(others) and min(others) <= max(ones)


def configurations(results: Iterable[TrialResult], costs: Costs | None = None) -> list[Configuration]:
    """Group records by everything but the seed, in order of method, label and seed, with labels for their table.

    Args:
        results: Final trials.
        costs: Class of configurations to the trials that measured its cost alone.
    """
    records = list(results)
    indifferent = untrained(records)
    groups: dict[str, list[TrialResult]] = {}
    answers: dict[str, str] = {}  # specification without seed to key of the answer, which all seeds share
    for result in sorted(records, key=lambda result: (result.spec.method.name, result.spec.label, result.spec.seed)):
        spec = result.spec
        if spec.without_seed not in answers:
            trains = spec.method.target not in indifferent
            answers[spec.without_seed] = answer_key(spec, trains, without=("seed",))
        groups.setdefault(answers[spec.without_seed], []).append(result)
    costs = costs or {}
    labels = row_labels(records)
    made = []
    for members in groups.values():
        spec, label = members[0].spec, labels[members[0].trial_id]
        measured = costs.get(cost_class(spec, spec.method.target not in indifferent), ())
        made.append(Configuration(tuple(_once(members)), tuple(measured), label=label.text, unsaid=label.unsaid))
    return made


def _once(members: Sequence[TrialResult]) -> list[TrialResult]:
    """One record for each seed. A method that trains nothing may have several, with other settings of training."""
    by_seed: dict[int, TrialResult] = {}
    for result in members:
        if isinstance(by_seed.setdefault(result.spec.seed, result).outcome, Failed):
            by_seed[result.spec.seed] = result
    return list(by_seed.values())


def by_table(made: Sequence[Configuration]) -> dict[tuple[str, str], list[int]]:
    """Model and task, to the positions of their configurations."""
    models = TableModels(result for configuration in made for result in configuration.results)
    tables: dict[tuple[str, str], list[int]] = {}
    for place, configuration in enumerate(made):
        tables.setdefault(models.table(configuration.results[0].spec), []).append(place)
    return tables


def comparisons(results: Sequence[TrialResult], costs: Costs | None = None) -> tuple[Comparison, ...]:
    """The configurations of each model and task, best first by the first metric that the records name."""
    made = configurations(results, costs)
    return tuple(
        Comparison(model, task, _best_first(costs_of_one_kind(over_common_seeds([made[place] for place in places]))))
        for (model, task), places in sorted(by_table(made).items())
    )


def names(results: Sequence[TrialResult]) -> dict[str, str]:
    """Trial id to the name of the row that the trial belongs to, with the model or task where there are several."""
    made = configurations(results)
    tables = by_table(made)
    told = told_apart(tables)
    return {
        result.trial_id: told[table] + made[place].name
        for table, places in tables.items()
        for place in places
        for result in made[place].results
    }


def told_apart(tables: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Model and task of each table, to what stands before its rows' names among those of the others; empty of one."""
    found = list(tables)
    models, tasks = {model for model, _ in found}, {task for _, task in found}
    if len(found) < 2:
        return dict.fromkeys(found, "")
    return {
        (model, task): f"{' on '.join([model] * (len(models) > 1) + [task] * (len(tasks) > 1))}: "
        for model, task in found
    }


def of_too_few_seeds(members: Sequence[Configuration]) -> list[Configuration]:
    """The configurations that are not tested beside the others, because so few seeds conclude nothing.

    With them, the others would have no more seeds in common than these have. None where fewer than two others have
    enough seeds, so that there would be nothing to test without them either.
    """
    varying = [row for row in members if row.completed and row.varies_over_seeds]
    few = [row for row in varying if len(row.completed) < FEWEST_SEEDS]
    return few if len(varying) - len(few) > 1 else []


def over_common_seeds(members: Sequence[Configuration]) -> list[Configuration]:
    """The configurations with means over the seeds that all have completed, if these are enough.

    See :func:`common_seeds`. Those that :func:`of_too_few_seeds` finds have means over their own.
    """
    few = {id(configuration) for configuration in of_too_few_seeds(members)}
    together = [
        configuration
        for configuration in members
        if configuration.completed and configuration.varies_over_seeds and id(configuration) not in few
    ]
    completed_seeds = [tuple(r.spec.seed for r, _ in configuration.completed) for configuration in together]
    common = common_seeds(completed_seeds)
    if common is None or all(len(seeds) == len(common) for seeds in completed_seeds):
        return list(members)
    counting = {id(configuration) for configuration in together}
    return [
        replace(configuration, counted_seeds=frozenset(common)) if id(configuration) in counting else configuration
        for configuration in members
    ]


def costs_of_one_kind(members: Sequence[Configuration]) -> list[Configuration]:
    """The configurations with costs of trials on one kind of device, where they ran on several.

    A row without a trial there has no costs; see :func:`costs_left_out`.
    """
    final, alone = chosen_kind([_own_costs(row) for row in members]), chosen_kind([row.costs for row in members])
    if final is None and alone is None:
        return list(members)
    return [replace(configuration, costs_on=final, alone_on=alone) for configuration in members]


def costs_left_out(members: Sequence[Configuration]) -> list[str]:
    """Sentences that say which costs a table leaves out, because they are of another kind of device."""
    sentences = []
    kept = costs_of_one_kind(members)
    for of_rows, kind, what in (
        ([_own_costs(row) for row in kept], kept[0].costs_on if kept else None, "Rows"),
        ([list(row.costs) for row in kept], kept[0].alone_on if kept else None, "Trials of the stage cost"),
    ):
        if kind is None:
            continue
        named = zip(kept, of_rows, strict=True)
        absent = [row.name for row, own in named if own and not any(result.devices == kind for result in own)]
        without = f", and {', '.join(absent)} has none there" if absent else ""
        sentences.append(
            f"{what} were made with different devices ({kinds_text(r for own in of_rows for r in own)}): costs are "
            f"those of trials on {kind_name(kind)} alone{without}. resources.accelerator names one type of GPU."
        )
    return sentences


def _own_costs(configuration: Configuration) -> list[TrialResult]:
    return [result for result, _ in configuration.completed if result.has_own_costs]


def with_tests(comparison: Comparison, tests: Significance | str | None) -> Comparison:
    """The comparison with results of tests: intervals over seeds and sources, and the group that leads."""
    if tests is None or isinstance(tests, str):
        return comparison
    rows = tuple(_with_interval(configuration, tests) for configuration in comparison.configurations)
    leaders = tests.leaders if tests.conclusive else ()
    return replace(comparison, configurations=rows, leaders=leaders, tested=len(tests.means))


def _with_interval(configuration: Configuration, tests: Significance) -> Configuration:
    """The configuration with its interval over seeds and sources, where that is over the values that tables show."""
    found, values = tests.estimates.get(configuration.name), configuration.values(tests.metric)
    if found is not None and not configuration.varies_over_seeds and values:
        # One seed was tested, which stands for all.
        deviation = None if len(values) == 1 else 0.0
        found = replace(found, values=tuple(values.values()), standard_deviation=deviation)
    if found is None or len(found.values) != len(values):
        return configuration
    return replace(configuration, intervals={tests.metric: found})


def chosen_of_methods(members: Iterable[Configuration]) -> list[Configuration]:
    """The configuration with the lowest dev loss of each method, in the order of ``members``.

    It is not the one with the best test score, because tests would treat that as fixed beforehand. A loaded adapter or
    model, and a prompt with pairs in it, are always kept: whoever asks for them has chosen them.
    """
    chosen: dict[str, Configuration] = {}
    members = list(members)
    for configuration in members:
        best = chosen.setdefault(_chosen_among(configuration), configuration)
        if _by_dev_loss(configuration) < _by_dev_loss(best):
            chosen[_chosen_among(configuration)] = configuration
    return [configuration for configuration in members if chosen[_chosen_among(configuration)] is configuration]


def lowest_dev_loss(members: Iterable[Configuration]) -> Configuration | None:
    """The first of these by dev loss, those without one last; None of none."""
    return min(members, key=_by_dev_loss, default=None)


def _chosen_among(configuration: Configuration) -> str:
    spec = configuration.results[0].spec
    if spec.loaded is not None or spec.few_shot is not None:
        return configuration.name
    return titled(configuration.method, on_base("", spec.model.stored_in))


def _by_dev_loss(configuration: Configuration) -> tuple[float, str]:
    loss = configuration.mean("dev_loss")
    return math.inf if loss is None else loss, configuration.name


def _best_first(members: Sequence[Configuration]) -> tuple[Configuration, ...]:
    first = next(iter(metric_columns(result for configuration in members for result in configuration.results)), None)

    def rank(configuration: Configuration) -> tuple[int, float]:
        mean = configuration.mean(first.name) if first is not None else None
        if first is None or mean is None:
            return (1, 0.0)
        return (0, -mean if first.higher_is_better else mean)

    return tuple(sorted(members, key=rank))


def failed(results: Iterable[TrialResult]) -> list[tuple[TrialResult, Failed]]:
    """Failed trials with their outcomes."""
    return [(result, result.outcome) for result in results if isinstance(result.outcome, Failed)]
