"""The wire between a driver and a rank host on another machine: lines of JSON on the host's standard input and output.

docs/inside/wire.md has the messages one by one. Both ends have the same sources (the driver looks at the hash in the
greeting), so that the version is for those who meet by mistake, and for ends that others write.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field

from bench.schema.trial import JsonDict, Spec

# Another one is refused. A field that may be left out does not raise it; anything else does.
WIRE_VERSION = 1
# What a greeting begins with, so that it is told from what the login of a machine prints.
GREETING = "tuneoff_host"
# Either end sends something at least so often ...
BEAT_SECONDS = 5.0
# ... and takes the other one for dead that has not been heard for so long.
SILENCE_SECONDS = 120.0
# Of a file in one answer, before base64.
PIECE_BYTES = 4 * 2**20
BEAT: JsonDict = {"beat": True}


class Greeting(Spec):
    """First line of a host: who it is, and what it has."""

    tuneoff_host: Literal[1] = 1  # the version of the wire
    sources_sha256: str
    hostname: str
    python: str
    cpus: int
    gpus: list[str] = Field(default_factory=list, description="as CUDA_VISIBLE_DEVICES names them")
    accelerator: str = ""


class Setup(Spec):
    """First line of a driver, under the key ``setup``: what ranks there find beside what the machine has."""

    wire: Literal[1] = 1
    name: str = Field(description="of the host, in the driver's list")
    paths: list[str] = Field(default_factory=list, description="where Python finds plugins, if the host has them too")
    variables: dict[str, str] = Field(default_factory=dict, description="of the environment")
    module: str | None = Field(None, description="what runs a rank; None: bench.rank.process")


class WireError(Exception):
    """The other end said what it should not. The message tells what."""


def line_of(message: JsonDict) -> bytes:
    """A message as it goes over the wire."""
    return json.dumps(message).encode() + b"\n"


def message_of(line: bytes) -> JsonDict:
    """The message of a line.

    Raises:
        WireError: It is none.
    """
    try:
        message: Any = json.loads(line)
    except ValueError as error:
        raise WireError(f"no message: {line[:200]!r}") from error
    if not isinstance(message, dict):
        raise WireError(f"no message: {line[:200]!r}")
    return message


def greeting_in(line: bytes) -> JsonDict | None:
    """A greeting of any version; None for anything else that a machine prints before it."""
    try:
        message = message_of(line)
    except WireError:
        return None
    return message if GREETING in message else None
