"""Catches what libraries write to standard error while the live display has the terminal.

Ray's core, tokenizers and C libraries write to the descriptor itself, past Python and into the middle of the display.
While it is caught, the descriptor is a pipe, and the display prints the lines that come out of it.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.schema.printable import printable

STANDARD_ERROR = 2
CHUNK_BYTES = 65536
# How long the last lines in the pipe are waited for, before the descriptor is the terminal again.
DRAIN_SECONDS = 1.0
_MARK = b"\x00end of what was caught\x00"


@contextmanager
def caught(say: Callable[[str], None]) -> Iterator[None]:
    """Hand every line that is written to standard error to ``say``, which runs in another thread.

    Processes that inherit the descriptor keep the pipe. A thread reads it as long as this process lives, because a
    broken pipe would end them; their later lines go to standard error unchanged.
    """
    sys.stderr.flush()
    original = os.dup(STANDARD_ERROR)
    read_end, write_end = os.pipe()
    given_back = threading.Event()
    reader = threading.Thread(target=_read, args=(read_end, original, say, given_back), daemon=True)
    dumps = faulthandler.is_enabled()
    os.dup2(write_end, STANDARD_ERROR)
    if dumps:
        faulthandler.enable(original)  # else the stack of a crash would stay in the pipe
    reader.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(original, STANDARD_ERROR)
        if dumps:
            faulthandler.enable()
        os.write(write_end, _MARK)
        os.close(write_end)
        given_back.wait(DRAIN_SECONDS)


def _read(read_end: int, original: int, say: Callable[[str], None], given_back: threading.Event) -> None:
    rest = b""
    while chunk := os.read(read_end, CHUNK_BYTES):
        if given_back.is_set():
            os.write(original, chunk)
            continue
        rest += chunk
        before, mark, after = rest.partition(_MARK)
        *lines, rest = (before if mark else rest).split(b"\n")
        for line in lines:
            say(_seen(line))
        if mark:
            if rest:
                say(_seen(rest))
            given_back.set()
            os.write(original, after)
    os.close(read_end)
    os.close(original)


def _seen(line: bytes) -> str:
    """The line without characters that move the cursor; of a progress bar, its last state."""
    return printable(line.decode(errors="replace").rstrip("\r").rpartition("\r")[2])
