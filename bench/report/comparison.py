"""One configuration against another: differences with intervals, per score, per tag and per cost, and a verdict.

The second is judged against the first: differences are second minus first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bench.metrics.scoring import did_you_mean
from bench.report.column import Column, Shown
from bench.report.columns import columns_of, metric_columns
from bench.report.configurations import Configuration, costs_left_out, costs_of_one_kind, failed
from bench.report.counterparts import Side, differences
from bench.report.published import Quoted, fits, other_base
from bench.schema.record import TrialResult
from bench.statistics.differences import PairedTests
from bench.statistics.estimates import FEWEST_SEEDS, LEVEL, Estimate, estimate, holm, two_sided_p
from bench.statistics.systems import PairedSystems, System, load_system

# What an interval of a difference accounts for. "alone": single measurements, of which nothing is known.
Basis = Literal["seeds and sources", "sources", "seeds", "repetitions", "alone"]
Verdict = Literal["better", "worse", "different", "not told apart", "too few seeds", "failed"]


@dataclass(frozen=True)
class Line:
    """The values of both sides in one score or cost, and their difference."""

    column: Column
    tag: str | None  # a part of the test sources; None: all
    first: float  # means of both sides over the paired seeds
    second: float
    difference: float  # second minus first; of a cost, the ratio second / first
    low: float | None  # 95 % interval of the difference
    high: float | None
    p_value: float | None  # the chance that equal methods come out as far apart
    basis: Basis
    seeds: int  # pairs of seeds, of published numbers our seeds
    note: str = ""
    fixed: bool = False  # whether no seed changes either side, so that more seeds would say no more

    @property
    def verdict(self) -> Verdict:
        """The verdict on the second side. Of a score without a direction neither side is the better one."""
        if self.p_value is None or (self.seeds < FEWEST_SEEDS and not self.fixed):
            return "too few seeds"
        if self.p_value >= LEVEL:
            return "not told apart"
        if self.column.higher_is_better is None:
            return "different"
        return "better" if (self.difference > 0) == self.column.higher_is_better else "worse"


@dataclass(frozen=True)
class Compared:
    """Two sides, line by line."""

    first: str
    second: str
    scores: tuple[Line, ...]  # the one that the verdict is about first; none where a side has no completed trial
    tags: tuple[Line, ...]  # of that score
    costs: tuple[Line, ...]
    remarks: tuple[str, ...] = ()
    second_failed: bool = False  # every trial of it, where some of the first completed

    @property
    def verdict(self) -> Verdict:
        """The verdict on the first score."""
        if self.scores:
            return self.scores[0].verdict
        return "failed" if self.second_failed else "too few seeds"


def without_scores(first: Side, second: Side) -> Compared:
    """Two configurations of which one or both have no completed trial."""
    second_failed = bool(first.configuration.completed) and not second.configuration.completed
    return Compared(
        first.name, second.name, (), (), (), (*failed_seeds(first), *failed_seeds(second)), second_failed=second_failed
    )


def failed_seeds(side: Side) -> list[str]:
    """A remark on the failed trials of a side, where it has any."""
    count, seeds = len(failed(side.configuration.results)), len(side.configuration.results)
    if not count:
        return []
    if not side.configuration.completed:
        return [f"{side.name}: every trial failed."]
    return [f"{side.name}: {count} of {seeds} seeds failed, and are in no number here."]


def compare(first: Side, second: Side, metric: str | None = None) -> Compared:
    """Two configurations that were tested on the same sources.

    Args:
        first: What the second is compared with.
        second: What is judged.
        metric: The score that the verdict is about; None is the first that the records name.

    Raises:
        StatisticsError: They were not, or scores cannot be computed again.
        ValueError: There is no such score, one side lacks it, or there is one test source only.
    """
    sides = (first.configuration, second.configuration)
    columns = _metric_first([result for side in sides for result in side.results], metric)
    paired = PairedSystems(
        (
            load_system(second.root, second.name, second.configuration.results),
            load_system(first.root, first.name, first.configuration.results),
        )
    )
    paired.check()
    scores = [line for column in columns if (line := _score(paired, column)) is not None]
    if not scores or metric not in (None, scores[0].column.name):
        raise ValueError(_why_not_compared(paired, metric))
    tags = sorted({tag for system in paired.systems for one in system.completed.values() for tag in one.scores.by_tag})
    of_tags = [_score(paired, scores[0].column, tag) for tag in tags]
    return Compared(
        first.name,
        second.name,
        tuple(scores),
        tuple(line for line in of_tags if line is not None),
        tuple(cost_lines(*costs_of_one_kind(sides))),
        (*failed_seeds(first), *failed_seeds(second), *differences(first, second), *costs_left_out(sides)),
    )


def corrected(compared: Sequence[Compared]) -> list[Compared]:
    """Holm's correction over the scores that the verdicts are about, where several are given at once.

    Intervals and the other scores stay as they are, which a remark says.
    """
    tested = [one.scores[0].p_value if one.scores else None for one in compared]
    known = [p_value for p_value in tested if p_value is not None]
    if len(known) < 2:
        return list(compared)
    adjusted = iter(holm(known))
    return [
        one
        if p_value is None
        else replace(
            one,
            scores=(replace(one.scores[0], p_value=next(adjusted)), *one.scores[1:]),
            remarks=(
                *one.remarks,
                f"p of {one.scores[0].column.title} is corrected for {len(known)} comparisons (Holm); its interval and "
                "all other lines are not.",
            ),
        )
        for one, p_value in zip(compared, tested, strict=True)
    ]


def _metric_first(results: Sequence[TrialResult], metric: str | None) -> list[Column]:
    columns = metric_columns(results)
    if metric is None:
        return list(columns)
    names = [column.name for column in columns]
    if metric not in names:
        known = ", ".join(names)
        reason = f"there is no such score in these records; known: {known}{did_you_mean(metric, names)}"
        raise ValueError(f"--metric {metric}: {reason}")
    return sorted(columns, key=lambda column: column.name != metric)


def _why_not_compared(paired: PairedSystems, metric: str | None) -> str:
    """Why there is no line of a score that the verdict is asked of; without one, why there is no line at all."""
    second, first = paired.systems
    asked = "" if metric is None else f"--metric {metric}: "
    lacking = [] if metric is None else [one.name for one in (first, second) if not _of_seeds(one, metric, None)]
    if lacking:
        return f"{asked}{' and '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} no such score"
    if paired.sources < 2:
        return f"{asked}{first.name} and {second.name} were tested on one source, which says nothing of others"
    return f"{asked}{first.name} and {second.name} have no score in common"


def _score(paired: PairedSystems, column: Column, tag: str | None = None) -> Line | None:
    """A score over all sources, or over those with a tag; None where only one side has it, or of a single source."""
    second, first = paired.systems
    values = [_of_seeds(system, column.name, tag) for system in (second, first)]
    if not all(values):
        return None
    made = paired.statistics(column.name)
    if made is None:
        return _over_seeds(column, tag, *_of_paired_seeds(first, second, values[1], values[0]))
    score, statistics = made
    if tag is not None:
        chosen = paired.with_tag(tag)
        statistics = {name: replace(one, values=one.values[:, chosen]) for name, one in statistics.items()}
    sources = next(iter(statistics.values())).values.shape[1]
    if sources < 2:
        return None
    (found,) = PairedTests(sources, score).all_pairs(statistics)
    alone = found.p_value is None
    of_one_pair = f"p over sources {found.p_randomisation:.3f}" if alone else ""
    return Line(
        column=column,
        tag=tag,
        first=found.second_mean,
        second=found.first_mean,
        difference=found.difference,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        basis="sources" if alone or found.fixed else "seeds and sources",
        seeds=found.seeds,
        note="no seed changes either" if found.fixed else of_one_pair,
        fixed=found.fixed,
    )


def _of_seeds(system: System, metric: str, tag: str | None) -> dict[int, float]:
    """Recorded value of each completed seed that has the score."""
    scores = {
        seed: one.scores.values if tag is None else one.scores.by_tag.get(tag, {})
        for seed, one in system.completed.items()
    }
    return {seed: values[metric] for seed, values in scores.items() if metric in values}


def _of_paired_seeds(
    first: System, second: System, ones: dict[int, float], twos: dict[int, float]
) -> tuple[dict[int, float], dict[int, float]]:
    """Values of both sides by seed; what no seed changes has one value, which holds for every seed of the other."""
    if not first.varies_over_seeds:
        ones = dict.fromkeys(twos if second.varies_over_seeds else [0], next(iter(ones.values())))
    if not second.varies_over_seeds:
        twos = dict.fromkeys(ones, next(iter(twos.values())))
    return ones, twos


def _over_seeds(
    column: Column, tag: str | None, first: Mapping[int, float], second: Mapping[int, float], note: str = ""
) -> Line:
    """A line whose interval is over seeds alone, for scores in which single sources have no share."""
    pairs = _paired(first, second)
    found = estimate([two - one for one, two in pairs])
    if found is None:
        raise ValueError("a line needs at least one value of both sides")
    first_mean, second_mean = _means(pairs)
    return Line(
        column=column,
        tag=tag,
        first=first_mean,
        second=second_mean,
        difference=found.mean,
        low=found.low,
        high=found.high,
        p_value=_p_value(found),
        basis="seeds",
        seeds=len(found.values),
        note=note,
    )


def _means(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Means of both sides over the paired seeds."""
    return math.fsum(one for one, _ in pairs) / len(pairs), math.fsum(two for _, two in pairs) / len(pairs)


def _paired(first: Mapping[int, float], second: Mapping[int, float]) -> list[tuple[float, float]]:
    """Pairs of values of equal seeds. Without a common seed they pair up in order."""
    if common := [seed for seed in first if seed in second]:
        return [(first[seed], second[seed]) for seed in common]
    return list(zip(first.values(), second.values(), strict=False))


def _p_value(mean: Estimate) -> float | None:
    """How likely values whose mean is zero come out as far from it; None of a single value."""
    if mean.standard_deviation is None:
        return None
    error, freedom = mean.standard_deviation / math.sqrt(len(mean.values)), len(mean.values) - 1
    return two_sided_p(mean.mean / error, freedom) if error > 0 else float(mean.mean == 0)


def cost_lines(first: Configuration, second: Configuration) -> Iterator[Line]:
    """Ratios of costs, over paired seeds, or over repetitions where the stage cost measured both in turns.

    Where it measured one of the two, nothing pairs up, and a ratio comes without an interval.
    """
    for column in columns_of(Shown.RATIOS):
        one, two = first.estimate(column.name), second.estimate(column.name)
        if one is None or two is None or min(one.values) <= 0 or min(two.values) <= 0:
            continue
        alone = [configuration.was_measured_alone(column.name) for configuration in (first, second)]
        # A repetition of the stage cost is no pair of a seed's trial, which ran beside others.
        in_one_way = all(alone) or not any(alone)
        if column.varies_over_seeds and in_one_way and min(len(one.values), len(two.values)) > 1:
            values = [configuration.values(column.name) for configuration in (first, second)]
            logs = [{seed: math.log(value) for seed, value in of_side.items()} for of_side in values]
            line = _over_seeds(column, None, logs[0], logs[1])
            means = _means(_paired(values[0], values[1]))
            yield replace(
                line,
                first=means[0],
                second=means[1],
                difference=math.exp(line.difference),
                low=None if line.low is None else math.exp(line.low),
                high=None if line.high is None else math.exp(line.high),
                basis="repetitions" if all(alone) else "seeds",
            )
        else:
            yield Line(
                column=column,
                tag=None,
                first=one.mean,
                second=two.mean,
                difference=two.mean / one.mean,
                low=None,
                high=None,
                p_value=None,
                basis="alone",
                seeds=1,
                note="" if in_one_way else "one side was measured alone",
            )


def against_published(side: Side, rows: Sequence[Quoted], metric: str | None = None) -> list[Compared]:
    """A configuration against each published row of its method and task.

    Rows on the same base model come alone if there are any; the others tell by a remark that they are no reproduction.

    Args:
        side: Ours.
        rows: Of one publication.
        metric: The score that the verdict is about, of rows that print it; None is the first that a row prints.

    Raises:
        ValueError: None of the rows prints the score, or our records have no such score.
    """
    spec = side.configuration.results[0].spec
    fitting = [row for row in rows if fits(row, spec)]
    same_model = [row for row in fitting if other_base(row, spec) is None]
    whole = [row for row in same_model or fitting if row.tag == "all"]
    if metric is not None and whole and not any(metric in row.values for row in whole):
        printed = dict.fromkeys(name for row in whole for name in row.values)
        raise ValueError(
            f"--metric {metric}: {whole[0].key} prints no such score beside {side.name}; it prints {', '.join(printed)}"
        )
    return [
        one
        for row in whole
        if (one := _with_published(side, row, [part for part in fitting if _is_part(part, row)], metric)) is not None
    ]


def _with_published(side: Side, row: Quoted, parts: Sequence[Quoted], metric: str | None) -> Compared | None:
    system = load_system(side.root, side.name, side.configuration.results)
    columns = [column for column in _metric_first(side.configuration.results, metric) if column.name in row.values]
    if not columns or not system.completed or metric not in (None, columns[0].name):
        return None
    scores = [_quoted_line(system, column, row) for column in columns]
    tags = [_quoted_line(system, columns[0], part) for part in parts if columns[0].name in part.values]
    remarks = [row.note] if row.note else []
    if (other := other_base(row, side.spec)) is not None:
        remarks.insert(0, f"published on {row.model}, ours is on {other}: no reproduction")
    return Compared(
        first=f"{row.key}, {row.table}: {row.label} ({row.model})",
        second=side.name,
        scores=tuple(line for line in scores if line is not None),
        tags=tuple(line for line in tags if line is not None),
        costs=(),
        remarks=(*failed_seeds(side), *remarks),
    )


def _quoted_line(system: System, column: Column, row: Quoted) -> Line | None:
    tag = None if row.tag == "all" else row.tag
    ours, published = _of_seeds(system, column.name, tag), row.values[column.name]
    if not ours:
        return None
    if not system.varies_over_seeds:
        ours = dict(list(ours.items())[:1])
    spread = row.spread.get(column.name)
    note = "" if spread is None else f"published with ± {spread:g}, which the interval leaves out"
    return replace(_over_seeds(column, tag, dict.fromkeys(ours, published), ours, note), first=published)


def _is_part(part: Quoted, whole: Quoted) -> bool:
    """Whether a row is another tag of the same published system."""
    same = ("table", "model", "method", "config", "label", "parameters", "shots")
    return part.tag != "all" and all(getattr(part, name) == getattr(whole, name) for name in same)
