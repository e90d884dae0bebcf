"""The files of a report that are committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.tools.exhibits import exhibit, main


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


def test_without_a_report_there_is_nothing_to_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"results/nothing/report: no report is there; run the sweep"):
        exhibit("nothing")
