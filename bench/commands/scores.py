"""Commands on predictions: score those of any system, show those of a trial."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from bench.commands.options import AsJson, PluginsDir, console
from bench.commands.tasks import TaskSettings, load_task_with
from bench.schema.validation import ConfigError

if TYPE_CHECKING:
    from bench.schema.record import Scores

# Parts of the sources that papers report; of other tags, --by-tag shows all.
REPORTED_TAGS = ("seen", "unseen")


class Scored(StrEnum):
    """Splits that are scored."""

    TEST = "test"
    DEV = "dev"


def score(
    task: Annotated[str, typer.Option("--task", help="a name that 'tuneoff tasks' lists, or module:Class")],
    hypotheses: Annotated[Path, typer.Option("--hypotheses", help="one text a line, in the order of the sources")],
    settings: TaskSettings = None,
    split: Annotated[Scored, typer.Option(help="split that was predicted")] = Scored.TEST,
    also: Annotated[list[str] | None, typer.Option("--metric", help="a metric beside the official ones")] = None,
    by_tag: Annotated[bool, typer.Option("--by-tag", help="a column for every tag")] = False,
    plugins_dir: PluginsDir = None,
    as_json: AsJson = False,
) -> None:
    """Score the texts of any system as the trials of a sweep are scored.

    The file has a line for each source of the split (or of the subset that --set asks for), in the order of the data;
    an empty line is an empty text.
    """
    from bench.metrics.scoring import score_examples
    from bench.plugins.registry import metrics_of
    from bench.tasks.splits import drawn_examples

    spec, loaded = load_task_with(task, settings, plugins_dir, also or ())
    try:
        examples = drawn_examples(loaded, split.value)
        texts = _lines(hypotheses, len(examples), split)
        system = score_examples(examples, texts, loaded.scoring, also=loaded.config.metrics, known=metrics_of(spec))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    found = system.scores()
    if as_json:
        rows = [{"id": example.id, "scores": system.source_scores(index)} for index, example in enumerate(examples)]
        console.print_json(json.dumps({**found.model_dump(mode="json"), "examples": rows}))
        return
    _print_scores(f"{hypotheses.name} on {task}, {split}", len(examples), found, by_tag)


def samples(
    result: Annotated[
        Path, typer.Argument(metavar="RESULT", help="results/<sweep>/trials/<trial>, or its result.json")
    ],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="how many")] = 10,
    by: Annotated[str | None, typer.Option("--by", help="score to sort by; default: the first official one")] = None,
    best: Annotated[bool, typer.Option("--best", help="best first instead of worst first")] = False,
    tag: Annotated[str | None, typer.Option(help="only sources with this tag")] = None,
    text: Annotated[str | None, typer.Option(help="only where source, reference or prediction has this text")] = None,
    as_json: AsJson = False,
) -> None:
    """Show source, references, prediction and score of single sources, worst first."""
    from bench.schema.record import Completed
    from bench.store.predictions import read_predictions
    from bench.store.records import read_record

    folder = result.parent if result.is_file() else result
    if not (folder / "result.json").is_file():
        raise ConfigError(f"{result}: no file result.json; give the folder of a trial, results/<sweep>/trials/<trial>")
    record = read_record(folder / "result.json")
    if not isinstance(record.outcome, Completed):
        raise ConfigError(f"{folder}: the trial {record.outcome.status}, so that there are no predictions")
    rows = read_predictions(folder.parent.parent, folder.name)
    if rows is None:
        raise ConfigError(f"{folder}: no predictions.jsonl.gz beside the record")
    by = by or next(iter(record.outcome.scores.values))
    chosen = _chosen(rows, by, tag, text)
    higher = record.outcome.scores.higher_is_better.get(by, True)
    chosen.sort(key=lambda row: row["scores"][by], reverse=higher == best)
    if as_json:
        console.print_json(json.dumps(chosen[:number]))
        return
    console.print(f"{min(number, len(chosen))} of {len(chosen)} sources, {'best' if best else 'worst'} {by} first")
    for row in chosen[:number]:
        _print_sample(row, by)


def _lines(path: Path, expected: int, split: Scored) -> list[str]:
    from bench.tasks.rows import numbered_lines, read_text

    texts = [line for _, line in numbered_lines(read_text(str(path)))]
    if len(texts) != expected:
        raise ConfigError(
            f"{path}: {len(texts):,} lines; the {split} split has {expected:,} sources, and each has one line, in the "
            "order of the data"
        )
    return texts


def _print_scores(title: str, sources: int, found: Scores, by_tag: bool) -> None:
    tags = [tag for tag in found.by_tag if by_tag or tag in REPORTED_TAGS]
    table = Table(title=title)
    table.add_column("score")
    for heading in (f"all ({sources:,})", *(f"{tag} ({found.sources_by_tag[tag]:,})" for tag in tags)):
        table.add_column(heading, justify="right")
    table.add_column("signature", overflow="fold")
    arrows = {True: " ↑", False: " ↓", None: ""}
    for name, value in found.values.items():
        cells = [f"{value:.4f}", *(f"{found.by_tag[tag][name]:.4f}" for tag in tags)]
        signature = Text(found.signatures[name], style="dim")
        table.add_row(name + arrows[found.higher_is_better.get(name)], *cells, signature)
    console.print(table)
    for name, reason in found.absent.items():
        console.print(Text(f"no {name}: {reason}", style="dim"))
    for remark in found.remarks:
        console.print(Text(remark, style="yellow"))


def _chosen(rows: list[dict[str, Any]], by: str, tag: str | None, text: str | None) -> list[dict[str, Any]]:
    scored = [row for row in rows if by in row.get("scores", {})]
    if not scored:
        from bench.metrics.scoring import did_you_mean

        known = list(rows[0].get("scores", {})) if rows else []
        known_scores = f"{', '.join(known)}{did_you_mean(by, known)}" if known else "none, in this old record"
        raise ConfigError(f"--by {by}: single sources have no such score; they have {known_scores}")
    tags = {one for row in rows for one in row["tags"]}
    if tag is not None and tag not in tags:
        raise ConfigError(f"--tag {tag}: no source has it; there are {', '.join(sorted(tags)) or 'no tags'}")
    wanted = None if text is None else text.lower()
    return [
        row
        for row in scored
        if (tag is None or tag in row["tags"])
        and (
            wanted is None
            or any(wanted in one.lower() for one in (row["source"], row["prediction"], *row["references"]))
        )
    ]


def _print_sample(row: dict[str, Any], by: str) -> None:
    cut = ", cut off at the length limit" if row.get("truncated") else ""
    heading = f"\n{row['id']}  {by} {row['scores'][by]:.2f}{cut}  {', '.join(row['tags'])}"
    console.print(Text(heading, style="bold"))
    for label, content in (("source", row["source"]), ("prediction", row["prediction"] or "(empty)")):
        console.print(Text(f"{label:>11}  {content}", style="green" if label == "prediction" else ""))
    for reference in row["references"]:
        console.print(Text(f"{'reference':>11}  {reference}", style="dim"))
