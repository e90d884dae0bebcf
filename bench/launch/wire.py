"""The wire between a driver and a rank host on another machine: lines of JSON on the host's standard input and output.

docs/inside/wire.md describes each message. Both ends must have the same sources, and the driver compares the hash in
the greeting. The version matters for ends of different revisions, and for ends that others write.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field

from bench.schema.trial import JsonDict, Spec

# An end with another version is refused. A new optional field leaves the version as it is; any other change raises it.
WIRE_VERSION = 1
# The key that tells a greeting from what the login of a machine prints.
GREETING = "tuneoff_host"
# Each end sends a message at least so often.
BEAT_SECONDS = 5.0
# An end gives up the other one after so long without a message.
SILENCE_SECONDS = 120.0
# The most bytes of a file in one answer, before base64.
PIECE_BYTES = 4 * 2**20
BEAT: JsonDict = {"beat": True}


class Greeting(Spec):
    """The first line of a host: its name, sources and devices."""

    tuneoff_host: Literal[1] = 1  # the version of the wire
    sources_sha256: str
    hostname: str
    python: str
    cpus: int
    gpus: list[str] = Field(default_factory=list, description="as CUDA_VISIBLE_DEVICES names them")
    accelerator: str = ""
    processor: str = ""


class Setup(Spec):
    """The first line of a driver, under the key ``setup``: what the ranks on the host get from the driver."""

    wire: Literal[1] = 1
    name: str = Field(description="of the host, in the driver's list")
    paths: list[str] = Field(default_factory=list, description="where Python finds plugins, if the host has them too")
    variables: dict[str, str] = Field(default_factory=dict, description="of the environment")
    module: str | None = Field(None, description="what runs a rank; None: bench.rank.process")


class WireError(Exception):
    """The other end sent a line that breaks the protocol. The message shows it."""


def line_of(message: JsonDict) -> bytes:
    """The line for a message."""
    return json.dumps(message).encode() + b"\n"


def message_of(line: bytes) -> JsonDict:
    """The message of a line.

    Raises:
        WireError: The line is no JSON object.
    """
    try:
        message: Any = json.loads(line)
    except ValueError as error:
        raise WireError(f"no message: {line[:200]!r}") from error
    if not isinstance(message, dict):
        raise WireError(f"no message: {line[:200]!r}")
    return message


def greeting_in(line: bytes) -> JsonDict | None:
    """A greeting of any version; None if the line is something that a login printed."""
    try:
        message = message_of(line)
    except WireError:
        return None
    return message if GREETING in message else None
