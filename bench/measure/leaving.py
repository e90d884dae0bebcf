"""How a process of ours ends once its work is done."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End the process without taking the interpreter apart.

    Threads of Ray and torch outlive everything that we can close, and one that asks for the interpreter's lock while
    it is taken apart crashes the process after all is done (signal 11) or hangs it. By now everything of ours is
    written, released and reported, so nothing is lost by leaving at once; what other packages register with ``atexit``
    does not run.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
