"""Access to Ray clusters: a remote cluster is joined only with a token. Imports no ray.

A Ray cluster runs whatever code it is sent, so one without a token belongs to everybody who can reach it. Ray reads its
settings when it is imported; :func:`ask_for_token` therefore comes before that.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import stat
import subprocess
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.schema.validation import ConfigError

CONNECT_TIMEOUT_SECONDS = 5.0
PROBE_TIMEOUT_SECONDS = 60.0
CLIENT_SCHEME = "ray://"
WHERE_TOKENS_ARE = (
    "set RAY_AUTH_TOKEN_PATH to a file with the cluster's token (on its head node, `ray get-auth-token` prints it)"
)

Answer = Literal["accepted", "refused", "failed"]

# Asks the cluster's control store for its nodes, with the token that the environment names.
PROBE = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10)
except AuthenticationError:
    print("refused")
else:
    print("accepted")
"""


@dataclass(frozen=True)
class Address:
    """The address of a cluster: ``auto``, ``host:port`` of the control store, or ``ray://host:port`` of the client."""

    text: str
    host: str
    port: int

    @property
    def through_client(self) -> bool:
        return self.text.startswith(CLIENT_SCHEME)

    @property
    def is_local(self) -> bool:
        """Whether the host is this machine, so that the address cannot lead to a stranger's cluster by mistake."""
        try:
            found = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)
        except OSError:
            return False
        for family, kind, protocol, _, place in found:
            try:
                with socket.socket(family, kind, protocol) as probe:
                    probe.bind((place[0], 0))
            except OSError:
                return False
        return bool(found)


def joined_address(text: str) -> str:
    """The address for Ray, after checking that the cluster answers and accepts our token.

    Raises:
        ConfigError: It cannot be joined.
    """
    address = parse_address(text)
    ask_for_token(address)
    check_reachable(address)
    return address.text


def parse_address(text: str) -> Address:
    """Read ``--address``.

    Raises:
        ConfigError: It is none of the three forms, or ``auto`` and no cluster is known here.
    """
    if text == "auto":
        return parse_address(_announced())
    host, colon, port = text.removeprefix(CLIENT_SCHEME).rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536 or "/" in host:
        raise ConfigError(f"--address {text}: expected auto, host:port or ray://host:port")
    return Address(text, host.strip("[]"), int(port))


def _announced() -> str:
    """The cluster that ``auto`` means: RAY_ADDRESS, else the one that was started last on this machine."""
    if (named := os.environ.get("RAY_ADDRESS")) and named != "auto":
        return named
    file = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
    if file.is_file() and (text := file.read_text().strip()):
        return text
    raise ConfigError(
        f"--address auto: RAY_ADDRESS is not set and no cluster was started on this machine ({file} is not there); "
        "start one with `ray start`, or leave --address out for an embedded one"
    )


def token_file(environment: MutableMapping[str, str] = os.environ) -> Path:
    """The file in which Ray looks for a token, unless RAY_AUTH_TOKEN has one."""
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    return Path(named) if named else Path("~/.ray/auth_token").expanduser()


def has_token(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether there is a token."""
    file = token_file(environment)
    return bool(environment.get("RAY_AUTH_TOKEN", "").strip()) or (file.is_file() and bool(file.read_text().strip()))


def ask_for_token(address: Address, environment: MutableMapping[str, str] = os.environ) -> None:
    """Make Ray present the token. Without a token, no cluster of another machine is joined.

    ``RAY_AUTH_MODE=disabled``, set by the user, is respected: it says that the cluster is open and that this is meant.

    Raises:
        ConfigError: Telling where to put the token.
    """
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return
    if has_token(environment):
        environment["RAY_AUTH_MODE"] = "token"
    elif mode == "token" or not address.is_local:
        raise ConfigError(
            f"--address {address.text}: no token for this cluster; {WHERE_TOKENS_ARE}, or set RAY_AUTH_MODE=disabled "
            "if it has none and its network is yours alone"
        )


def check_reachable(address: Address) -> None:
    """Check within seconds that the cluster can be joined, for which Ray would take a minute.

    Raises:
        ConfigError: Nobody listens there, the token is refused, or Ray's client is not installed.
    """
    if address.through_client and not has_client():
        raise ConfigError(f"--address {address.text} needs Ray's client: pip install 'ray[client]'")
    try:
        socket.create_connection((address.host, address.port), CONNECT_TIMEOUT_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"--address {address.text}: nothing answers there ({error}); "
            "`ray status` on a node of the cluster shows whether it runs"
        ) from error
    if not address.through_client and probe(address, os.environ) == "refused":
        raise ConfigError(f"--address {address.text}: the cluster refuses the token; {WHERE_TOKENS_ARE}")


def probe(address: Address, environment: MutableMapping[str, str]) -> Answer:
    """The answer of the control store to a client with this environment, which is a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROBE, f"{address.host}:{address.port}"],
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "failed"
    said = done.stdout.strip().splitlines()[-1:]
    return "refused" if said == ["refused"] else "accepted" if said == ["accepted"] else "failed"


def has_client() -> bool:
    """Whether Ray's client, for ``ray://``, is installed."""
    return importlib.util.find_spec("grpc") is not None


def readable_by_others(file: Path) -> bool:
    """Whether other users could read a token."""
    return bool(file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
