"""The list of columns is the only one: nothing of a record is forgotten, and one entry is in every table."""

from __future__ import annotations

import csv
import io
import json
import typing
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fakes import completed, failed, probed, record, trial
from pydantic import BaseModel
from rich.console import Console

from bench.commands.plan_table import seconds
from bench.driver.trackers.tracker import values_of
from bench.metrics import METRICS
from bench.report import columns, csv_text, markdown, row
from bench.report.column import Column, Group, Shown, compact, size
from bench.report.comparison import cost_lines
from bench.report.configurations import configurations
from bench.report.content import Content
from bench.report.data import json_text
from bench.report.figures import pictures
from bench.report.latex import latex
from bench.report.page import html
from bench.report.planned import forecasts
from bench.report.readers import training_reader
from bench.report.significance_table import p_text
from bench.report.terminal import results_table
from bench.schema.record import Completed, DecodeCost, Forecast, Fused, MergedDecode, Placement, TrialResult

# Numbers of a record that are no column, and where a reader finds them instead.
NOT_A_COLUMN = {
    "TrialSpec": "settings: labels and 'What each was trained with' tell them; those in results.csv are told apart",
    "TrainPoint": "the curves are drawn",
    "DevPoint": "the curves are drawn",
    "Fused.shared_seconds": "enters device_seconds, the budget of a search",
    "Scores.sources_by_tag": "headings of the table by tag",
    "Scores.by_tag": "the table by tag; report.json",
    "Ran.stored_dev_loss": "equals dev_loss but for rounding, which a test of the rank holds",
    "ParameterCounts.coverage": "a text, in the column coverage",
    "PhaseCost.start_memory_bytes": "drawn: memory by part and phase",
    "PhaseCost.device_peak_reserved_bytes": "what the allocator kept beside what was used",
    "RankCost.rank": "which rank it is",
    "TrainCost.steady_steps": "how many steps the rates are taken from",
    "TrainCost.target_tokens_per_second": "the record alone: of rates, useful tokens are compared",
    "TrainCost.skipped_steps": "a caveat",
    "TrainCost.optimizer_period": "a caveat",
    "DecodeCost.new_tokens": "the record alone: the rate is compared",
    "DecodeCost.seconds": "those of the phase decode",
    "MergedDecode.equal_texts": "the record alone",
    "Forecast.train_seconds": "the record alone: a step and the whole are compared",
    "Forecast.decode_memory_bytes": "drawn: planned memory",
    "Forecast.phase_memory_bytes": "drawn: planned memory",
    "Placement.gpus": "which they were",
    "Failed.rank": "the list of failures",
}


def whole() -> TrialResult:
    """A completed record in which no number is absent."""
    outcome = completed()
    assert outcome.train is not None
    cost = outcome.ranks[0]
    energetic = {
        name: phase.model_copy(update={"energy_joules": 7.0, "device_peak_reserved_bytes": 2**20})
        for name, phase in cost.phases.items()
    }
    decode = DecodeCost(sources=40, new_tokens=800, tokens_per_second=160.0, seconds=5.0)
    plan = {"step_seconds": 0.4, "train_seconds": 4.0, "total_seconds": 10.0}
    outcome = outcome.model_copy(
        update={
            "stored_dev_loss": 1.5,
            "ranks": [cost.model_copy(update={"phases": energetic})],
            "predicted": Forecast(
                **{"device": "cpu", "flops": 1e12, **plan, "memory_bytes": {"weights": 8}},
                decode_memory_bytes=9,
                phase_memory_bytes={"train": 9},
            ),
            "merged_decode": MergedDecode(merged=decode, unmerged=decode, equal_texts=3),
        }
    )
    place = Placement(nodes=["a"], gpus=[[0]], exclusive="device", co_tenants=[])
    return record(trial(), outcome).model_copy(update={"placement": place})


def numbers(kind: type[BaseModel]) -> Iterator[tuple[type[BaseModel], str]]:
    """Every field of a record that may hold a number, with the class that declares it."""
    met: dict[type[BaseModel], None] = {}

    def classes(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for part in typing.get_args(annotation):
            yield from classes(part)

    def holds_numbers(annotation: Any) -> bool:
        return annotation in (int, float) or any(map(holds_numbers, typing.get_args(annotation)))

    waiting = [kind]
    while waiting:
        one = waiting.pop()
        if one in met or one.__name__ in NOT_A_COLUMN:
            continue
        met[one] = None
        for name, field in one.model_fields.items():
            waiting += classes(field.annotation)
            declared = next(base for base in reversed(one.__mro__) if name in getattr(base, "model_fields", {}))
            if holds_numbers(field.annotation) or name == "data":
                yield declared, name


def changed(value: Any, kind: type[BaseModel], field: str) -> Any:
    """The same with other numbers in one field of one class, wherever it stands."""
    if isinstance(value, BaseModel):
        update = {name: changed(getattr(value, name), kind, field) for name in type(value).model_fields}
        if isinstance(value, kind):
            update[field] = other(getattr(value, field))
        return value.model_copy(update=update)
    if isinstance(value, list | tuple):
        return type(value)(changed(member, kind, field) for member in value)
    if isinstance(value, dict):
        return {key: changed(member, kind, field) for key, member in value.items()}
    return value


def other(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(other, value)) if value else [3]
    if isinstance(value, dict):
        return {key: other(member) for key, member in value.items()}
    if value is None:  # a field that these records do not have yet
        return 5
    return value * 2 + 1 if isinstance(value, int | float) and not isinstance(value, bool) else value


def test_every_number_of_a_record_is_a_column_or_stands_among_the_exceptions() -> None:
    samples = [whole(), record(trial(), probed(dev_bleu=40.0)), record(trial(), failed())]
    forgotten, needless = [], dict(NOT_A_COLUMN)
    for kind, field in dict.fromkeys(numbers(TrialResult)):
        name = f"{kind.__name__}.{field}"
        moves = any(row(changed(sample, kind, field)) != row(sample) for sample in samples)
        if not moves and name not in NOT_A_COLUMN:
            forgotten.append(name)
        if not moves:
            needless.pop(name, None)
    assert not forgotten, "each needs an entry in bench.report.columns.COLUMNS, or a reason in NOT_A_COLUMN"
    assert set(needless) == {"TrialSpec", "TrainPoint", "DevPoint"}, "these are columns, or are no longer there"


@pytest.fixture
def new_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry of the list, for a value that records happen to have."""
    column = Column(
        *("nap_seconds", "naps of 1 s", False, 2),
        axis="seconds of naps",
        read=training_reader(lambda train: train.step_seconds_p99 and train.step_seconds_p99 * 1000),
        group=Group.COST,
        shown=Shown.EVERYWHERE,
        measured_alone=True,
        sentence_part="{} s of naps",
        picture="naps",
        tracker="cost/nap_seconds",
    )
    monkeypatch.setattr(columns, "COLUMNS", (*columns.COLUMNS, column))


@pytest.mark.usefixtures("new_column")
def test_one_entry_is_in_every_table() -> None:
    slow = completed(40.0, trained=200)
    assert slow.train is not None
    slow = slow.model_copy(update={"train": slow.train.model_copy(update={"step_seconds_p99": 0.9})})
    records = [record(trial("full"), completed(50.0)), record(trial("lora"), slow)]
    content = Content("demo", tuple(records))
    rows = list(csv.DictReader(io.StringIO(csv_text(records))))
    assert [float(one["nap_seconds"]) for one in rows] == [700.0, 900.0]
    document = json.loads(json_text(content))["comparisons"][0]
    assert {"name": "nap_seconds", "title": "naps of 1 s", "higher_is_better": False} in document["columns"]
    assert document["configurations"][0]["values"]["nap_seconds"]["mean"] == 700.0
    report = markdown(content)
    main, summary = (report.split(mark)[1].split("\n\n")[0] for mark in ("\n| method | BLEU", "for what it costs\n\n"))
    assert "| naps of 1 s |" in main and "**700.00**" in main
    assert "naps of 1 s" in summary and "900.00" in summary
    assert "700.00 s of naps" in report
    assert r"\shortstack[r]{naps\\of\\1\\s $\downarrow$}" in latex(content)
    drawn = pictures(content)
    assert "pareto-naps" in [picture.name for picture in drawn[0]]
    page = html(content, drawn, None)
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    place = [column["title"] for column in data["trials"]["columns"]].index("naps of 1 s")
    assert [one[place] for one in data["trials"]["rows"]] == [700.0, 900.0]
    console = Console(width=200, file=io.StringIO())
    console.print(results_table(records))
    printed = typing.cast(io.StringIO, console.file).getvalue()
    assert "naps of 1 s" in printed and "900.00" in printed
    assert values_of(records[1])["cost/nap_seconds"] == 900.0


@pytest.mark.usefixtures("new_column")
def test_ratios_and_costs_of_the_stage_cost_know_the_entry() -> None:
    first, second = configurations([record(trial("full"), completed(50.0)), record(trial("lora"), completed(40.0))])
    assert "nap_seconds" in [line.column.name for line in cost_lines(first, second)]
    assert replace(first, costs=(record(trial("full"), probed()),)).was_measured_alone("nap_seconds")
    shared = record(trial("full"), completed()).model_copy(update={"fused": Fused(trials=["x"], shared_seconds=1.0)})
    assert "nap_seconds" not in row(shared) and "nap_seconds" not in values_of(shared)


def test_what_is_a_cost_is_not_told_by_its_name() -> None:
    outcome = completed()
    scores = outcome.scores.model_copy(update={"values": {**outcome.scores.values, "reading_seconds": 3.0}})
    shared = record(trial(), outcome.model_copy(update={"scores": scores}))
    shared = shared.model_copy(update={"fused": Fused(trials=["x"], shared_seconds=1.0)})
    assert row(shared)["reading_seconds"] == 3.0
    assert "train_seconds" not in row(shared) and "decode_seconds" not in row(shared)
    assert values_of(shared)["test/reading_seconds"] == 3.0
    assert not [name for name in values_of(shared) if name.startswith("cost/")]


def test_names_are_unique_and_none_is_that_of_a_score() -> None:
    names = [column.name for column in columns.COLUMNS]
    assert len(set(names)) == len(names) and not METRICS.keys() & set(names)
    trackers = [column.tracker for column in columns.COLUMNS if column.tracker]
    assert len(set(trackers)) == len(trackers)
    shown = [
        column for column in columns.COLUMNS if column.shown & ~Shown.CSV or column.sentence_part or column.picture
    ]
    assert all(column.title for column in shown), "what a table shows has a heading"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0K"), (999_940, "999.9K"), (999_960, "1.0M"), (999_990_000, "1.0B")],
)
def test_a_count_that_rounds_up_to_the_next_unit_has_that_unit(count: int, text: str) -> None:
    assert compact(count) == text


@pytest.mark.parametrize(
    ("mebibytes", "text"),
    [
        (999.4, "999 MiB"),
        (999.7, "0.98 GiB"),
        (999.7 / 1024, "0.976 MiB"),
        (999.7 / 2**20, "0.976 KiB"),
        (2048, "2.00 GiB"),
    ],
)
def test_a_size_that_rounds_up_to_the_next_unit_has_that_unit(mebibytes: float, text: str) -> None:
    assert size(mebibytes * 2**20) == text


def test_a_duration_that_rounds_up_to_a_second_is_one() -> None:
    assert [seconds(value) for value in (0.9994, 0.9996)] == ["999 ms", "1 s"]


def test_a_p_value_below_the_level_never_reads_as_the_level() -> None:
    shown = [p_text(p_value) for p_value in (0.0004, 0.0494, 0.04996, 0.05, 0.0504, 1.0)]
    assert shown == ["< 0.001", "0.049", "< 0.05", "0.050", "0.050", "1.000"]


def test_planned_means_stand_beside_measured_means() -> None:
    of_today = whole()
    assert isinstance(of_today.outcome, Completed) and of_today.outcome.train is not None
    train = of_today.outcome.train.model_copy(update={"step_seconds_mean": None})
    older = of_today.model_copy(update={"outcome": of_today.outcome.model_copy(update={"train": train})})
    for one, expected in ((of_today, 0.52), (older, 0.5)):
        (comparison,) = Content("demo", (one,)).comparisons
        (row_of_plan,) = forecasts(comparison)
        assert row_of_plan.step_measured_seconds == expected
