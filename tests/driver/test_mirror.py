"""A copy of the results by fsspec: its records are complete, and a driver with an empty folder continues from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest import mock

import pytest
from chaos.ground import spoil
from fakes import FakeLauncher, trial

from bench.driver.mirror import Mirror
from bench.driver.schedule import Schedule
from bench.schema.validation import ConfigError
from bench.store.records import Store

SPECS = [trial(seed=seed, cpus_per_rank=1) for seed in range(4)]


class Sweep:
    """A sweep with a copy under ``copy``."""

    def __init__(self, folder: Path, name: str = "here") -> None:
        self.store = Store(folder / name / "demo")
        self.store.root.mkdir(parents=True, exist_ok=True)
        self.copy = folder / "copy"
        self.messages: list[str] = []
        self.mirror = Mirror(f"file://{self.copy}", self.store, self.messages.append)

    def run(self) -> list[str]:
        launcher = FakeLauncher(self.store.outbox)
        pending = [spec for spec in SPECS if not self.store.has(spec.trial_id)]
        Schedule(self.store, launcher, "demo", [self.mirror]).run(pending)
        return launcher.launched

    def records(self) -> dict[str, bytes]:
        return {path.parent.name: path.read_bytes() for path in self.store.trials.glob("*/result.json")}


def test_a_driver_on_another_machine_goes_on_from_the_copy(tmp_path: Path) -> None:
    first = Sweep(tmp_path)
    rows = first.store.root / "tuning" / "search" / "ask-000.json"
    rows.parent.mkdir(parents=True)
    rows.write_text("{}")
    assert len(first.run()) == 4
    shutil.rmtree(first.store.root / "trials" / SPECS[0].trial_id)
    elsewhere = Sweep(tmp_path, "elsewhere")
    assert sorted(elsewhere.mirror.fetch()) == sorted(spec.trial_id for spec in SPECS)
    assert elsewhere.run() == []
    assert (elsewhere.store.root / "tuning" / "search" / "ask-000.json").read_text() == "{}"
    kept = first.records()
    assert {trial_id: content for trial_id, content in elsewhere.records().items() if trial_id in kept} == kept
    assert elsewhere.mirror.fetch() == []
    assert first.mirror.fetch() == [SPECS[0].trial_id]


def test_a_mirror_that_fails_fails_no_trial_and_is_completed_later(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    with mock.patch.object(sweep.mirror, "_put", side_effect=ConnectionError("no route")):
        assert len(sweep.run()) == 4
        assert sweep.mirror.push() == "ConnectionError: no route"
    assert sweep.messages[0].endswith("is not on the mirror yet: ConnectionError: no route")
    assert not sweep.copy.exists()
    (sweep.store.root / "report").mkdir()
    (sweep.store.root / "report" / "report.md").write_text("# demo")
    assert sweep.mirror.push() is None
    assert (sweep.copy / "demo" / "report" / "report.md").read_text() == "# demo"
    assert len(Sweep(tmp_path, "elsewhere").mirror.fetch()) == 4


@pytest.mark.parametrize("what", ["result.json", "predictions.jsonl.gz", "missing"])
def test_what_is_damaged_in_the_copy_is_named_and_not_fetched(what: str, tmp_path: Path) -> None:
    Sweep(tmp_path).run()
    damaged = tmp_path / "copy" / "demo" / "trials" / SPECS[0].trial_id
    if what == "missing":
        (damaged / "predictions.jsonl.gz").unlink()
    elif what == "result.json":
        spoil(damaged / what, "truncated")
    else:
        (damaged / what).write_bytes(b"something else")
    elsewhere = Sweep(tmp_path, "elsewhere")
    assert sorted(elsewhere.mirror.fetch()) == sorted(spec.trial_id for spec in SPECS[1:])
    assert f"trials/{SPECS[0].trial_id} is damaged and stays there; its trial runs again: " in elsewhere.messages[0]
    assert elsewhere.run() == [SPECS[0].trial_id]
    assert not list(elsewhere.store.root.glob("tmp*"))


def test_a_place_that_is_none_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--mirror nowhere://x: .*nowhere"):
        Mirror("nowhere://x", Store(tmp_path), print)
    unreadable = Sweep(tmp_path)
    with (
        mock.patch.object(unreadable.mirror, "_trials", side_effect=PermissionError("denied")),
        pytest.raises(ConfigError, match=r"--mirror file://.* cannot be read: PermissionError: denied"),
    ):
        unreadable.mirror.fetch()


def test_a_row_that_was_fetched_in_part_is_fetched_again(tmp_path: Path) -> None:
    first = Sweep(tmp_path)
    row = first.store.root / "tuning" / "search" / "ask-000.json"
    row.parent.mkdir(parents=True)
    row.write_text('{"settings": 1}')
    first.run()
    elsewhere = Sweep(tmp_path, "elsewhere")

    def cut_off(there: str, here: str) -> None:
        Path(here).write_text('{"s')
        raise OSError("connection reset")

    with (
        mock.patch.object(elsewhere.mirror._files, "get_file", cut_off),
        pytest.raises(ConfigError, match="connection reset"),
    ):
        elsewhere.mirror.fetch()
    elsewhere.mirror.fetch()
    assert (elsewhere.store.root / "tuning" / "search" / "ask-000.json").read_text() == '{"settings": 1}'
