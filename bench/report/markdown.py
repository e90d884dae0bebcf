"""report.md: the tables for reading in a terminal, a pull request or a README."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.report.budget import TITLE as BUDGET
from bench.report.budget import budget
from bench.report.column import ABSENT, Column
from bench.report.columns import title
from bench.report.configurations import Comparison, Configuration
from bench.report.content import Content, legend, signatures
from bench.report.efficiency import NOTE as EFFICIENCY_NOTE
from bench.report.efficiency import TITLE as EFFICIENCY
from bench.report.efficiency import efficiency_table
from bench.report.layout import MOST_ROWS, cell_text, layout, letters_note, seeds_differ
from bench.report.markdown_text import code, escaped, fenced
from bench.report.others import NOTE as OTHERS_NOTE
from bench.report.others import TITLE as OTHERS
from bench.report.others import other_rows
from bench.report.planned import HEADING as FORECAST
from bench.report.planned import NOTE as FORECAST_NOTE
from bench.report.planned import TITLE as FORECAST_TITLE
from bench.report.planned import forecast_rows, forecasts
from bench.report.published_rows import TITLE, PublishedRows
from bench.report.searches import HEADING, audit_lines, budget_rows, curve_lines, expected_rows, metric_title
from bench.report.significance_table import PAIR_HEADING, letters_of, pair_note, pair_rows
from bench.schema.printable import printable
from bench.schema.record import Completed, Failed
from bench.tuning.summary import Tuning

if TYPE_CHECKING:
    from bench.statistics.significance import Significance

# Scores are shown by these tags; report.json has all.
SHOWN_TAGS = ("seen", "unseen")
# So many lines of a failed trial's log are shown; the page and the record have more.
SHOWN_LOG_LINES = 6


def markdown(content: Content) -> str:
    """The whole report in Markdown."""
    parts = [f"# {escaped(content.sweep)}"]
    parts += [f"**{escaped(line)}**" for line in content.headlines]
    if len(content.comparisons) == 1:
        parts += map(escaped, content.answers[0])
    if content.caveats:
        parts.append(f"[{_things(len(content.caveats))} to mind](#caveats) before trusting this.")
    parts.append(escaped(content.summary))
    for comparison, found, quoted, answer in zip(
        content.comparisons, content.significances, content.published_rows, content.answers, strict=True
    ):
        if len(content.comparisons) > 1:
            parts.append(f"## {escaped(comparison.model)} on {escaped(comparison.task)}")
            parts += map(escaped, answer)
        if comparison.scored:
            parts += [*_main_table(comparison, found), _legend(comparison)]
            parts += [_further_table(comparison), _tags_table(comparison)]
            parts.append(escaped(found) if isinstance(found, str) else _differences(comparison, found))
            parts += [_published(quoted), _efficiency(comparison), _budget(comparison), _forecast(comparison)]
    parts += [_tuning(content.tunings), _failures(content), _caveats(content), _provenance(content)]
    if content.command:
        parts.append(f"## Again\n\n{fenced(content.command)}")
    parts += [_sweep(content), _others(content)]
    return printable("\n\n".join(part for part in parts if part)) + "\n"


def table(heading: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right. Texts stand as they are."""
    return _rows([[escaped(text) for text in cells] for cells in (heading, *body)])


def _rows(lines: Sequence[Sequence[str]]) -> str:
    """A table of texts that are Markdown already, the heading first."""
    heading, *body = lines
    alignment = ["---", *["---:"] * (len(heading) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, alignment, *body))


def _main_table(comparison: Comparison, found: Significance | str | None) -> list[str]:
    """The main table, with lines that say which columns it leaves out and what its letters mean."""
    chosen = layout(comparison)
    letters = letters_of(found)
    explained = [letters_note(found, comparison.metrics[0])] if letters and found and not isinstance(found, str) else []
    grouped = len(set(letters.values())) > 1
    seeds = seeds_differ(comparison)
    heading = ["method", *(["group"] if grouped else []), *(["seeds"] if seeds else [])]
    body = [
        [
            escaped(configuration.name),
            *([letters.get(configuration.name, "")] if grouped else []),
            *([configuration.seeds] if seeds else []),
            *(_cell(comparison, configuration, column) for column in chosen.shown),
        ]
        for configuration in comparison.scored[:MOST_ROWS]
    ]
    more = len(comparison.scored) - MOST_ROWS
    rest = [f"{more} more configurations are in report.json."] if more > 0 else []
    made = _rows([[*heading, *(escaped(column.title) for column in chosen.shown)], *body])
    return [made, *(escaped(line) for line in (*rest, *explained, chosen.folded))]


def _further_table(comparison: Comparison) -> str:
    columns = layout(comparison).further
    if not columns:
        return ""
    body = [
        [escaped(configuration.name), *(_cell(comparison, configuration, column) for column in columns)]
        for configuration in comparison.scored[:MOST_ROWS]
    ]
    return "### Further columns\n\n" + _rows([["method", *(escaped(column.title) for column in columns)], *body])


def _things(count: int) -> str:
    return "1 thing" if count == 1 else f"{count} things"


def _differences(comparison: Comparison, found: Significance | None) -> str:
    if found is None:
        return ""
    metric = comparison.metrics[0]
    groups = [f"- {escaped(', '.join(group))}" for group in found.groups] if found.conclusive else []
    parts = [
        "### Which differences hold",
        *map(escaped, found.remarks),
        *(["Configurations of one line cannot be told apart:\n\n" + "\n".join(groups)] if groups else []),
        table(PAIR_HEADING, pair_rows(found, metric)),
        escaped(pair_note(found, metric)),
    ]
    return "\n\n".join(parts)


def _published(quoted: PublishedRows | None) -> str:
    if quoted is None:
        return ""
    return "\n\n".join([f"### {TITLE}", table(quoted.heading(), quoted.rows()), escaped(quoted.note)])


def _cell(comparison: Comparison, configuration: Configuration, column: Column) -> str:
    shown = cell_text(configuration, column)
    return f"**{shown}**" if comparison.is_best(configuration, column) else shown


def _legend(comparison: Comparison) -> str:
    outcomes = [outcome for configuration in comparison.configurations for _, outcome in configuration.completed]
    used = "; ".join(f"{escaped(title(name))}: {code(text)}" for name, text in signatures(outcomes))
    return f"{escaped(legend(comparison))} Signatures: {used}."


def _tags_table(comparison: Comparison) -> str:
    outcomes: list[Completed] = [
        outcome for configuration in comparison.configurations for _, outcome in configuration.completed
    ]
    sources = {tag: count for outcome in outcomes for tag, count in outcome.scores.sources_by_tag.items()}
    shown = [tag for tag in SHOWN_TAGS if tag in sources]
    if not shown or not comparison.metrics:
        return ""
    first = comparison.metrics[0]
    body = []
    for configuration in comparison.scored[:MOST_ROWS]:
        of_tags = [
            [o.scores.by_tag.get(tag, {}).get(first.name) for _, o in configuration.counted_results] for tag in shown
        ]
        body.append([configuration.name, *(_mean_text(first, values) for values in of_tags)])
    return table([first.title, *(f"{tag} ({sources[tag]})" for tag in shown)], body)


def _mean_text(column: Column, values: Sequence[float | None]) -> str:
    found = [value for value in values if value is not None and math.isfinite(value)]
    return column.text(sum(found) / len(found)) if found else ABSENT


def _tuning(tunings: Sequence[Tuning]) -> str:
    """The searches, in groups of equal budgets: a sweep whose budget was changed has several groups."""
    given: dict[str, list[Tuning]] = {}
    for tuning in tunings:
        given.setdefault(tuning.search.tune.model_dump_json(), []).append(tuning)
    return "\n\n".join(["## How settings were chosen", *map(_tuned_alike, given.values())]) if given else ""


def _tuned_alike(tunings: Sequence[Tuning]) -> str:
    tune, chosen_by = tunings[0].search.tune, metric_title(tunings[0])
    budget = f"{tune.trials} trials" if tune.trials is not None else f"{tune.device_seconds:g} device-seconds"
    parts = [
        f"By {chosen_by}, with a budget of {budget} for each method (sampler {tune.sampler}, seed {tune.seed}). No "
        "trial of this stage read the test split.",
        table([*HEADING[:-1], chosen_by], budget_rows(tunings)),
    ]
    if curves := curve_lines(tunings):
        parts.append("Learning rates tried:\n\n" + "\n".join(f"- {escaped(line)}" for line in curves))
    heading, expected = expected_rows(tunings)
    if expected:
        parts += [
            f"Expected {chosen_by} of the best of so many trials (Tang et al. 2020), to compare methods at any budget:",
            table(heading, expected),
        ]
    if audits := audit_lines(tunings):
        parts.append("\n".join(f"- {escaped(line)}" for line in audits))
    return "\n\n".join(parts)


def _efficiency(comparison: Comparison) -> str:
    found = efficiency_table(comparison)
    return "\n\n".join([f"### {EFFICIENCY}", table(*found), EFFICIENCY_NOTE]) if found else ""


def _budget(comparison: Comparison) -> str:
    found = budget(comparison)
    shown = table(found.heading, found.rows) if found.rows else ""
    return "\n\n".join(part for part in (f"### {BUDGET}", escaped(found.sentence), shown) if part)


def _sweep(content: Content) -> str:
    if content.kept is None or content.kept.source is None:
        return ""
    changed = f"With {', '.join(map(code, content.kept.settings))}:\n\n" if content.kept.settings else ""
    return f"## The sweep file\n\n{changed}{fenced(content.kept.source.rstrip())}"


def _others(content: Content) -> str:
    if not content.others:
        return ""
    return "\n\n".join([f"## {OTHERS}", OTHERS_NOTE, table(*other_rows(content.records, content.others))])


def _forecast(comparison: Comparison) -> str:
    found = forecasts(comparison)
    if not found:
        return ""
    return "\n\n".join([f"### {FORECAST_TITLE}", table(FORECAST, forecast_rows(found)), FORECAST_NOTE])


def _failures(content: Content) -> str:
    lines = [
        f"- {code(result.trial_id)}: **{outcome.reason}**"
        + (f" in {outcome.phase}" if outcome.phase else "")
        + (f" on rank {outcome.rank}" if outcome.rank is not None else "")
        + f": {escaped(outcome.message[:500])}"
        + _log_tail(outcome)
        for result, outcome in content.failures
    ]
    return "\n".join(["## Failed trials", "", *lines]) if lines else ""


def _log_tail(outcome: Failed) -> str:
    """The last lines of the log as an indented block, which belongs to the item of the list."""
    lines = printable(outcome.log_tail or "").rstrip().split("\n")[-SHOWN_LOG_LINES:]
    return "\n\n" + "\n".join(f"      {line[:200]}" for line in lines) + "\n" if any(lines) else ""


def _caveats(content: Content) -> str:
    return "\n".join(["## Caveats", "", *(f"- {escaped(line)}" for line in content.caveats)]) if content.caveats else ""


def _provenance(content: Content) -> str:
    lines = [f"- {heading}: {escaped(text)}" for heading, text in content.provenance]
    return "\n".join(["## Made with", "", *lines]) if lines else ""
