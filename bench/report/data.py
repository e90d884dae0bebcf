"""The report's numbers for programs: results.csv and results.parquet by trial, report.json by configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.report.budget import budget
from bench.report.column import Column
from bench.report.configurations import Comparison, Configuration
from bench.report.content import Content, signatures
from bench.report.efficiency import efficiencies, efficiency_document
from bench.report.others import other_document
from bench.report.planned import forecast_document, forecasts
from bench.report.rows import frame
from bench.report.searches import tuning_document
from bench.report.significance_table import significance_document
from bench.schema.finite import strict_json
from bench.schema.record import TrialResult
from bench.schema.trial import JsonDict
from bench.store.files import replacing

if TYPE_CHECKING:
    import pandas as pd

# Raise it when a key of report.json changes its meaning.
REPORT_VERSION = 1
# Characters that spreadsheets take for the beginning of a formula, or skip before one, with their wide forms.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def csv_text(results: Sequence[TrialResult], others: Sequence[TrialResult] = ()) -> str:
    """results.csv, see :func:`csv_of`."""
    return csv_of(frame(results, others))


def csv_of(rows: pd.DataFrame) -> str:
    """Rows as a CSV. A text that a spreadsheet would take for a formula gets an apostrophe in front.

    Carriage returns become line feeds: some readers would begin a row at one.
    """
    from pandas.api.types import is_string_dtype  # imported late, because pandas takes half a second

    table = rows.copy(deep=False)
    # Texts have the type str from pandas 3 on, and the type object before.
    for column in table.columns[[is_string_dtype(dtype) for dtype in table.dtypes]]:
        table[column] = table[column].map(_for_spreadsheets)
    table.columns = table.columns.map(_for_spreadsheets)
    return str(table.to_csv(index=False, lineterminator="\n"))


def _for_spreadsheets(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    guarded = f"'{value}" if value.startswith(FORMULA_STARTS) else value
    return guarded.replace("\r\n", "\n").replace("\r", "\n")


def write_parquet(rows: pd.DataFrame, path: Path) -> None:
    """Write results.parquet: the same rows with their types, unchanged."""
    with replacing(path) as file:
        rows.to_parquet(file, index=False)


def json_text(content: Content) -> str:
    """report.json: what the tables show, unrounded. Absent is null."""
    document: JsonDict = {
        "report_version": REPORT_VERSION,
        "sweep": content.sweep,
        "headlines": content.headlines,
        "trials": len(content.results),
        "failed": content.failed_finals,
        "failed_measuring_costs": len(content.failures) - content.failed_finals,
        "missing": content.missing,
        "comparisons": [
            {
                **_comparison(comparison),
                "significance": significance_document(found),
                "published": [] if quoted is None else quoted.document(),
            }
            for comparison, found, quoted in zip(
                content.comparisons, content.significances, content.published_rows, strict=True
            )
        ],
        "tuning": [tuning_document(tuning) for tuning in content.tunings],
        "failures": [
            {"trial_id": result.trial_id, **outcome.model_dump(include={"reason", "phase", "rank", "message"})}
            for result, outcome in content.failures
        ],
        "caveats": content.caveats,
        "left_out": content.left_out,
        "others": other_document(content.others),
        "provenance": dict(content.provenance),
        "sweep_file": None
        if content.kept is None
        else content.kept.model_dump(include={"source", "settings", "sweep"}),
        "command": content.command,
    }
    return strict_json(document, indent=1) + "\n"


def _comparison(comparison: Comparison) -> JsonDict:
    outcomes = [outcome for configuration in comparison.configurations for _, outcome in configuration.completed]
    return {
        "model": comparison.model,
        "task": comparison.task,
        "columns": [
            {"name": column.name, "title": column.title, "higher_is_better": column.higher_is_better}
            for column in comparison.columns
        ],
        "signatures": dict(signatures(outcomes)),
        "configurations": [
            _configuration(configuration, comparison.columns) for configuration in comparison.configurations
        ],
        "efficiency": efficiency_document(efficiencies(comparison)),
        "budget": budget(comparison).document(),
        "plan": forecast_document(forecasts(comparison)),
    }


def _configuration(configuration: Configuration, columns: Sequence[Column]) -> JsonDict:
    values: JsonDict = {}
    for column in columns:
        if (found := configuration.estimate(column.name)) is not None:
            interval = None if found.half_width is None else [found.low, found.high]
            values[column.name] = {
                "mean": found.mean,
                "standard_deviation": found.standard_deviation,
                "interval_95": interval,
                "interval_over": None if interval is None else found.basis,
                "values": found.values,
            }
    return {
        "name": configuration.name,
        "method": configuration.method,
        "trials": [result.trial_id for result in configuration.results],
        "completed": len(configuration.completed),
        "counted_seeds": sorted(result.spec.seed for result, _ in configuration.counted_results),
        "values": values,
        "by_tag": {result.trial_id: outcome.scores.by_tag for result, outcome in configuration.completed},
    }
