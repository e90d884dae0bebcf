"""Ctrl-C once finishes cleanly, twice stops now; so does SIGTERM, with which batch systems ask."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stoppable(drain: Callable[[], None], say: Callable[[str], None]) -> Iterator[None]:
    """Within the block, the first Ctrl-C calls ``drain``; the second one and SIGTERM raise KeyboardInterrupt.

    Args:
        drain: Has the work end by itself.
        say: Tells people.
    """
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked or number == signal.SIGTERM:
            raise KeyboardInterrupt
        asked = True
        drain()
        say("finishing the trials that run now, and starting no others; Ctrl-C again stops at once")

    # Also where a shell started the job in the background, which has SIGINT ignored.
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
