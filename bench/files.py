"""Files that are whole or not there at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from bench.crash_points import CrashPoint, reached


def write_atomically(path: Path, text: str, crash_point: CrashPoint | None = None) -> None:
    """Write a file so that it exists whole or not at all, also after a power cut.

    Args:
        path: The file.
        text: All of its content.
        crash_point: Passed when everything is written and has not its name yet.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if crash_point is not None:
        reached(crash_point)
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
