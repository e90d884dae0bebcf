"""Paths in the short form of shells: ``~`` is the user's home."""

from __future__ import annotations

from pathlib import Path


def with_home(path: str | Path) -> Path:
    """The path with ``~`` and ``~name`` in full; as it is if there is nobody of that name, so that no file is found."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
