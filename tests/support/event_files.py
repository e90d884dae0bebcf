"""Reads what TensorBoard reads."""

from __future__ import annotations

import struct
from pathlib import Path


def scalars(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of an event file by tag. It consists of records: length, checksum, message, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, by_tag, at = path.read_bytes(), {}, 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        for value in event.summary.value:
            if value.HasField("simple_value"):
                by_tag.setdefault(value.tag, []).append((event.step, value.simple_value))
        at += 16 + length
    return by_tag
