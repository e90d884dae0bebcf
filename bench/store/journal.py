"""The journal of a sweep: one JSON object a line for each event, with a checksum. One driver at a time writes it.

The records are the truth. The journal says which attempt of a trial is the current one, and tells people and tools what
happened when.
"""

from __future__ import annotations

import errno
import json
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from bench.schema.trial import JsonDict


class Journal:
    """Appends to a file and reads it back.

    Args:
        path: ``<results>/<sweep>/journal.jsonl``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **details: object) -> None:
        """Write an event so that it survives a power cut."""
        entry = {"time": round(time.time(), 3), "event": event, **details}
        line = json.dumps({**entry, "crc32": _checksum(entry)}) + "\n"
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                line = "\n" + line  # A crash tore the last line. It stays on a line of its own, which readers skip.
            data = line.encode()
            if os.write(file, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(file)
        finally:
            os.close(file)

    def events(self) -> Iterator[JsonDict]:
        """All events in order. Lines that a crash has torn are left out."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                    checksum = entry.pop("crc32")
                except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
                    continue
                if checksum == _checksum(entry):
                    yield entry


def _checksum(entry: JsonDict) -> str:
    return f"{zlib.crc32(json.dumps(entry, sort_keys=True).encode()):08x}"
