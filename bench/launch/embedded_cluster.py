"""A Ray cluster of this machine alone, for one driver: it ends with its driver, whatever happens to either.

Imports no ray: the cluster starts while the driver imports it. Ray reads the variables set here when it is imported.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from bench.launch.keeper import KeptProcess

OBJECT_STORE_BYTES = 256 * 1024**2
START_TIMEOUT_SECONDS = 120.0
# Ray's sockets lie 72 characters below its folder, and a socket's path has at most 107.
MAX_FOLDER_CHARACTERS = 32


class ClusterError(RuntimeError):
    """The embedded Ray cluster did not start."""


class EmbeddedCluster:
    """Ray's processes under a keeper, with a token of their own and without a dashboard."""

    def __init__(self) -> None:
        temporary = tempfile.gettempdir()
        folder = tempfile.mkdtemp(
            prefix="tuneoff-", dir=temporary if len(temporary) < MAX_FOLDER_CHARACTERS else "/tmp"
        )
        self._folder = Path(folder)  # for this user alone; Ray opens its own folder within to everybody
        self._printed = (self._folder / "start.log").open("w+", errors="replace")
        self._kept = KeptProcess(
            _start_command(self._folder),
            self._environment(),
            flags=["--hold", "--remove", str(self._folder)],
            cwd=self._folder,  # a folder without modules
            stdin=subprocess.DEVNULL,
            stdout=self._printed,
            stderr=subprocess.STDOUT,
        )

    def _environment(self) -> Mapping[str, str]:
        token = self._folder / "auth_token"
        with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's processes are on this machine alone, so that a proxy of the environment would only disturb them.
        os.environ["RAY_grpc_enable_http_proxy"] = "0"  # noqa: SIM112 - Ray spells it so
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        # Ray's workers and the ranks have their temporary folders in this one, and these vanish with it.
        temporary = self._folder / "tmp"
        temporary.mkdir()
        return {**inherited, "TMPDIR": str(temporary)}

    def address(self) -> str:
        """Where the cluster listens. Waits until it does.

        Raises:
            ClusterError: It did not start, with what it printed.
        """
        announced = self._folder / "ray" / "ray_current_cluster"
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not (announced.is_file() and (address := announced.read_text().strip())):
            if self._kept.process.poll() is not None or time.monotonic() > deadline:
                self._kept.end()
                self._printed.seek(0)
                printed = self._printed.read().strip()
                self._printed.close()
                raise ClusterError(f"Ray did not start on this machine:\n{printed}")
            time.sleep(0.02)
        return address

    def end(self) -> None:
        """End all of the cluster's processes, with their temporary files; returns when none is left."""
        self._kept.end()
        self._printed.close()


def _start_command(folder: Path) -> list[str]:
    # Where Ray's client is installed, Ray would open a port for it, and refuses the option where it is not.
    without_client = ["--ray-client-server-port=0"] if importlib.util.find_spec("grpc") else []
    return [
        *[sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--port=0", "--disable-usage-stats"],
        *["--include-dashboard=false", "--no-monitor", "--include-log-monitor=false", *without_client],
        *[f"--object-store-memory={OBJECT_STORE_BYTES}", f"--temp-dir={folder / 'ray'}"],
    ]
