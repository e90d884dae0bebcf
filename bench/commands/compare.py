"""The command compare: two configurations, two sweeps, or a sweep against published numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bench.commands.options import AsJson, PluginsDir, console, know_metrics
from bench.schema.validation import ConfigError

if TYPE_CHECKING:
    from bench.report.comparison import Compared, Line
    from bench.report.counterparts import Side

WORSE, TOO_FEW = 1, 3


def compare(
    first: Annotated[
        str, typer.Argument(metavar="REFERENCE", help="results/<sweep>, results/<sweep>:METHOD, or a YAML")
    ],
    second: Annotated[str, typer.Argument(metavar="OTHER", help="what is judged, in the same form")],
    metric: Annotated[str | None, typer.Option(help="score that the verdict is about; default: the first")] = None,
    plugins_dir: PluginsDir = None,
    as_json: AsJson = False,
) -> None:
    """Say whether OTHER is better or worse than REFERENCE, with intervals.

    Two methods (results/a:full results/a:lora), two sweeps (each configuration against the one that
    differs least), or a sweep
    and a file of published numbers. Exit codes: 0 nothing is shown to be worse, 1 something is worse beyond chance
    or has only failed trials, 2 bad input, 3 too few seeds to tell.
    """
    know_metrics(plugins_dir)
    try:
        found, left_over = _compared(first, second, metric)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not found:
        several = f" ({', '.join(left_over)})" if left_over else ""
        raise ConfigError(f"{first} and {second} have no configuration in common{several}")
    if as_json:
        console.print_json(json.dumps([_document(one) for one in found]))
    else:
        for one in found:
            _print(one)
        for name in left_over:
            console.print(f"{name} has no counterpart.", style="dim", highlight=False, markup=False, soft_wrap=True)
    verdicts = {one.verdict for one in found}
    raise typer.Exit(WORSE if verdicts & {"worse", "failed"} else TOO_FEW if "too few seeds" in verdicts else 0)


def _compared(first: str, second: str, metric: str | None) -> tuple[list[Compared], tuple[str, ...]]:
    """All pairs, and the configurations that have none."""
    from bench.report.comparison import against_published, corrected
    from bench.report.counterparts import counterparts, with_names
    from bench.report.published import load_published, quoted

    published = [text for text in (first, second) if text.endswith((".yaml", ".yml"))]
    if len(published) == 2:
        raise ConfigError("both are files of published numbers; one of the two has to be results of ours")
    if published:
        (ours,) = {first, second} - set(published)
        rows = list(quoted(load_published(Path(published[0]))))
        sides, _ = with_names(_sides(ours), [])
        found = [one for side in sides for one in against_published(side, rows, metric)]
        return corrected(found), tuple(_said_to_fail(side) for side in sides if not side.configuration.completed)
    ones, others = with_names(_sides(first), _sides(second))
    if same := sorted({side.name for side in ones} & {side.name for side in others}):
        raise ConfigError(f"{first} and {second} are both {', '.join(same)}: name two rows, or two sweeps, that differ")
    if len(ones) == len(others) == 1:
        return [_pair(ones[0], others[0], metric)], ()
    paired = counterparts(ones, others)
    failed = {side.name: _said_to_fail(side) for side in (*ones, *others) if not side.configuration.completed}
    left_over = tuple(failed.get(name, name) for name in paired.left_over)
    return corrected([_pair(one, other, metric) for one, other in paired.pairs]), left_over


def _pair(first: Side, second: Side, metric: str | None) -> Compared:
    from bench.report.comparison import compare as compared
    from bench.report.comparison import without_scores

    if first.configuration.completed and second.configuration.completed:
        return compared(first, second, metric)
    return without_scores(first, second)


def _said_to_fail(side: Side) -> str:
    return f"{side.name} (every trial failed)"


def _sides(text: str) -> list[Side]:
    """The configurations that an argument names: of a sweep all, of ``results/<sweep>:METHOD`` this one.

    Raises:
        ConfigError: There is no such folder or row, or it has no completed trial.
    """
    from bench.report import load_content
    from bench.report.configurations import told_apart
    from bench.report.counterparts import Side

    folder, method = _folder_and_method(text)
    comparisons = load_content(folder).comparisons
    told = told_apart((comparison.model, comparison.task) for comparison in comparisons)
    sides = [  # with the names that the tables on the terminal print
        Side(folder, configuration, told[comparison.model, comparison.task] + configuration.name)
        for comparison in comparisons
        for configuration in comparison.configurations
    ]
    done = [side for side in sides if side.configuration.completed]
    if not done:
        raise ConfigError(f"{text}: no final trial has completed")
    if method is None:
        return sides
    # A row may have the bare name of a method that other rows have, too: the name of a row comes first.
    chosen = _called(method, done)
    if not chosen and _called(method, sides):
        raise ConfigError(f"{text}: every trial of {method!r} failed")
    if len(chosen) != 1:
        known = ", ".join(repr(side.name) for side in chosen or done)
        found = "several configurations are" if chosen else "no configuration is"
        raise ConfigError(f"{text}: {found} called {method!r}; name one of {known}")
    return chosen


def _called(method: str, sides: Sequence[Side]) -> list[Side]:
    """Those of this name: as tables have it, without model and task, or that of the method alone."""
    return (
        [side for side in sides if side.name == method]
        or [side for side in sides if side.configuration.name == method]
        or [side for side in sides if side.configuration.method == method]
    )


def _folder_and_method(text: str) -> tuple[Path, str | None]:
    """The sweep and the row that an argument names. Names of folders and of rows may have colons themselves."""
    if (Path(text) / "trials").is_dir():
        return Path(text), None
    for colon in (place for place, character in enumerate(text) if character == ":"):
        if (Path(text[:colon]) / "trials").is_dir():
            return Path(text[:colon]), text[colon + 1 :]
    raise ConfigError(f"{text}: no folder 'trials'; give results/<sweep>, results/<sweep>:METHOD or a .yaml file")


def _print(one: Compared) -> None:
    console.print(
        f"[bold]{escape(one.second)}[/] against [bold]{escape(one.first)}[/]", highlight=False, soft_wrap=True
    )
    if one.scores:
        console.print(_lines(one))
    for remark in one.remarks:
        console.print(remark, style="dim", highlight=False, markup=False, soft_wrap=True)
    title = one.scores[0].column.title if one.scores else "all scores"
    few = ": at least 3 pairs of seeds are needed to conclude anything" if one.verdict == "too few seeds" else ""
    console.print(f"In {title}: {one.verdict}{few}.\n", highlight=False, soft_wrap=True)


def _lines(one: Compared) -> Table:
    """A table with a row for each score and cost."""
    table = Table(padding=(0, 1), collapse_padding=True)
    for heading in ("", "reference", "other", "difference", "95 %", "p", "over", "verdict"):
        table.add_column(heading, justify="left" if heading in ("", "over", "verdict") else "right", overflow="fold")
    for line in (*one.scores, *one.tags):
        table.add_row(*map(Text, _score_cells(line)))
    table.add_section()
    for line in one.costs:
        table.add_row(*map(Text, _cost_cells(line)))
    return table


def _score_cells(line: Line) -> list[str]:
    from bench.report.significance_table import p_text

    column = line.column
    title = column.title if line.tag is None else f"{column.title} {line.tag}"
    difference = f"{line.difference:+.{column.decimals}f}"
    interval = "" if line.low is None else f"{line.low:+.{column.decimals}f} to {line.high:+.{column.decimals}f}"
    over = f"{line.basis}, {line.seeds}" if line.note == "" else f"{line.basis}, {line.seeds} ({line.note})"
    return [
        title,
        column.text(line.first),
        column.text(line.second),
        difference,
        interval,
        p_text(line.p_value),
        over,
        line.verdict,
    ]


def _cost_cells(line: Line) -> list[str]:
    column = line.column
    interval = "" if line.low is None else f"x {line.low:.2f} to {line.high:.2f}"
    over = line.note or "measured once" if line.basis == "alone" else f"{line.basis}, {line.seeds}"
    return [
        column.title,
        column.text(line.first),
        column.text(line.second),
        f"x {line.difference:.2f}",
        interval,
        "",
        over,
        "",
    ]


def _document(one: Compared) -> dict[str, Any]:
    """A comparison as JSON, unrounded."""
    document = dataclasses.asdict(one)
    for part in ("scores", "tags", "costs"):
        for line, shown in zip(getattr(one, part), document[part], strict=True):
            shown["column"] = line.column.name
            shown["verdict"] = line.verdict if part != "costs" else None
    return {**document, "verdict": one.verdict}
