"""Requests of another terminal to the driver of a sweep, which are files in the results folder."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path

from pydantic import Field, ValidationError

from bench.schema.trial import Spec
from bench.store.files import make_folder, write_atomically

REQUESTS_FOLDER = ".requests"
ANSWER_SUFFIX = ".answer"
POLL_SECONDS = 0.1


class CancelRequest(Spec):
    """Asks for the end of one trial, or of all that have no record."""

    trial_id: str | None


class Answer(Spec):
    """Says what the driver did."""

    cancelled: int = Field(description="trials that ran or waited before the request and end now")


class Requests:
    """The requests to the driver of one sweep.

    Args:
        root: ``<results>/<sweep>``.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / REQUESTS_FOLDER

    def ask(self, request: CancelRequest, timeout_seconds: float) -> Answer | None:
        """Leave a request and wait for the answer; None if there is none in time, and then the request is withdrawn."""
        make_folder(self._folder)
        path = self._folder / f"{uuid.uuid4().hex}.json"
        answer = path.with_suffix(ANSWER_SUFFIX)
        deadline = time.monotonic() + timeout_seconds
        write_atomically(path, request.model_dump_json())
        try:
            while not answer.exists():
                if time.monotonic() > deadline:
                    return None
                time.sleep(POLL_SECONDS)
            return Answer.model_validate_json(answer.read_text())
        finally:
            path.unlink(missing_ok=True)
            answer.unlink(missing_ok=True)

    def serve(self, obey: Callable[[CancelRequest], Answer]) -> None:
        """Obey all requests so far."""
        if not self._folder.is_dir():
            return
        for path in sorted(self._folder.glob("*.json")):
            try:
                request = CancelRequest.model_validate_json(path.read_text())
            except (OSError, ValidationError):
                continue  # withdrawn, or no request of ours
            write_atomically(path.with_suffix(ANSWER_SUFFIX), obey(request).model_dump_json())
            path.unlink(missing_ok=True)
