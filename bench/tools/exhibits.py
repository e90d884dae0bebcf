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


class PictureError(RuntimeError):
    """No picture of a page can be taken."""


def exhibit(name: str) -> list[Path]:
    """Copy the files of a report that git keeps, and take a picture of its page. Returns the files.

    Without the picture nothing is copied, so that no picture stands beside numbers that are newer.

    Raises:
        FileNotFoundError: There is no such report.
        PictureError: The report has a page, and no picture of it can be taken.
    """
    report, destination = RESULTS / name / "report", EXHIBITS / name
    files = sorted(path for pattern in KEPT for path in report.glob(pattern) if not path.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"{report}: no report is there; run the sweep or the measurement first")
    with tempfile.TemporaryDirectory() as folder:
        if (report / PAGE).is_file():
            files.append(_picture(report / PAGE, Path(folder) / PICTURE))
        destination.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copyfile(path, destination / path.name)) for path in files]


def _picture(page: Path, picture: Path) -> Path:
    """The first screen of a page.

    Raises:
        PictureError: Chromium is not installed, or takes none.
    """
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking"]
        command = ["chromium", *flags, f"--user-data-dir={profile}", f"--window-size={WINDOW}"]
        command += [f"--screenshot={picture.resolve()}", page.resolve().as_uri()]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True)
        except FileNotFoundError as error:
            remedy = "install chromium (Debian: apt-get install chromium) and try again; nothing was copied"
            raise PictureError(f"{page}: its picture is taken with chromium, which is not there; {remedy}") from error
    if done.returncode or not picture.is_file():
        raise PictureError(f"{page}: chromium takes no picture of it, and nothing was copied: {done.stderr.strip()}")
    return picture


def main() -> None:
    """Renew the exhibits that the command line names."""
    names = sys.argv[1:] or sorted(
        path.name for path in EXHIBITS.iterdir() if (RESULTS / path.name / "report").is_dir()
    )
    for name in names:
        try:
            kept = exhibit(name)
        except (FileNotFoundError, PictureError) as error:
            sys.exit(str(error))
        sys.stdout.write("".join(f"{path}\n" for path in kept))


if __name__ == "__main__":
    main()
