"""Copy the part of reports that readers are shown to ``results/exhibits``, which git keeps.

``python -m bench.tools.exhibits [NAME...]`` takes the reports of these sweeps and measurements from
``results/NAME/report``. Without names, it renews every exhibit whose report is there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path("results")
EXHIBITS = RESULTS / "exhibits"
# The rest of a report is made again by `tuneoff report`.
KEPT = ("*.md", "*.json", "results.csv", "figures/pareto-trained.png")
PAGE, PICTURE = "report.html", "page.png"
WINDOW = "1360,1000"


def exhibit(name: str) -> list[Path]:
    """Copy the files of a report that git keeps, and take a picture of its page. Returns the files.

    Raises:
        FileNotFoundError: There is no such report.
    """
    report, destination = RESULTS / name / "report", EXHIBITS / name
    files = sorted(path for pattern in KEPT for path in report.glob(pattern) if not path.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"{report}: no report is there; run the sweep or the measurement first")
    destination.mkdir(parents=True, exist_ok=True)
    kept = [Path(shutil.copyfile(path, destination / path.name)) for path in files]
    if (report / PAGE).is_file():
        kept.append(_picture(report / PAGE, destination / PICTURE))
    return kept


def _picture(page: Path, picture: Path) -> Path:
    """The first screen of a page.

    Raises:
        FileNotFoundError: Chromium is not installed.
    """
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking"]
        command = ["chromium", *flags, f"--user-data-dir={profile}", f"--window-size={WINDOW}"]
        subprocess.run(
            [*command, f"--screenshot={picture.resolve()}", page.resolve().as_uri()], check=True, capture_output=True
        )
    return picture


def main() -> None:
    """Renew the exhibits that the command line names."""
    names = sys.argv[1:] or sorted(
        path.name for path in EXHIBITS.iterdir() if (RESULTS / path.name / "report").is_dir()
    )
    for name in names:
        for path in exhibit(name):
            sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
