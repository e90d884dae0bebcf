"""A model of the hub is downloaded once for all ranks that share a cache, before they load it."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hub_stand_in import point_at, stand_in

from bench.models import hub_files
from bench.models.base import ModelError, load_config, load_model
from bench.models.hub_files import download, is_on_hub
from bench.rank.context import RankContext, wait_for_all
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
        blobs = snapshot.parents[1] / "blobs"
        (blobs / "f00d").write_text("of another commit")
        sizes = hub_files._wanted_blobs(spec)
        assert sizes is not None and sum(sizes.values()) == total
        assert hub_files._bytes_here(spec, sizes, before=0) == total
        assert hub_files._bytes_here(spec, None, before=total) == len("of another commit"), "new, as far as one knows"
        weights = blobs / max(sizes, key=lambda name: sizes[name])
        whole = weights.rename(blobs / f"{weights.name}.incomplete")
        (blobs / f"{weights.name}.1a2b.incomplete").write_bytes(b"another attempt")
        assert hub_files._bytes_here(spec, sizes, before=0) == total
        whole.rename(weights)
        hub.requested_paths.clear()
        download(spec)
        assert hub.requested_paths == [], "all of it is here"
        assert load_config(spec).model_type == "gpt2"
        (snapshot / "model.safetensors").unlink()
        download(spec)
        assert (snapshot / "model.safetensors").is_file()
        download(ModelSpec(path="org/none"), lambda here, of_all: None)
    assert "the files of 'org/none' are not downloaded before they are loaded" in capsys.readouterr().err


def test_progress_is_told_while_a_download_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int | None]] = []
    enough = threading.Event()

    def tell(here: int, of_all: int | None) -> None:
        told.append((here, of_all))
        enough.set()

    monkeypatch.setattr(hub_files, "TELL_SECONDS", 0.001)
    monkeypatch.setattr(hub_files, "_wanted_blobs", lambda spec: {"a": 7, "b": 3})
    monkeypatch.setattr(hub_files, "_blobs_here", lambda spec: {"a": 4, "of another commit": 20})
    with hub_files._telling(ModelSpec(path="org/tiny"), tell):
        assert enough.wait(30)
    assert set(told) == {(4, 10)}


def test_of_ranks_that_share_a_cache_one_downloads_and_after_its_failure_the_next(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub_files, "LOOK_SECONDS", 0.01)
    whole, began, others_wait = huggingface_hub.snapshot_download, threading.Semaphore(0), threading.Event()
    attempts: list[str] = []

    def first_fails(*args: Any, **options: Any) -> str:
        if options.get("local_files_only"):
            began.release()
            return whole(*args, **options)
        attempts.append(threading.current_thread().name)
        assert others_wait.wait(30)
        if len(attempts) == 1:
            raise RuntimeError("the line is cut")
        return whole(*args, **options)

    spec = ModelSpec(path="org/tiny", commit=COMMIT)
    with stand_in() as hub, ThreadPoolExecutor(4) as ranks:
        point_at(hub, tmp_path / "hub", monkeypatch)
        hub.push("org/tiny", tiny_models["gpt2"], COMMIT)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", first_fails)
        done = [ranks.submit(download, spec) for _ in range(4)]
        for _ in range(5):  # all have looked, and the first once more inside the lock
            assert began.acquire(timeout=30)
        others_wait.set()
        for each in done:
            each.result(30)
    assert len(attempts) == 2, "one fails, one downloads, and two find it there"
    assert "the line is cut" in capsys.readouterr().err


def test_without_locks_every_rank_downloads(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / ".locks").write_text("a file where locks would be")
    with stand_in() as hub:
        point_at(hub, tmp_path / "hub", monkeypatch)
        hub.push("org/tiny", tiny_models["gpt2"], COMMIT)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda **wanted: str(tmp_path))
        download(ModelSpec(path="org/tiny", commit=COMMIT))
    assert "cannot be locked, so that each rank may download 'org/tiny'" in capsys.readouterr().err


def test_an_index_names_the_files_that_have_to_be_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda **wanted: str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'
    )
    (tmp_path / "one.safetensors").touch()
    assert not hub_files._are_here({})
    (tmp_path / "two.safetensors").touch()
    assert hub_files._are_here({})


def test_ranks_go_on_together(tmp_path: Path) -> None:
    store: Any = torch.distributed.HashStore()
    with ThreadPoolExecutor(1) as other:
        waits = other.submit(wait_for_all, RankContext(1, 2, 0, store, tmp_path, "", 1), "here")
        assert not waits.done()
        wait_for_all(RankContext(0, 2, 0, store, tmp_path, "", 1), "here")
        waits.result(30)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pytorch_model.bin", f"'org/tiny' has no safetensors at {COMMIT} on the hub"),
        ("adapter_config.json", "adapter"),
    ],
)
def test_what_a_repository_has_instead_of_a_model_is_said(
    name: str, said: str, tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tmp_path / "files"
    shutil.copytree(tiny_models["gpt2"], files)
    (files / "model.safetensors").unlink()
    (files / name).write_text("{}")
    with stand_in() as hub:
        point_at(hub, tmp_path / "hub", monkeypatch)
        hub.push("org/tiny", files, COMMIT)
        with pytest.raises(ModelError, match=said):
            load_model(ModelSpec(path="org/tiny", commit=COMMIT), torch.float32)
