"""Commands that train nothing do not import torch or ray, and read no record without need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from overhead.scale import write_finished

from bench.commands.options import read_stages
from bench.store.records import Store

# Runs a command of tuneoff; then says which heavy modules it has imported and how often it opened each record.
SPY = """
import collections, json, sys
opened = collections.Counter()
def hear(event, arguments):
    if event == "open" and str(arguments[0]).endswith("/result.json"):
        opened[str(arguments[0]).split("/")[-2]] += 1
sys.addaudithook(hear)
from bench.cli import exit_code
from bench.store import record_index
record_index.TICK_SECONDS = -1.0
sys.argv[0] = "tuneoff"
code = exit_code()
heavy = [name for name in ("torch", "transformers", "deepspeed", "ray") if name in sys.modules]
print(json.dumps({"code": code, "heavy": heavy, "opened": opened}), file=sys.stderr)
"""


class Folder:
    """A finished sweep of twenty trials."""

    def __init__(self, path: Path) -> None:
        self.sweep = write_finished(path, 20)
        self.results = path / "results" / "scale"
        self.cache = path / "cache"

    def tell(self, *arguments: str) -> tuple[dict[str, object], str]:
        """The modules and records that a command used, and its output."""
        done = subprocess.run(
            [sys.executable, "-P", "-c", SPY, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TUNEOFF_CACHE": str(self.cache)},
        )
        return json.loads(done.stderr.splitlines()[-1]), done.stdout

    def run(self, *more: str) -> tuple[dict[str, object], str]:
        results = str(self.results.parent)
        return self.tell("run", str(self.sweep), "--results", results, "--launcher", "local", *more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("light"))


def test_a_run_with_nothing_to_do_imports_no_torch_and_opens_no_record(folder: Folder) -> None:
    first, shown = folder.run()
    assert first["code"] == 0
    assert "20 trials, 20 done, 0 to run" in shown
    again, shown_again = folder.run()
    assert again == {"code": 0, "heavy": [], "opened": {}}
    assert shown_again == shown

    spied, _ = folder.tell("status", str(folder.results))
    assert spied == {"code": 0, "heavy": [], "opened": {}}
    spied, shown_again = folder.tell("report", str(folder.results))
    assert (spied["code"], spied["heavy"]) == (0, [])
    assert set(spied["opened"].values()) == {1}, "each record is read once"  # type: ignore[attr-defined]
    assert len(spied["opened"]) == 20  # type: ignore[arg-type]

    page = folder.results / "report" / "report.md"
    whole = page.read_text()
    page.write_text("edited by hand")
    spied, _ = folder.run()
    assert spied["code"] == 0
    assert page.read_text() == whole, "a report that was edited is made again"


@pytest.mark.parametrize("what", ["methods", "tasks"])
def test_a_listing_imports_nothing_that_trains(what: str, folder: Folder) -> None:
    spied, shown = folder.tell(what)
    assert spied == {"code": 0, "heavy": [], "opened": {}}
    assert {"methods": "prefix_tuning", "tasks": "webnlg"}[what] in shown


def test_without_what_was_kept_classes_are_asked_and_say_the_same(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEOFF_CACHE", str(folder.cache))

    def trial_ids() -> list[str]:
        _, stages = read_stages(folder.sweep, None)
        return [trial.trial_id for trial in stages.plain]

    ids = trial_ids()
    assert set(ids) == set(Store(folder.results).trial_ids())
    (kept,) = (folder.cache / "methods").iterdir()
    whole = json.loads(kept.read_text())
    kept.write_text("{ torn")
    assert trial_ids() == ids
    assert json.loads(kept.read_text()) == whole
