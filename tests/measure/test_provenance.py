"""The hash of sources in a record covers the modules that can change an answer, and no others."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

import bench
import methods
from bench.measure import provenance
from bench.measure.provenance import ANSWERING, sources_sha256

# Imported where answers are made, without a part in them: what writes files, and what forecasts.
WITHOUT_A_PART = {"bench/plan", "bench/store"}

# Prints the hash of a record and that of everything, before and after a line is added to each of the files named.
PRINT_HASHES = """
import sys
from pathlib import Path
from bench.measure.provenance import code_sha256, sources_sha256
for path in [None, *map(Path, sys.argv[1:])]:
    if path is not None:
        path.write_text(path.read_text() + "# another word\\n")
    sources_sha256.cache_clear()
    print(code_sha256(), sources_sha256())
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for package in (bench, methods):
        source = Path(next(iter(package.__path__)))
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.gz", "*.yaml"))
    return folder


def test_a_word_in_a_report_changes_no_hash_of_a_record_and_one_in_training_does(copy: Path) -> None:
    without_a_part = ["bench/report/page.py", "bench/driver/display.py", "bench/launch/hosts.py", "bench/cli.py"]
    with_a_part = ["bench/train/loss.py", "bench/method.py", "methods/lora.py", "methods/parts/blocks.py"]
    printed = subprocess.run(
        [sys.executable, "-c", PRINT_HASHES, *without_a_part, *with_a_part],
        cwd=copy,
        env={"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    hashes = [line.split() for line in printed.splitlines()]
    of_records, of_everything = [one for one, _ in hashes], [one for _, one in hashes]
    assert len(set(of_everything)) == len(hashes), "driver and ranks agree on every file"
    assert len(set(of_records[: 1 + len(without_a_part)])) == 1
    assert len(set(of_records[len(without_a_part) :])) == 1 + len(with_a_part)


def test_all_that_a_rank_imports_is_hashed_or_has_no_part_in_the_answer() -> None:
    graph = grimp.build_graph("bench", "methods", cache_dir=None)
    start = {"bench.rank.trial", *graph.find_descendants("bench.tasks"), *graph.find_descendants("bench.metrics")}
    imported = start.union(*(graph.find_upstream_modules(module) for module in start)) - {"bench"}
    places = {place for module in imported if (place := _place(module)) is not None}
    assert places - set(ANSWERING) <= WITHOUT_A_PART
    assert set(ANSWERING) <= places


def test_sources_that_are_missing_are_an_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"bench/no_such_package: sources of Tuneoff are missing"):
        sources_sha256("bench/no_such_package")


def _place(module: str) -> str | None:
    """How :data:`ANSWERING` would name the part of the program that a module belongs to."""
    parts = module.split(".")
    if parts[0] == "methods":
        return "methods"
    place = "/".join(parts[:2])
    return place if (Path(next(iter(bench.__path__))) / parts[1]).is_dir() else f"{place}.py"


def test_sources_in_somebody_elses_repository_have_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "lib" / "bench" / "measure" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    (tmp_path / ".gitignore").write_text("lib/\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", ".gitignore"], ["commit", "-qm", "theirs"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(provenance, "SOURCE_ROOT", tmp_path / "lib")
    found = provenance.collect("cpu", 1)
    assert (found.git_revision, found.git_dirty) == (None, None)
    for command in (["add", "-f", "lib"], ["commit", "-qm", "ours"]):
        subprocess.run([*git, *command], check=True)
    found = provenance.collect("cpu", 1)
    assert found.git_revision is not None and len(found.git_revision) == 40
    assert found.git_dirty is False
