"""A wheel has all files of the packages, and a source distribution those of the tests, so that both work alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOP = ("bench", "methods", "tests", "configs", "docs", ".ci")
BUILD = """
from setuptools import build_meta
build_meta.build_sdist("dist")
build_meta.build_wheel("dist")
"""


def files_below(folder: Path, *tops: str) -> set[str]:
    paths = (path for top in tops for path in (folder / top).rglob("*"))
    return {path.relative_to(folder).as_posix() for path in paths if path.is_file() and "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a copy of the sources, with dist/ and the wheel's content in installed/."""
    folder = tmp_path_factory.mktemp("package")
    for top in TOP:
        shutil.copytree(ROOT / top, folder / top, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":  # a file in a worktree
            shutil.copy(path, folder)
    subprocess.run([sys.executable, "-c", BUILD], cwd=folder, check=True, capture_output=True, timeout=200)
    (wheel,) = (folder / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder


def test_the_wheel_has_every_file_of_the_packages(built: Path) -> None:
    expected = files_below(ROOT, "bench", "methods")
    assert {"bench/py.typed", "methods/py.typed", "bench/config/sweeps/quickstart.yaml"} <= expected
    assert files_below(built / "installed", "bench", "methods") == expected
    (metadata,) = (built / "installed").glob("*.dist-info/METADATA")
    assert "pip install" in metadata.read_text(encoding="utf-8")


def test_the_source_distribution_has_what_the_tests_need(built: Path) -> None:
    (path,) = (built / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        packed = {member.name.partition("/")[2] for member in archive.getmembers() if not member.isdir()}
    assert files_below(ROOT, *TOP) - packed == set()
    assert {path.name for path in ROOT.iterdir() if path.is_file() and path.name != ".git"} - packed == set()


def test_an_installed_wheel_knows_its_sweep(built: Path) -> None:
    code = (
        "from bench.config.shipped import sweep_path; from pathlib import Path; print(sweep_path(Path('quickstart')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=built / "docs",
        env={"PYTHONPATH": str(built / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).read_text() == (ROOT / "configs" / "quickstart.yaml").read_text()
    assert done.stdout.startswith(str(built / "installed"))
