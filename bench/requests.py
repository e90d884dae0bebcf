"""How another terminal asks the driver of a sweep for something: by a file in the results folder."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from bench.files import write_atomically
from bench.spec import Spec

REQUESTS_FOLDER = ".requests"


class CancelRequest(Spec):
    """Ends one trial, or all that have no record."""

    trial_id: str | None


class Requests:
    """The requests to the driver of one sweep.

    Args:
        root: ``<results>/<sweep>``.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / REQUESTS_FOLDER

    def make(self, request: CancelRequest) -> Path:
        """Leave a request. The file is there until it is answered."""
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"{uuid.uuid4().hex}.json"
        write_atomically(path, request.model_dump_json())
        return path

    def take(self) -> Iterator[CancelRequest]:
        """All requests so far; each counts as answered when the next one is asked for."""
        if not self._folder.is_dir():
            return
        for path in sorted(self._folder.glob("*.json")):
            try:
                yield CancelRequest.model_validate_json(path.read_text())
            except (OSError, ValidationError):
                continue
            finally:
                path.unlink(missing_ok=True)
