"""Files that are whole or not there at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from bench.crash_points import CrashPoint, reached


def write_atomically(path: Path, content: str | bytes, crash_point: CrashPoint | None = None) -> None:
    """Write a file so that it exists whole or not at all, also after a power cut.

    Args:
        path: The file.
        content: All of it; text is written in UTF-8.
        crash_point: Passed when everything is written and has not its name yet.
    """
    temporary = partial_path(path)
    with temporary.open("wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    if crash_point is not None:
        reached(crash_point)
    temporary.replace(path)
    sync_folder(path.parent)


def partial_path(path: Path) -> Path:
    """Where a file is while it is written."""
    return path.with_name(f".{path.name}.partial")


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
