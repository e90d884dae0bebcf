"""A stand-in for ssh and sshd: a command runs in a separate process tree, and only bytes are exchanged.

``far_machine.py serve SOCKET FOLDER NAME=VALUE...`` runs what it is asked for in a folder, with these variables alone;
``far_machine.py call SOCKET HOST WORDS...`` asks it, and relays standard input and output, as ssh does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

CHUNK_BYTES = 65536


def serve(path: str, folder: str, variables: Mapping[str, str]) -> None:
    """Run a shell with each line that a caller sends first, its standard streams being the connection."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            caller, _ = listener.accept()
            with caller:
                line = b""
                while not line.endswith(b"\n"):
                    line += caller.recv(1)
                environment = {"PATH": os.environ["PATH"], **variables}
                subprocess.Popen(
                    ["sh", "-c", line.decode()],
                    stdin=caller,
                    stdout=caller,
                    env=environment,
                    cwd=folder,
                    start_new_session=True,
                )


def call(path: str, host: str, words: list[str]) -> None:
    """Relay bytes until the other end has said everything."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(f"export FAR_HOST={host}; exec {' '.join(words)}\n".encode())
        threading.Thread(target=_send, args=(connection,), daemon=True).start()
        while chunk := connection.recv(CHUNK_BYTES):
            os.write(1, chunk)


def _send(connection: socket.socket) -> None:
    while chunk := os.read(0, CHUNK_BYTES):
        connection.sendall(chunk)
    connection.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def far_machine(folder: Path, **variables: str) -> Iterator[str]:
    """A machine for the block; yields the command that runs a program on it, under the name of any host."""
    path = folder / "far"
    there = [sys.executable, __file__, "serve", str(path), str(folder), *(f"{k}={v}" for k, v in variables.items())]
    server = subprocess.Popen(there)
    try:
        while not path.exists():
            time.sleep(0.01)
        yield f"{sys.executable} {__file__} call {path} {{host}}"
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3], dict(word.split("=", 1) for word in sys.argv[4:]))
    else:
        call(sys.argv[2], sys.argv[3], sys.argv[4:])
