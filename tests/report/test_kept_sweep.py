"""Tables show the sweep that was run last. Trials of other versions are listed separately, on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from command import Done
from fakes import FakeLauncher, completed, provenance, record, trial, varied

from bench.launch.launcher import Ended, Running
from bench.report import load, load_content
from bench.schema.record import Outcome
from bench.schema.sweep import Sweep
from bench.store.kept_sweep import KEPT_FILE, keep_beside, keep_only, keep_sweep, read_kept
from bench.store.records import Store, StoreError

SWEEP = """
name: demo
model: {model}
task: {{name: jsonl, path: {task}}}
train: {{steps: {steps}, batch_size: 4, learning_rate: 1.0e-3}}
resources: {{device: cpu}}
seeds: [0]
methods: [none, full, {{name: lora, config: {{rank: {rank}}}}}]
"""


class Launcher(FakeLauncher):
    """Completes everything, without predictions; ``none`` trains nothing."""

    def end(self, run: Running, outcome: Outcome) -> None:
        self.events.put(Ended(run.trial_id, run.attempt.attempt_id, outcome, provenance(), 1.0, [], None, []))

    def next_outcome(self, trial_id: str) -> Outcome:
        return completed(50.0 + len(trial_id) % 7, train=not trial_id.startswith("none"))


class Edited:
    """Runs a sweep file again and again, edited in between."""

    def __init__(self, folder: Path, model: Path, task: Path, tuneoff: Callable[..., Done]) -> None:
        self.folder, self.model, self.task, self.tuneoff = folder, model, task, tuneoff
        self.file = folder / "sweep.yaml"
        self.root = folder / "results" / "demo"

    def run(self, *arguments: str, steps: int = 10, rank: int = 4, methods: str | None = None) -> str:
        text = SWEEP.format(model=self.model, task=self.task, steps=steps, rank=rank)
        if methods is not None:
            text = text[: text.index("methods:")] + methods
        self.file.write_text(text)
        done = self.tuneoff(
            "run", str(self.file), "--results", str(self.folder / "results"), "--launcher", "local", *arguments
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def rows(self) -> list[str]:
        return sorted(pd.read_csv(self.root / "report" / "results.csv")["trial_id"])

    def report(self, *arguments: str) -> str:
        done = self.tuneoff("report", str(self.root), *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def edited(
    tmp_path: Path,
    tiny_models: dict[str, Path],
    tiny_task: Path,
    tuneoff: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
) -> Edited:
    import bench.driver.prepare
    import bench.launch.choose

    monkeypatch.setattr(bench.launch.choose, "make_launcher", lambda name, outbox, *others: Launcher(outbox))
    monkeypatch.setattr(bench.driver.prepare, "prepare", lambda *others: None)
    # Pictures take most of the time of a report, and show the same rows.
    module = sys.modules["bench.report.write"]
    monkeypatch.setattr(module, "pictures", lambda content: [[] for _ in content.comparisons])
    return Edited(tmp_path, tiny_models["llama"], tiny_task, tuneoff)


def test_an_edited_sweep_shows_its_own_rows(edited: Edited) -> None:
    assert "3 trials, 0 done, 3 to run" in edited.run()
    before = edited.rows()
    output = edited.run(steps=20)
    assert "3 trials, 1 done, 2 to run" in output, "the base model comes out the same however the others are trained"
    assert "2 records in the folder are not asked for" in output
    rows = edited.rows()
    assert len(rows) == 3
    assert set(rows) & set(before) == {name for name in before if name.startswith("none-")}
    document = json.loads((edited.root / "report" / "report.json").read_text())
    shown = [
        trial_id
        for configuration in document["comparisons"][0]["configurations"]
        for trial_id in configuration["trials"]
    ]
    assert sorted(shown) == rows
    status = edited.tuneoff("status", str(edited.root)).stdout
    assert "3 of 3 trials done" in status
    assert len(load(edited.root)) == 3 and len(load(edited.root, everything=True)) == 5


def test_other_records_are_listed_apart_on_request(edited: Edited) -> None:
    edited.run()
    edited.run(steps=20)
    folder = edited.root / "report"
    assert "left out" in (folder / "report.md").read_text()
    assert "does not ask for" not in (folder / "report.md").read_text()
    printed = edited.report("--all")
    assert "Records that this sweep does not ask for" in printed
    text = (folder / "report.md").read_text()
    first, _, apart = text.partition("## Records that this sweep does not ask for")
    assert "lora (steps=10)" in apart and "| lora |" in first
    assert "Left out" in (folder / "report.html").read_text()
    table = pd.read_csv(folder / "results.csv")
    assert sorted(table["asked_for"]) == [False, False, True, True, True]
    document = json.loads((folder / "report.json").read_text())
    assert len(document["others"]) == 2 and document["trials"] == 3
    edited.report()
    assert len(edited.rows()) == 3


def test_an_edit_that_is_taken_back_finds_everything(edited: Edited) -> None:
    edited.run()
    before = edited.rows()
    edited.run(rank=8)
    assert "3 trials, 3 done, 0 to run" in edited.run()
    assert edited.rows() == before


def test_a_record_is_found_whatever_its_readable_part(edited: Edited) -> None:
    """What moves from ``config`` into a grid has another id, and the same answer."""
    edited.run(rank=4)
    output = edited.run(methods="methods: [none, {name: lora, grid: {config.rank: [4, 8]}}]")
    assert "3 trials, 2 done, 1 to run" in output
    assert len(edited.rows()) == 3
    assert "lora (rank=8)" in (edited.root / "report" / "report.md").read_text()


def test_what_trains_nothing_runs_once_in_a_grid_of_training_settings(edited: Edited) -> None:
    output = edited.run(methods="methods: [none, full]\ngrid: {train.learning_rate: [1.0e-3, 1.0e-4]}")
    assert "3 trials, 0 done, 3 to run" in output
    other = edited.run("--set", "decode.beams=2", methods="methods: [none]")
    assert "1 trials, 0 done, 1 to run" in other, "decoding changes the answer of what trains nothing"


def test_the_sweep_file_and_the_budget_stand_in_the_report(edited: Edited) -> None:
    output = edited.run("--set", "train.warmup_steps=2")
    text = (edited.root / "report" / "report.md").read_text()
    assert "## The sweep file" in text and "name: demo\n" in text and "`train.warmup_steps=2`" in text
    line = (
        "All with steps 10, epochs 0.125, batch size 4, learning rate 0.001, schedule linear, warm-up steps 2, "
        "optimiser adamw, weight decay 0, train pairs 320, precision fp32, ranks 1, beams 1, max new tokens 96, test "
        "sources 40."
    )
    assert line in text and line in output
    page = (edited.root / "report" / "report.html").read_text()
    assert line in page and "The sweep file" in page
    document = json.loads((edited.root / "report" / "report.json").read_text())
    assert document["sweep_file"]["settings"] == ["train.warmup_steps=2"]
    assert document["sweep_file"]["sweep"]["train"]["warmup_steps"] == 2
    assert document["comparisons"][0]["budget"]["shared"]["learning rate"] == "0.001"


def test_a_folder_from_before_shows_all_records(tmp_path: Path) -> None:
    store = Store(tmp_path / "old")
    store.root.mkdir()
    for steps in (10, 20):
        store.commit(record(varied(trial("lora"), train={"steps": steps}), completed()), [])
    content = load_content(store.root)
    assert [configuration.name for configuration in content.comparisons[0].configurations] == [
        "lora (steps=20)",
        "lora (steps=10)",
    ]
    assert content.left_out == 0
    (first, _) = store.trial_ids()
    keep_beside(store.root, [first])
    assert load_content(store.root).left_out == 0, "no sweep has said what it asks for"
    sweep = Sweep(name="old", task={"name": "facts"}, methods=[{"name": "lora"}])  # type: ignore[list-item]
    keep_sweep(store.root, sweep, None, [], [])
    keep_only(store.root, [])
    content = load_content(store.root)
    assert [one.trial_id for one in content.records] == [first], "what a command has added stays"
    assert content.left_out == 1


def test_budgets_that_differ_stand_by_row() -> None:
    from bench.report import Content, markdown

    found = [
        record(trial("none"), completed(5.0, trained=0, train=False)),
        record(varied(trial("full"), train={"learning_rate": 1e-4}), completed()),
        record(varied(trial("lora"), decode={"beams": 5}), completed()),
    ]
    text = markdown(Content("demo", tuple(found)))
    assert "| method | learning rate | beams |" in text
    assert "| none | – | 1 |" in text  # noqa: RUF001
    assert "| full | 0.0001 | 1 |" in text and "| lora | 0.001 | 5 |" in text


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    (tmp_path / KEPT_FILE).write_text("{")
    with pytest.raises(StoreError, match="does not hold a sweep; move it away"):
        read_kept(tmp_path)
