"""The files of a report that are committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.tools.exhibits import PictureError, exhibit, main


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "sweep" / "report"
    (folder / "figures").mkdir(parents=True)
    for name in (
        ".made_from.json",
        "report.md",
        "report.json",
        "results.csv",
        "report.tex",
        "results.parquet",
        "figures/time.svg",
        "figures/pareto-trained.png",
    ):
        (folder / name).write_text(name)
    return folder


def test_tables_are_kept_and_what_a_report_makes_again_is_not(report: Path) -> None:
    kept = exhibit("sweep")
    assert [path.as_posix() for path in kept] == [
        "results/exhibits/sweep/pareto-trained.png",
        "results/exhibits/sweep/report.json",
        "results/exhibits/sweep/report.md",
        "results/exhibits/sweep/results.csv",
    ]
    assert Path("results/exhibits/sweep/report.md").read_text() == "report.md"


def test_without_names_those_are_renewed_that_have_an_exhibit_and_a_report(
    report: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["exhibits"])
    for name in ("sweep", "without_a_report"):
        Path("results/exhibits", name).mkdir(parents=True)
    main()
    assert capsys.readouterr().out.split() == [
        f"results/exhibits/sweep/{name}" for name in ("pareto-trained.png", "report.json", "report.md", "results.csv")
    ]


@pytest.fixture
def shown(report: Path) -> Path:
    """The exhibit of an earlier report; the new one has a page."""
    (report / "report.html").write_text("<html>")
    folder = Path("results/exhibits/sweep")
    folder.mkdir(parents=True)
    for name in ("report.md", "page.png"):
        (folder / name).write_text("earlier")
    return folder


def test_without_chromium_the_exhibit_stays_whole_and_the_message_names_the_package(
    shown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["exhibits", "sweep"])
    with pytest.raises(SystemExit, match=r"report\.html: .* install chromium \(Debian: apt-get install chromium\)"):
        main()
    assert {path.name: path.read_text() for path in shown.iterdir()} == {"report.md": "earlier", "page.png": "earlier"}


@pytest.mark.parametrize("works", [True, False])
def test_a_picture_goes_with_the_numbers_or_nothing_does(
    works: bool, shown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chromium = tmp_path / "chromium"
    take = 'case $word in --screenshot=*) echo new > "${word#*=}";; esac'
    chromium.write_text(f"#!/bin/sh\nfor word; do {take if works else 'true'}; done\necho 'no screen' >&2\n")
    chromium.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if works:
        assert shown / "page.png" in exhibit("sweep")
        assert [(shown / name).read_text().strip() for name in ("page.png", "report.md")] == ["new", "report.md"]
    else:
        with pytest.raises(PictureError, match="takes no picture of it, and nothing was copied: no screen"):
            exhibit("sweep")
        assert (shown / "report.md").read_text() == "earlier"


def test_without_a_report_there_is_nothing_to_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"results/nothing/report: no report is there; run the sweep"):
        exhibit("nothing")
