"""What a command of ``tuneoff`` printed and how it ended; the fixture ``tuneoff`` gives it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Done:
    """The end of a command."""

    returncode: int
    stdout: str
    stderr: str
