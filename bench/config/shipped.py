"""Sweeps that come with Tuneoff and are called by their name, wherever it is installed."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "sweeps"


def shipped_sweeps() -> list[str]:
    """Their names."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def sweep_path(named: Path) -> Path:
    """The file of a sweep: the one that is named, or that of a sweep which comes with Tuneoff."""
    if str(named) in shipped_sweeps() and not named.is_file():
        return FOLDER / f"{named}.yaml"
    return named
