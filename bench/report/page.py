"""report.html: one page without other files, so that it needs neither a network nor a folder beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report.column import Column, Shown
from bench.report.columns import columns_of, present
from bench.report.content import Content
from bench.report.figures import Picture
from bench.report.page_tables import others_tables, shown_comparison, tuning_tables
from bench.report.row_labels import row_labels
from bench.report.rows import column_values
from bench.report.side_by_side import SideBySide
from bench.schema.finite import strict_json
from bench.schema.printable import escaped_controls, printable
from bench.schema.trial import JsonDict

FILES = Path(__file__).parent / "page_files"
MOST_FAILURES = 50
# So many failures are visible at once; a reader opens the list of the others.
MOST_OPEN = 5
# So many answers stand at the head of the page, one for each model and task; the others stand with their tables.
MOST_VERDICTS = 4


def html(content: Content, pictures: Sequence[Sequence[Picture]], predictions: SideBySide | None) -> str:
    """The page.

    Args:
        content: What the report says.
        pictures: Of each comparison.
        predictions: Side by side, where they are kept.
    """
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(FILES), autoescape=True, trim_blocks=False)
    comparisons = [
        {**shown_comparison(comparison, drawn, found, quoted), "answers": answers}
        for comparison, drawn, found, quoted, answers in zip(
            content.comparisons, pictures, content.significances, content.published_rows, content.answers, strict=True
        )
    ]
    rendered = environment.get_template("page.html.jinja").render(
        title=content.sweep,
        summary=content.summary,
        verdicts=_verdicts(content),
        sections=_sections(content, comparisons, predictions),
        caveats=content.caveats,
        comparisons=comparisons,
        tuning=tuning_tables(content.tunings),
        predictions=predictions,
        predictions_note=_predictions_note(predictions) if predictions else "",
        failures=[_failure(result, outcome) for result, outcome in content.failures[:MOST_FAILURES]],
        most_open=MOST_OPEN,
        num_trials=len(content.records),
        more_failures=max(0, len(content.failures) - MOST_FAILURES),
        provenance=content.provenance,
        command=content.command,
        others=others_tables(content),
        kept=content.kept,
        style=(FILES / "page.css").read_text(encoding="utf-8"),
        script=(FILES / "page.js").read_text(encoding="utf-8"),
        data=script_json({"trials": _trials(content), "predictions": _predictions(content, predictions)}),
    )
    return printable(rendered)


def script_json(value: JsonDict) -> str:
    """JSON for a script element, in which no text can end the element or begin a comment."""
    return escaped_controls(strict_json(value, separators=(",", ":"))).replace("<", "\\u003c")


def _verdicts(content: Content) -> list[JsonDict]:
    """The answers: a headline for each comparison, by how much, and at what cost."""
    several = len(content.comparisons) > 1
    found = [
        {"line": line, "answers": [] if several else content.answers[0]} for line in content.headlines[:MOST_VERDICTS]
    ]
    more = len(content.headlines) - MOST_VERDICTS
    return [*found, {"line": f"{more} more comparisons are below.", "answers": []}] if more > 0 else found


def _sections(
    content: Content, comparisons: Sequence[JsonDict], predictions: SideBySide | None
) -> list[tuple[str, str]]:
    several = len(comparisons) > 1
    found = []
    for number, comparison in enumerate(comparisons, start=1):
        suffix = f" {number}" if several else ""
        found.append((f"results-{number}", f"Results{suffix}"))
        if number == 1 and content.caveats:
            found.append(("caveats", "Caveats"))
        if comparison["pictures"]:
            found.append((f"plots-{number}", f"Plots{suffix}"))
    if content.tunings:
        found.append(("tuning", "Tuning"))
    if predictions:
        found.append(("predictions", "Predictions"))
    if content.failures:
        found.append(("failures", f"Failed ({len(content.failures)})"))
    found.append(("trials", "All trials"))
    if content.others:
        found.append(("others", "Left out"))
    return [*found, ("provenance", "Made with")]


def _failure(result: Any, outcome: Any) -> JsonDict:
    where = (f" in {outcome.phase}" if outcome.phase else "") + (
        f" on rank {outcome.rank}" if outcome.rank is not None else ""
    )
    return {
        "trial_id": result.trial_id,
        "where": where,
        **outcome.model_dump(include={"reason", "message", "log_tail", "traceback"}),
    }


def _trials(content: Content) -> JsonDict:
    records = content.records
    called = row_labels(records)
    listed = columns_of(Shown.TRIALS)
    texts = [column for column in listed if column.is_text]
    metrics = [column for comparison in content.comparisons for column in comparison.metrics]
    candidates = {column.name: column for column in (*metrics, *(one for one in listed if not one.is_text))}
    numbers = present(candidates.values(), records)
    by_column = [
        *(column_values(column, records, called) for column in texts),
        *([_scaled(column, column.number(record)) for record in records] for column in numbers),
    ]
    return {
        "columns": [
            *({"title": column.title, "text": True} for column in texts),
            *({"title": column.title, "decimals": column.decimals} for column in numbers),
        ],
        "rows": list(zip(*by_column, strict=True)),
    }


def _scaled(column: Column, value: float | None) -> float | None:
    return None if value is None else float(f"{value * column.scale:.7g}")


def _predictions(content: Content, predictions: SideBySide | None) -> JsonDict | None:
    if predictions is None:
        return None
    scored = {name for source in predictions.sources for scores in source["scores"] for name in scores or ()}
    metrics = {column.name: column for comparison in content.comparisons for column in comparison.metrics}
    metric = next((column for name, column in metrics.items() if name in scored), None)
    return {
        "configurations": predictions.configurations,
        "sources": predictions.sources,
        "metric": metric
        and {"name": metric.name, "title": metric.title, "higher_is_better": bool(metric.higher_is_better)},
    }


def _predictions_note(predictions: SideBySide) -> str:
    shown, known = len(predictions.sources), predictions.num_sources
    part = "All" if shown == known else f"An even sample of {shown} of the"
    return (
        f"{part} {known} test sources; of each method the configuration with the lowest dev loss, at its first "
        "completed seed. The files predictions.jsonl.gz of the trials hold everything."
    )
