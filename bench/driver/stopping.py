"""Ctrl-C once lets running trials finish; twice stops them, and so does SIGTERM, by which batch systems stop a job."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stoppable(drain: Callable[[], None], say: Callable[[str], None]) -> Iterator[None]:
    """Within the block, the first Ctrl-C calls ``drain``; the second one and SIGTERM raise KeyboardInterrupt.

    Args:
        drain: Starts no more work, so that the block ends by itself.
        say: Shows a message.
    """
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked or number == signal.SIGTERM:
            raise KeyboardInterrupt
        asked = True
        drain()
        say("the trials that run now are finished, and no others are started; Ctrl-C again stops at once")

    # Also where a shell started the job in the background, which has SIGINT ignored.
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
