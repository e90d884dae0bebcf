"""Costs of a table are of one kind of device: no mean mixes two, and what is left out is said."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import completed, failed, probed, record, trial

from bench.report.caveats import caveats
from bench.report.columns import column_named
from bench.report.comparison import cost_lines
from bench.report.configurations import comparisons, costs_left_out, costs_of_one_kind
from bench.report.content import Content
from bench.report.figures.bars import time_bars
from bench.schema.record import Completed, TrialResult
from bench.schema.same_answer import cost_class

OLD, NEW = "NVIDIA A100", "NVIDIA H100"


def made(method: str, seed: int, device: str, rate: float, **fields: Any) -> TrialResult:
    """A final trial that trained so many tokens per second."""
    outcome = completed().model_copy(update=fields)
    assert outcome.train is not None
    train = outcome.train.model_copy(update={"tokens_per_second": rate})
    return record(trial(method, seed), outcome.model_copy(update={"train": train}), device)


def on_ranks(outcome: Completed, *devices: str) -> Completed:
    (cost,) = outcome.ranks
    ranks = [cost.model_copy(update={"rank": rank, "device": device}) for rank, device in enumerate(devices)]
    return outcome.model_copy(update={"ranks": ranks})


MIXED = (
    made("full", 0, NEW, 900.0),
    made("full", 1, OLD, 300.0),
    made("lora", 0, NEW, 1000.0),
    made("lora", 1, NEW, 1200.0),
    made("none", 0, OLD, 1.0),
)


def test_costs_are_those_of_trials_on_one_kind_and_scores_are_of_all() -> None:
    (table,) = comparisons(MIXED)
    rows = {row.name: row for row in table.configurations}
    rates = {name: row.mean("train_tokens_per_second") for name, row in rows.items()}
    assert rates == {"full": 900.0, "lora": 1100.0, "none": None}
    assert rows["full"].values("bleu").keys() == {0, 1}
    assert rows["none"].mean("bleu") is not None
    assert table.is_best(rows["lora"], column_named("train_tokens_per_second"))
    (sentence,) = [text for text in caveats(MIXED) if "different devices" in text]
    assert sentence == (
        "Rows were made with different devices (NVIDIA H100: 3, NVIDIA A100: 2): costs are those of trials on NVIDIA "
        "H100 alone, and none has none there. resources.accelerator names one type of GPU."
    )
    assert time_bars([rows["none"]], "time") is None


def test_a_trial_that_never_started_has_no_device() -> None:
    lost = record(trial("full", 1), failed()).model_copy(update={"provenance": None})
    content = Content("demo", (made("full", 0, NEW, 1.0), lost))
    assert dict(content.provenance)["Device"] == NEW


def test_one_kind_of_device_changes_nothing() -> None:
    alike = [made("full", seed, NEW, 100.0 * (1 + seed)) for seed in (0, 1)]
    (table,) = comparisons(alike)
    assert table.configurations[0].mean("train_tokens_per_second") == pytest.approx(150.0)
    assert not any("devices" in text for text in caveats(alike))


def test_trials_of_the_stage_cost_are_of_one_kind_as_well() -> None:
    finals = [made("full", 0, OLD, 1.0), made("lora", 0, OLD, 1.0)]
    costs = {}
    for result, rates in zip(finals, ({NEW: 10.0, OLD: 1.0}, {NEW: 20.0}), strict=True):
        measured = []
        for repetition, (device, rate) in enumerate(rates.items()):
            outcome = probed()
            assert outcome.train is not None
            outcome = outcome.model_copy(update={"train": outcome.train.model_copy(update={"tokens_per_second": rate})})
            spec = result.spec.model_copy(update={"stage": "cost", "repetition": repetition})
            measured.append(record(spec, outcome, device))
        costs[cost_class(result.spec, True)] = measured
    (table,) = comparisons(finals, costs)
    found = {row.name: row.values("train_tokens_per_second") for row in table.configurations}
    assert found == {"full": {0: 10.0}, "lora": {0: 20.0}}
    assert any(
        text.startswith("Trials of the stage cost were made with different devices") for text in caveats(finals, costs)
    )


def test_a_repetition_of_the_stage_cost_is_no_pair_of_a_seed() -> None:
    finals = [made(method, seed, NEW, 10.0 + seed) for method in ("full", "lora") for seed in range(3)]
    spec = finals[0].spec.model_copy(update={"stage": "cost"})
    alone = [record(spec.model_copy(update={"repetition": number}), probed(), NEW) for number in range(3)]
    (table,) = comparisons(finals, {cost_class(finals[0].spec, True): alone})
    lines = {line.column.name: line for line in cost_lines(*table.configurations)}
    rate, seconds = lines["train_tokens_per_second"], lines["train_seconds"]
    assert (rate.basis, rate.low, rate.note) == ("alone", None, "one side was measured alone")
    assert (seconds.basis, seconds.note) == ("seeds", ""), "which the stage cost does not measure"
    assert {line.note for line in cost_lines(table.configurations[0], table.configurations[0])} == {""}


def test_a_trial_whose_ranks_have_two_kinds_is_a_kind_of_its_own_and_is_said() -> None:
    spread = made("full", 0, NEW, 500.0)
    assert isinstance(spread.outcome, Completed)
    spread = spread.model_copy(update={"outcome": on_ranks(spread.outcome, NEW, OLD)})
    plain = made("full", 1, NEW, 900.0)
    assert isinstance(plain.outcome, Completed)
    plain = plain.model_copy(update={"outcome": on_ranks(plain.outcome, NEW, NEW)})
    assert (spread.devices, plain.devices) == ((OLD, NEW), (NEW,))
    (table,) = comparisons([spread, plain, made("lora", 0, NEW, 800.0)])
    rates = {row.name: row.mean("train_tokens_per_second") for row in table.configurations}
    assert rates == {"full": 900.0, "lora": 800.0}
    assert (
        "The ranks of 1 trial had devices of different kinds (NVIDIA A100 and NVIDIA H100): all wait for the slowest."
        in caveats([spread, plain])
    )


def test_two_sweeps_on_different_devices_have_no_ratio_of_costs() -> None:
    (old,), (new,) = (comparisons([made("full", 0, device, 1.0)]) for device in (OLD, NEW))
    sides = [old.configurations[0], new.configurations[0]]
    assert "peak_memory_bytes" in [line.column.name for line in cost_lines(*sides)]
    assert [line.column.name for line in cost_lines(*costs_of_one_kind(sides))] == ["trained_parameters"]
    assert "costs are those of trials on NVIDIA A100 alone, and full has none there" in costs_left_out(sides)[0]
