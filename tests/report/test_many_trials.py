"""A report of many trials computes once what all seeds share, and takes little memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from fakes import completed, record, trial, varied
from predicted import write_sweep

from bench import report
from bench.report.content import Content
from bench.report.data import json_text
from bench.report.page import html
from bench.report.sharing import Curve, losses, shared
from bench.report.write import load_content, render
from bench.schema import labels
from bench.schema.record import DevPoint, Ran, TrainPoint, TrialResult
from bench.statistics import systems
from bench.store.predictions import read_predictions
from bench.store.records import Store


def many(seeds: int) -> list[TrialResult]:
    """Two configurations of two methods."""
    specs = [
        varied(trial(method, seed), train={"learning_rate": rate})
        for method in ("full", "lora")
        for rate in (1e-3, 1e-4)
        for seed in range(seeds)
    ]
    return [record(spec, completed(50.0 + spec.seed)) for spec in specs]


@pytest.mark.parametrize("seeds", [2, 9])
def test_settings_are_taken_apart_once_for_each_configuration(seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: Counter[str] = Counter()
    settings_of = labels.settings_of

    def counting(*arguments: object) -> dict[str, str]:
        taken["settings"] += 1
        return settings_of(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(labels, "settings_of", counting)
    content = Content("demo", tuple(many(seeds)))
    assert report.csv_text(content.records).count("learning_rate=0.0001") == 2 * seeds
    assert json_text(content).count('"lora (learning_rate=0.001)"') >= 1
    assert html(content, [[]], None)
    assert taken["settings"] % 4 == 0 and taken["settings"] <= 4 * 4, "of four configurations, for each part"


def test_a_row_is_called_the_same_however_many_seeds_it_has() -> None:
    specs = [record.spec for record in many(3)]
    assert labels.labels(specs)[::3] == labels.labels(specs[::3])
    assert len({spec.without_seed for spec in specs}) == 4
    other = specs[0].model_copy(update={"label": "x"})
    assert other.without_seed != specs[0].without_seed
    assert specs[0].model_copy(update={"seed": 77}).without_seed == specs[0].without_seed


def test_predictions_are_read_one_after_the_other_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[str] = Counter()

    def counting(root: Path, trial_id: str) -> object:
        read[trial_id] += 1
        return read_predictions(root, trial_id)

    monkeypatch.setattr(systems, "read_predictions", counting)
    write_sweep(tmp_path / "demo", {"full": 0.9, "lora": 0.5}, seeds=3)
    content = load_content(tmp_path / "demo")
    assert content.significances[0] is not None and not isinstance(content.significances[0], str)
    assert sum(read.values()) == 6 + 1, "each of six, and the first as what the others are held against"
    system = systems.load_system(tmp_path / "demo", "full", content.comparisons[0].configurations[0].results)
    assert len(system.predictions) == 3 and not system.predictions.__dict__.keys() - {"_root", "_trials"}


def test_shared_records_are_equal_to_those_that_were_read(tmp_path: Path) -> None:
    write_sweep(tmp_path / "demo", {"full": 0.9, "none": 0.2}, seeds=3)
    read = Store(tmp_path / "demo").read_all()
    curved = {
        "train_curve": [TrainPoint(step=step, loss=3.0 / step, learning_rate=0.1) for step in (1, 2, 3)],
        "dev_curve": [DevPoint(step=3, loss=1.25)],
    }
    read[0] = read[0].model_copy(update={"outcome": read[0].outcome.model_copy(update=curved)})
    for before, after in zip(read, shared(read), strict=True):
        assert isinstance(after.outcome, Ran)
        lists = {"train_curve": list(after.outcome.train_curve), "dev_curve": list(after.outcome.dev_curve)}
        listed = after.model_copy(update={"outcome": after.outcome.model_copy(update=lists)})
        assert listed.model_dump_json() == before.model_dump_json()
        assert after.trial_id == before.trial_id == after.spec.trial_id
        assert after.model_fields_set == before.model_fields_set
    outcome = next(shared(read)).outcome
    assert isinstance(outcome, Ran) and isinstance(outcome.train_curve, Curve)
    assert list(losses(outcome.train_curve)) == [(1, 3.0), (2, 1.5), (3, 1.0)]
    assert list(losses(list(outcome.dev_curve))) == list(losses(outcome.dev_curve)) == [(3, 1.25)]


def test_the_report_of_shared_records_is_that_of_the_records(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    write_sweep(root, {"full": 0.9, "lora": 0.5}, seeds=3)
    render(root, load_content(root))
    plain = Content("demo", tuple(Store(root).read_all()), root=root)
    assert (root / "report" / "results.csv").read_text(encoding="utf-8") == report.csv_text(plain.records)
    assert (root / "report" / "report.json").read_text(encoding="utf-8") == json_text(plain)
    assert (root / "report" / "report.md").read_text(encoding="utf-8") == report.markdown(plain)
