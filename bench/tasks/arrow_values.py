"""Converts values of Arrow's columns to Python without lengthening short floats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def exact(value: Any, kind: Any) -> Any:
    """A value of ``to_pylist`` of the Arrow type ``kind``, with short floats in their shortest notation.

    The 32-bit 0.1 would be 0.10000000149011612 as a 64-bit float.
    """
    from pyarrow import types

    if value is None:
        return None
    if types.is_float32(kind) or types.is_float16(kind):
        return _shortest(value, kind.to_pandas_dtype())
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return [exact(item, kind.value_type) for item in value]
    if types.is_struct(kind) and isinstance(value, Mapping):
        return {field.name: exact(value[field.name], field.type) for field in kind}
    return value


def _shortest(value: float, dtype: Any) -> float:
    """The 64-bit float with the fewest digits that rounds to this short float."""
    return float(str(dtype(value)))


def has_short_floats(kind: Any) -> bool:
    """Whether a type holds floats of less than 64 bits, so that :func:`exact` changes anything."""
    from pyarrow import types

    if types.is_nested(kind):
        return any(has_short_floats(kind.field(number).type) for number in range(kind.num_fields))
    return bool(types.is_float32(kind) or types.is_float16(kind))
