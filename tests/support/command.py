"""What a command of ``tuneoff`` printed and how it ended (the fixture ``tuneoff`` gives it), and what it started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Done:
    """The end of a command."""

    returncode: int
    stdout: str
    stderr: str


def processes_with(tag: str) -> list[int]:
    """Ids of the processes whose environment holds the tag: a command that was given it, and all that it started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if tag.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
