"""The content of a report, which is computed once from the records and then rendered in each format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bench.report.answer import answer
from bench.report.caveats import caveats, not_finite_caveats
from bench.report.columns import title
from bench.report.configurations import Comparison, comparisons, failed, of_too_few_seeds, with_tests
from bench.report.headline import headline
from bench.report.others import left_out_text
from bench.report.published import Quoted
from bench.report.published_rows import PublishedRows, published_rows
from bench.report.searches import tuning_caveats
from bench.report.significance_table import tested_significance
from bench.schema.record import NOT_ASKED_FOR, Completed, Failed, Probed, TrialResult
from bench.schema.same_answer import cost_class
from bench.statistics.estimates import FEWEST_SEEDS
from bench.store.kept_sweep import KeptSweep
from bench.tuning.summary import Tuning

if TYPE_CHECKING:
    from bench.statistics.significance import Significance


@dataclass(frozen=True)
class Content:
    """Everything that the formats share."""

    sweep: str
    records: tuple[TrialResult, ...]  # of all stages
    command: str | None = None  # the command that runs the sweep again
    tunings: tuple[Tuning, ...] = ()  # the searches of the stage tune, where the sweep has it
    root: Path | None = None  # the results folder, with the predictions that tests compare
    quoted: tuple[Quoted, ...] = ()  # published numbers
    missing: int = 0  # trials that are asked for and have no record yet
    kept: KeptSweep | None = None  # the sweep that was run last; None in a folder from before 2026-11-29
    others: tuple[TrialResult, ...] = ()  # records that the sweep does not ask for, where they are listed
    left_out: int = 0  # the number of such records, where they are not listed

    @cached_property
    def results(self) -> tuple[TrialResult, ...]:
        """The final trials, which alone have test scores and are the rows of all tables."""
        return tuple(record for record in self.records if record.spec.stage == "final")

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The comparisons with the intervals over seeds and sources and the leaders that the tests give."""
        return tuple(with_tests(*pair) for pair in zip(self._untested, self.significances, strict=True))

    @cached_property
    def _untested(self) -> tuple[Comparison, ...]:
        return comparisons(self.results, self.costs)

    @cached_property
    def costs(self) -> dict[str, list[TrialResult]]:
        """Class of configurations to the trials that measured its time and memory alone, by repetition."""
        found: dict[str, list[TrialResult]] = {}
        for record in sorted(self.records, key=lambda record: record.spec.repetition):
            if record.spec.stage == "cost" and isinstance(record.outcome, Probed):
                trains = record.outcome.train is not None
                found.setdefault(cost_class(record.spec, trains), []).append(record)
        return found

    @cached_property
    def significances(self) -> tuple[Significance | str | None, ...]:
        """For each comparison, the differences that hold, or a sentence that says why they are not known."""
        return tuple(
            None if self.root is None else tested_significance(self.root, comparison) for comparison in self._untested
        )

    @cached_property
    def headlines(self) -> list[str]:
        """A sentence for each comparison that says who leads."""
        lines = [headline(*pair) for pair in zip(self.comparisons, self.significances, strict=True)]
        several = len(lines) > 1
        return [
            f"{comparison.model} on {comparison.task}: {line}" if several else line
            for comparison, line in zip(self.comparisons, lines, strict=True)
            if line is not None
        ]

    @cached_property
    def answers(self) -> tuple[list[str], ...]:
        """For each comparison, sentences that say by how much the best configurations lead, and at what cost."""
        return tuple(answer(*pair) for pair in zip(self.comparisons, self.significances, strict=True))

    @property
    def answer_sentences(self) -> tuple[str, ...]:
        """The answers in full where there is one, else in a sentence for each comparison."""
        return (*self.headlines, *(self.answers[0] if len(self.answers) == 1 else ()))

    @cached_property
    def published_rows(self) -> tuple[PublishedRows | None, ...]:
        """For each comparison, the published numbers that belong beside it."""
        return tuple(published_rows(comparison, self.quoted) for comparison in self.comparisons)

    @cached_property
    def failures(self) -> list[tuple[TrialResult, Failed]]:
        """Failed trials. Those of searches are left out, because a search counts failures itself."""
        return failed(record for record in self.records if record.spec.stage != "tune")

    @property
    def failed_finals(self) -> int:
        """How many final trials failed, which are the ones that tables have."""
        return len(failed(self.results))

    @cached_property
    def caveats(self) -> list[str]:
        unfinished = (
            [f"The sweep is not finished: {self.missing} of the trials known so far have no record yet."]
            if self.missing
            else []
        )
        absent = not_finite_caveats(self.records)
        return [*unfinished, *absent, *caveats(self.results, self.costs), *tuning_caveats(self.tunings)]

    @property
    def summary(self) -> str:
        """How many trials there are of each stage, and how many failed."""
        tasks = sorted({result.spec.task.name for result in self.records})
        models = sorted({result.spec.model.path for result in self.records})
        others = len(self.records) - len(self.results)
        unmeasured = len(self.failures) - self.failed_finals
        which_failed = f"; {unmeasured} of those that measured costs failed" if unmeasured else ""
        more = f" {others} more chose settings or measured costs{which_failed}." if others else ""
        counts = f"{len(self.results)} trials, {self.failed_finals} failed.{more}"
        left_out = f" {left_out_text(self.left_out, self.root)}" if self.left_out and self.root is not None else ""
        return f"{counts} Model: {', '.join(models)}. Task: {', '.join(tasks)}.{left_out}"

    @cached_property
    def provenance(self) -> list[tuple[str, str]]:
        """What made the records, as pairs of a heading and a text. Of several, all: a mixture is a caveat."""
        made = [result.provenance for result in self.results if result.provenance is not None]
        if not made:
            return []
        versions = {
            ", ".join(f"{name} {text}" for name, text in sorted(one.package_versions.items())): None for one in made
        }
        revisions = {f"{one.git_revision[:12]}{' (changed)' * bool(one.git_dirty)}" for one in made if one.git_revision}
        threads = {f", {one.threads_per_rank} threads per rank" if one.threads_per_rank else "" for one in made}
        pairs = [
            ("Tuneoff", _alternatives(one.tuneoff_version for one in made)),
            ("Sources", _alternatives(one.code_sha256[:12] for one in made)),
            ("Revision", _alternatives(revisions)),
            ("Python", _alternatives(one.python_version for one in made)),
            ("Packages", " or ".join(versions)),
            ("Device", _alternatives(" and ".join(result.devices) for result in self.results if result.devices)),
            ("Cores", f"{_alternatives(str(one.cpu_cores) for one in made)}{_alternatives(threads)}"),
            ("Model commit", _alternatives((r.spec.model.commit or "")[:12] for r in self.results)),
            ("Test data", _alternatives((r.spec.task.data_sha256 or "")[:12] for r in self.results)),
            ("Data files", ", ".join(_data_files(self.results))),
            ("Run", _span(self.results)),
        ]
        return [(heading, text) for heading, text in pairs if text]


def _data_files(results: Iterable[TrialResult]) -> list[str]:
    """Files of the data and the beginnings of their hashes; none in records from before 2026-11-25."""
    found = {
        f"{name} {sha256[:12]}"
        for result in results
        if isinstance(result.outcome, Completed)
        for name, sha256 in (result.outcome.data.get("files") or {}).items()
    }
    return sorted(found)


def legend(comparison: Comparison) -> str:
    """What the numbers of a table mean, for the note below it."""
    outcomes = [outcome for configuration in comparison.configurations for _, outcome in configuration.completed]
    alone = sorted({len(configuration.costs) for configuration in comparison.configurations if configuration.costs})
    absent = {name: why for one in outcomes for name, why in one.scores.absent.items() if why != NOT_ASKED_FOR}
    lacking = f" Not to be had: {', '.join(f'{title(n)} ({why})' for n, why in absent.items())}." if absent else ""
    measured = (
        f" Memory and tok/s were measured in trials that ran alone (stage cost; repetitions: "
        f"{' or '.join(map(str, alone))}); there ± is over repetitions, and what lies within the spread of another is "
        "not in bold."
        if alone
        else ""
    )
    several = "; ± is the standard deviation (n-1) over seeds" if comparison.several_seeds else ""
    of_tested = " of those that were tested" if comparison.tested < len(comparison.scored) else ""
    leading = (
        f", in {comparison.metrics[0].title} all that cannot be told apart from the best{of_tested}"
        if len(comparison.leaders) > 1 or (comparison.leaders and of_tested)
        else ""
    )
    counted = next(
        (
            configuration.counted_seeds
            for configuration in comparison.configurations
            if configuration.counted_seeds is not None
        ),
        None,
    )
    which = f"all configurations{f' of {FEWEST_SEEDS} and more' if of_too_few_seeds(comparison.scored) else ''}"
    common = (
        f" Means are over the seeds that {which} completed ({', '.join(map(str, sorted(counted)))})."
        if counted is not None
        else ""
    )
    return (
        f"Best value of each column in bold{leading}{several}.{common} Scores are over the test sources "
        f"({_alternatives(str(outcome.decode.sources) for outcome in outcomes)}). Peak memory is that of the training "
        f"phase on the worst rank ({_alternatives(outcome.ranks[0].memory_method for outcome in outcomes)}); train "
        f"tok/s are useful (non-padding) tokens in the steady window; total s includes start-up.{measured}{lacking}"
    )


def signatures(outcomes: Sequence[Completed]) -> list[tuple[str, str]]:
    """Metric and how it was computed; all of them, where trials differ."""
    found: dict[str, dict[str, None]] = {}
    for outcome in outcomes:
        for name, text in outcome.scores.signatures.items():
            found.setdefault(name, {})[text] = None
    return [(name, text) for name, texts in found.items() for text in texts]


def _alternatives(texts: Iterable[str]) -> str:
    return " or ".join(sorted(set(texts)))


def _span(results: Sequence[TrialResult]) -> str:
    """From the start of the first trial to the end of the last one."""
    starts = {result.trial_id: datetime.fromisoformat(result.started_at) for result in results}
    ends = [starts[result.trial_id] + timedelta(seconds=result.total_seconds) for result in results]
    return " to ".join(time.isoformat(timespec="seconds") for time in (min(starts.values()), max(ends)))
