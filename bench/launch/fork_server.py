"""A process that has imported the libraries once and forks one fresh process for each rank.

It never runs a trial and never uses a GPU, so that nothing of one trial reaches another. What a rank saves is the
import of torch, transformers and DeepSpeed. Each fork becomes the keeper (:mod:`bench.launch.keeper`) of a second one,
which is the rank.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from bench.launch.keeper import become_subreaper, script
from bench.measure.provenance import collect
from bench.rank.process import import_libraries, serve

# Lifeline of the keeper, standard input, pipe for reports, log.
NUM_DESCRIPTORS = 4
MAX_REQUEST_BYTES = 2**16
# /proc/self/pagemap: one 8-byte entry for each page, whose highest bit says that the page is mapped.
PAGEMAP_ENTRY_BYTES = 8


def main() -> None:
    """Entry of the process. The argument is the descriptor of a socket on which requests arrive."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    import_libraries()
    collect("", None)  # asks git for the revision, once
    pages = mapped_file_pages()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, NUM_DESCRIPTORS)
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            _become_keeper(json.loads(request), descriptors, pages)
        for descriptor in descriptors:
            os.close(descriptor)


def _become_keeper(environment: Mapping[str, str], descriptors: Sequence[int], pages: Sequence[int]) -> NoReturn:
    """Fork the rank, and replace this copy of the server by its keeper."""
    try:
        lifeline, jobs, reports, log = descriptors
        os.setsid()
        become_subreaper()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        child = os.fork()
        if child == 0:
            os.close(lifeline)
            _become_rank(environment, jobs, reports, log, pages)
        for kept in (lifeline, reports):
            os.set_inheritable(kept, True)
        os.execv(sys.executable, [*script(lifeline), "--tell-exit", str(reports), "--adopt", str(child)])
    finally:
        os._exit(1)


def _become_rank(environment: Mapping[str, str], jobs: int, reports: int, log: int, pages: Sequence[int]) -> NoReturn:
    exit_code = 1
    try:
        os.dup2(jobs, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(environment)
        touch(pages)
        serve(sys.stdin, reports)
        exit_code = 0
    except BaseException:  # noqa: BLE001 - the traceback of any exception belongs into the rank's log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def mapped_file_pages() -> list[int]:
    """Addresses of the pages of files, mostly of libraries, that this process has mapped."""
    found: list[int] = []
    if sys.platform != "linux":
        return found
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, permissions, _, device, *_ = line.split()
            if device == "00:00" or not permissions.startswith("r"):
                continue
            start, end = (int(address, 16) for address in span.split("-"))
            pagemap.seek(start // mmap.PAGESIZE * PAGEMAP_ENTRY_BYTES)
            entries = pagemap.read((end - start) // mmap.PAGESIZE * PAGEMAP_ENTRY_BYTES)
            # The last byte of an entry has its highest bits.
            found.extend(
                start + number * mmap.PAGESIZE
                for number, high in enumerate(entries[PAGEMAP_ENTRY_BYTES - 1 :: PAGEMAP_ENTRY_BYTES])
                if high & 0x80
            )
    return found


def touch(pages: Sequence[int]) -> None:
    """Map pages that a fork leaves unmapped, so that this process uses as much memory as one without a fork."""
    for address in pages:
        ctypes.string_at(address, 1)


if __name__ == "__main__":
    main()
