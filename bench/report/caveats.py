"""Caveats: what makes rows incomparable or scores doubtful. Each check gives a sentence for each finding."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence, Set

from bench.report.columns import metric_columns
from bench.report.configurations import Configuration, Costs, by_table, configurations, costs_left_out
from bench.report.one_kind import kind_name
from bench.report.row_labels import TableModels
from bench.report.rows import not_finite
from bench.schema.record import Completed, Probed, Provenance, Ran, TrialResult
from bench.statistics.outliers import outlying_seeds
from bench.tasks.splits import ODDITY_SENTENCES, TRUNCATIONS, oddity_sentences, omission_lines

MOST_NOT_FINITE = 6

Finished = Sequence[tuple[TrialResult, Completed]]


def caveats(results: Sequence[TrialResult], costs: Costs | None = None) -> list[str]:
    """One sentence for each thing that a reader has to know before trusting a comparison.

    Args:
        results: Final trials.
        costs: Class of configurations to the trials that measured its cost alone.
    """
    done = [(result, result.outcome) for result in results if isinstance(result.outcome, Completed)]
    if not done:
        return []
    groups = configurations(results, costs)
    checks = (_mixed, _devices, _unsaid, _machine, _alone, _rare_work, _seeds, _outliers, _data, _scores, _training)
    return [text for check in checks for text in check(done, groups)]


def not_finite_caveats(records: Iterable[TrialResult]) -> list[str]:
    """A sentence that names the values that are NaN or infinite, which no table has; none without such values."""
    found: dict[str, list[str]] = {}
    for record in records:
        if names := not_finite(record):
            found.setdefault(", ".join(names), []).append(record.trial_id)
    parts = [f"{values} of {_names(trials)}" for values, trials in found.items()]
    return [f"Absent, not finite: {'; '.join(parts[:MOST_NOT_FINITE])}."] if parts else []


def _mixed(done: Finished, groups: Sequence[Configuration]) -> Iterator[str]:
    made = [result.provenance for result, _ in done if result.provenance is not None]
    found = [what for what, values in _of_machines(made) if len(values) > 1]
    found += [what for rows in _tables(groups) for what, values in _of_rows(rows) if len(values) > 1]
    yield from (f"Rows were made with different {what}." for what in dict.fromkeys(found))
    if any(provenance.git_dirty for provenance in made):
        yield "Some rows were made with sources that were not committed."


def _tables(groups: Sequence[Configuration]) -> list[list[Configuration]]:
    """The rows of each table. Rows of another model or task are compared with nothing here."""
    return [[groups[place] for place in places] for places in by_table(groups).values()]


def _where(rows: Sequence[Configuration], groups: Sequence[Configuration]) -> str:
    """The beginning of a sentence about one of several tables."""
    if len(rows) == len(groups):
        return ""
    models = TableModels(result for configuration in groups for result in configuration.results)
    return f"{' on '.join(models.table(rows[0].results[0].spec))}: "


def _of_rows(rows: Sequence[Configuration]) -> list[tuple[str, Set[Hashable]]]:
    """Facts that make the scores of one table incomparable if they differ, with their values."""
    done = [pair for configuration in rows for pair in configuration.completed]
    return [
        ("commits of the base model", {result.spec.model.commit for result, _ in done}),
        ("test data", {result.spec.task.data_sha256 for result, _ in done}),
        ("numbers of test sources", {outcome.decode.sources for _, outcome in done}),
        ("decoding settings", {result.spec.decode.model_dump_json() for result, _ in done}),
        ("metric settings", {json.dumps(outcome.scores.signatures, sort_keys=True) for _, outcome in done}),
        ("precisions", {result.spec.resources.precision for result, _ in done}),
        ("ways of measuring memory", {outcome.ranks[0].memory_method for _, outcome in done}),
    ]


def _devices(done: Finished, groups: Sequence[Configuration]) -> Iterator[str]:
    """Costs that are left out because of their kind of device, and trials whose ranks had several kinds."""
    yield from dict.fromkeys(sentence for rows in _tables(groups) for sentence in costs_left_out(rows))
    spread = [result.devices for result, _ in done if len(result.devices) > 1]
    if spread:
        kinds = "; ".join(sorted({kind_name(devices) for devices in spread}))
        yield f"The ranks of {_trials(len(spread))} had devices of different kinds ({kinds}): all wait for the slowest."


def _unsaid(_: Finished, groups: Sequence[Configuration]) -> Iterator[str]:
    """Settings in which rows of a method differ and which their labels do not name."""
    for rows in _tables(groups):
        keys_of_methods = {
            configuration.method: configuration.unsaid
            for configuration in rows
            if configuration.completed and configuration.unsaid
        }
        yield from (
            f"{_where(rows, groups)}Rows of {method} differ in more than they are called by: {_names(keys)}."
            for method, keys in keys_of_methods.items()
        )


def _of_machines(made: Sequence[Provenance]) -> list[tuple[str, Set[Hashable]]]:
    """Facts of provenance that make times and memory incomparable if they differ, with their values."""
    return [
        ("sources of Tuneoff", {provenance.code_sha256 for provenance in made}),
        ("package versions", {json.dumps(provenance.package_versions, sort_keys=True) for provenance in made}),
        ("numbers of threads", {provenance.threads_per_rank for provenance in made}),
    ]


def _alone(done: Finished, groups: Sequence[Configuration]) -> Iterator[str]:
    """Caveats of the measurements of the stage cost, whose trials are no rows themselves."""
    trials = list({result.trial_id: result for configuration in groups for result in configuration.costs}.values())
    if not trials:
        return
    made = [result.provenance for result in trials if result.provenance is not None]
    of_rows = [result.provenance for result, _ in done if result.provenance is not None]
    if (alone_on := {r.devices for r in trials}) - {r.devices for r, _ in done} and len(alone_on) == 1:
        yield "Trials of the stage cost were made with other devices than the rows whose costs they show."
    for (what, values), (_, of_others) in zip(_of_machines(made), _of_machines(of_rows), strict=True):
        if len(values) > 1:
            yield f"Trials of the stage cost were made with different {what}: do not compare their costs."
        elif of_others and values - of_others:
            yield f"Trials of the stage cost were made with other {what} than the rows whose costs they show."
    ways = {result.outcome.ranks[0].memory_method for result in trials if isinstance(result.outcome, Probed)}
    if len(ways) > 1:
        yield "Trials of the stage cost were made with different ways of measuring memory."
    if any(provenance.git_dirty for provenance in made):
        yield "Some trials of the stage cost were made with sources that were not committed."
    if busy := sum(map(_is_busy, made)):
        yield (
            f"{_trials(busy)} of the stage cost started on a busy machine (load average above its number of cores): do "
            "not compare their times."
        )
    if beside := sum(bool(result.placement and result.placement.co_tenants) for result in trials):
        yield f"{_trials(beside)} of the stage cost ran beside other trials on one machine: do not compare their costs."
    for rows in _tables(groups):
        where = _where(rows, groups)
        if once := [configuration.name for configuration in rows if len(configuration.costs) == 1]:
            yield (
                f"{where}The cost of {_names(once)} was measured once: how far it varies is not known, and none is "
                "best."
            )
        with_costs = any(configuration.costs for configuration in rows)
        if with_costs and (shared := [one.name for one in rows if one.with_costs and not one.costs]):
            yield (
                f"{where}{_names(shared)} {'has' if len(shared) == 1 else 'have'} no trial of the stage cost: memory "
                "and rates there are those of final trials, and cannot be told apart from those that were measured "
                "alone."
            )


def _rare_work(_: Finished, groups: Sequence[Configuration]) -> Iterator[str]:
    """Rows whose steps were measured for less than a round of work that their optimiser does once in many steps."""
    for rows in _tables(groups):
        short: dict[int, list[str]] = {}
        for row in rows:
            measured = [result.outcome for result in row.costs] or [outcome for _, outcome in row.completed]
            costs = [outcome.train for outcome in measured if isinstance(outcome, Ran) and outcome.train is not None]
            for period in {cost.optimizer_period for cost in costs if cost.steady_steps < cost.optimizer_period}:
                short.setdefault(period, []).append(row.name)
        for period, names in sorted(short.items()):
            yield (
                f"{_where(rows, groups)}Once in {period:,} steps the optimiser of {_names(names)} does work that its "
                "other steps lack, and fewer were measured: the time of a step is not that of a long training."
            )


def _machine(done: Finished, groups: Sequence[Configuration]) -> Iterator[str]:
    made = [result.provenance for result, _ in done if result.provenance is not None]
    busy = [provenance for provenance in made if _is_busy(provenance)]
    if busy:
        yield (
            f"{_trials(len(busy))} started on a busy machine (load average above its number of cores): do not compare "
            "their times."
        )
    beside = sum(bool(result.placement and result.placement.co_tenants) for result, _ in done)
    if beside:
        alone = all(configuration.costs for configuration in groups if configuration.completed)
        spared = ", but for memory and rates, which trials of the stage cost measured alone" if alone else ""
        yield f"{_trials(beside)} ran beside other trials on one machine: do not compare their costs{spared}."
    if fused := sum(result.fused is not None for result, _ in done):
        yield (
            f"{_trials(fused)} trained in one pass with others (resources.fuse): time and memory are those of all of "
            "them together, and are left out here."
        )
    if continued := sum(result.continued for result, _ in done):
        yield (
            f"{_trials(continued)} continued from a checkpoint after the loss of an attempt: what the whole training "
            "cost is not known, and is left out here."
        )
    if any(outcome.ranks[0].memory_method == "ru_maxrss_since_start" for _, outcome in done):
        yield "Peak memory is that of the whole process, not of the phase: this system cannot reset it."


def _is_busy(provenance: Provenance) -> bool:
    load = provenance.load_average_1min
    return load is not None and load > provenance.cpu_cores


def _seeds(done: Finished, groups: Sequence[Configuration]) -> Iterator[str]:
    for rows in _tables(groups):
        where = _where(rows, groups)
        if max(len(configuration.completed) for configuration in rows) == 1:
            yield f"{where}One seed: differences between methods may be chance."
        # What no seed changes has one answer, so that one seed is enough.
        counts = Counter(len(configuration.completed) for configuration in rows if configuration.varies_over_seeds)
        if len(counts) > 1:
            listed = ", ".join(
                f"{configurations} with {seeds}" for seeds, configurations in sorted(counts.items(), reverse=True)
            )
            yield (
                f"{where}Configurations have different numbers of completed seeds ({listed}): the best of many single "
                "seeds is partly luck."
            )
        if missing := [configuration.name for configuration in rows if not configuration.completed]:
            yield f"{where}No trial completed for {_names(missing)}."


def _outliers(_: Finished, groups: Sequence[Configuration]) -> Iterator[str]:
    """Seeds that are far from the others, with all single seeds of their configuration."""
    for members in _tables(groups):
        for metric in metric_columns(result for configuration in members for result in configuration.results)[:1]:
            scores = {
                configuration.name: configuration.values(metric.name)
                for configuration in members
                if configuration.varies_over_seeds
            }
            for name, seeds in outlying_seeds(scores).items():
                listed = ", ".join(
                    f"{metric.text(score)} (seed {seed})" for seed, score in sorted(scores[name].items())
                )
                yield (
                    f"{_where(members, groups)}{name}: {metric.title} of {_seeds_text(seeds)} is far from that of its "
                    f"other seeds: {listed}. If trainings go wrong now and then, no test of means is honest: look at "
                    "the single seeds."
                )


def _seeds_text(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"


def _data(done: Finished, _: Sequence[Configuration]) -> Iterator[str]:
    for key, (what, _setting) in TRUNCATIONS.items():
        if cut := max(int(outcome.data.get(key) or 0) for _, outcome in done):
            yield f"{cut} {what} were longer than the limit and were cut."
    if turns := max(int(outcome.data.get("left_out_turns") or 0) for _, outcome in done):
        yield f"{turns} turns were left out of the midst of conversations that were longer than the limit."
    if lost := max(int(outcome.data.get("references_lost") or 0) for _, outcome in done):
        tried = max(int(outcome.data.get("references_tried") or 0) for _, outcome in done)
        yield (
            f"{lost} of {tried} references that were tried do not come back from the base model's tokens: no text of "
            "it can reach the highest scores."
        )
    doubts = [name for name in ODDITY_SENTENCES if name != "repeated_dev_sources"]
    found = {name: max(int(outcome.data.get(name) or 0) for _, outcome in done) for name in doubts}
    yield from (f"{oddity}." for oddity in oddity_sentences(found))
    left_out: dict[str, dict[str, int]] = {}
    for _trial, outcome in done:
        left_out.update(outcome.data.get("left_out") or {})
    if omissions := omission_lines(left_out):
        yield f"Left out of the data: {'; '.join(omissions)}."


def _scores(done: Finished, groups: Sequence[Configuration]) -> Iterator[str]:
    """Remarks of the records on their own scores, with the rows that have them."""
    for rows in _tables(groups):
        called = {result.trial_id: configuration.name for configuration in rows for result in configuration.results}
        names: dict[str, list[str]] = {}
        for result, outcome in done:
            for remark in outcome.scores.remarks if result.trial_id in called else ():
                names.setdefault(remark, []).append(called[result.trial_id])
        completed = sum(bool(configuration.completed) for configuration in rows)
        for remark, having in names.items():
            of_all = len(set(having)) == completed
            yield f"{_where(rows, groups)}{remark if of_all else f'{_names(_unique(having))}: {remark}'}"


def _training(done: Finished, groups: Sequence[Configuration]) -> Iterator[str]:
    for rows in _tables(groups):
        lengths: dict[int, set[str]] = {}
        for result, outcome in (pair for configuration in rows for pair in configuration.completed):
            if outcome.train is not None:
                seen = outcome.train.steps * result.spec.train.batch_size
                lengths.setdefault(seen, set()).add(result.spec.method.name)
        if len(lengths) > 1:
            pairs_text = "; ".join(f"{pairs:,}: {_names(sorted(names))}" for pairs, names in sorted(lengths.items()))
            yield f"{_where(rows, groups)}Trials saw different numbers of training pairs ({pairs_text})."
    if skipped := sum(outcome.train is not None and outcome.train.skipped_steps > 0 for _, outcome in done):
        yield f"The engine skipped optimiser steps in {_trials(skipped)}."
    for rows in _tables(groups):
        of_rows = [(row.name, outcome) for row in rows for _, outcome in row.completed if outcome.train is not None]
        still_falling = [
            name
            for name, outcome in of_rows
            if len(outcome.dev_curve) > 1
            and outcome.train is not None
            # Not best_step, because some methods keep no state from before they have cut ranks.
            and min(outcome.dev_curve, key=lambda point: point.loss).step == outcome.train.steps
        ]
        if still_falling:
            yield (
                f"{_where(rows, groups)}In {len(still_falling)} of {_trials(len(of_rows))} the dev loss was lowest at "
                f"the last step: {_names(_unique(still_falling))} might gain from more steps."
            )


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _names(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _trials(count: int) -> str:
    return "1 trial" if count == 1 else f"{count} trials"
