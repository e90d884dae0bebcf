"""Writes JSON, which has no NaN and no infinity: such numbers become null."""

from __future__ import annotations

import json
import math
from typing import Any


def finite(value: Any) -> Any:
    """A value of JSON in which every number that is not finite is None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [finite(member) for member in value]
    return value


def strict_json(value: Any, indent: int | None = None, separators: tuple[str, str] | None = None) -> str:
    """JSON that every parser reads: letters unescaped, without NaN or Infinity."""
    return json.dumps(finite(value), indent=indent, separators=separators, ensure_ascii=False, allow_nan=False)
