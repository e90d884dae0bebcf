"""A model of the hub is downloaded once for all ranks of a machine, before they load it."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
import torch
from hub_stand_in import point_at, stand_in

from bench.models import hub_files
from bench.models.base import load_config
from bench.models.hub_files import download, is_on_hub
from bench.rank.context import RankContext, once_for_machine
from bench.schema.trial import ModelSpec

COMMIT = "a" * 39 + "1"


def test_what_a_model_is_loaded_from_is_downloaded_once(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "files"
    shutil.copytree(tiny_models["gpt2"], files)
    wanted = sorted(files.iterdir())
    for other in ("README.md", "consolidated.safetensors", "pytorch_model.bin"):
        (files / other).write_text("of other libraries")
    spec = ModelSpec(path="org/tiny", commit=COMMIT)
    with stand_in() as hub:
        point_at(hub, tmp_path / "hub", monkeypatch)
        hub.push("org/tiny", files, COMMIT)
        assert is_on_hub(spec)
        assert not is_on_hub(ModelSpec(path=str(files)))
        assert not is_on_hub(ModelSpec())
        download(spec, lambda here, of_all: None)
        (snapshot,) = (tmp_path / "hub").glob("models--org--tiny/snapshots/*")
        assert sorted(path.name for path in snapshot.iterdir()) == [path.name for path in wanted]
        total = sum(path.stat().st_size for path in wanted)
        assert (hub_files._bytes_here(spec), hub_files._bytes_of(spec)) == (total, total)
        hub.requested_paths.clear()
        download(spec, lambda here, of_all: None)
        assert load_config(spec).model_type == "gpt2"
        assert not any(path.endswith(".safetensors") for path in hub.requested_paths), "all of it is here"
        download(ModelSpec(path="org/none"), lambda here, of_all: None)
    assert "the files of 'org/none' are not downloaded before they are loaded" in capsys.readouterr().err


def test_progress_is_told_while_a_download_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int | None]] = []
    enough = threading.Event()

    def tell(here: int, of_all: int | None) -> None:
        told.append((here, of_all))
        enough.set()

    monkeypatch.setattr(hub_files, "TELL_SECONDS", 0.001)
    monkeypatch.setattr(hub_files, "_bytes_of", lambda spec: 10)
    monkeypatch.setattr(hub_files, "_bytes_here", lambda spec: 4)
    with hub_files._telling(ModelSpec(path="org/tiny"), tell):
        assert enough.wait(30)
    assert set(told) == {(4, 10)}


def test_other_ranks_of_a_machine_wait_for_the_first(tmp_path: Path) -> None:
    store, order = torch.distributed.HashStore(), []
    begun = threading.Event()

    def act(rank: int) -> None:
        order.append(f"rank {rank} acts")

    def second() -> None:
        begun.set()
        once_for_machine(RankContext(1, 2, 1, store, tmp_path, "", 1), "done", lambda: act(1))
        order.append("rank 1 goes on")

    waiting = threading.Thread(target=second)
    waiting.start()
    assert begun.wait(30)
    once_for_machine(RankContext(0, 2, 0, store, tmp_path, "", 1), "done", lambda: act(0))
    waiting.join(30)
    assert order == ["rank 0 acts", "rank 1 goes on"]
