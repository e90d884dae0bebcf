"""Refuses truth values, infinities and whole numbers that computers do not count to where a setting is a number."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

# Of whole numbers: that of 64 bits, in which torch and files have them.
LARGEST = 2**63 - 1


class StrictNumbers(BaseModel):
    """Base of settings that people write."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        values = value if isinstance(value, list | tuple) else (value,)
        if info.field_name not in _numeric_fields(cls):
            return value
        if any(each is True or each is False for each in values):
            raise ValueError("true and false are no numbers")
        if any(isinstance(each, int) and abs(each) > LARGEST for each in values):
            raise ValueError(f"no number here is beyond {LARGEST:,}")
        return value


@cache
def _numeric_fields(model: type[BaseModel]) -> frozenset[str]:
    """The fields that take numbers and no truth values."""
    fields = {name: field.annotation for name, field in model.model_fields.items()}
    return frozenset(
        name
        for name, annotation in fields.items()
        if (_holds(annotation, int) or _holds(annotation, float)) and not _holds(annotation, bool)
    )


def _holds(annotation: Any, kind: type) -> bool:
    """Whether a type is this one, or has it among its members, elements or literals."""
    if annotation is Any or annotation is kind or type(annotation) is kind:
        return True
    return any(_holds(part, kind) for part in get_args(annotation))
