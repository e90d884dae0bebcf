"""Numbers in settings are numbers: true is not 1, and infinity is no learning rate."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class StrictNumbers(BaseModel):
    """Base of settings that people write."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        values = value if isinstance(value, list | tuple) else [value]
        if info.field_name is not None and any(isinstance(each, bool) for each in values):
            annotation = cls.model_fields[info.field_name].annotation
            if _holds_numbers(annotation) and not _holds(annotation, bool):
                raise ValueError("true and false are no numbers")
        return value


def _holds_numbers(annotation: Any) -> bool:
    return _holds(annotation, int) or _holds(annotation, float)


def _holds(annotation: Any, kind: type) -> bool:
    """Whether a type is this one, or has it among its members, elements or literals."""
    if annotation is Any or annotation is kind or type(annotation) is kind:
        return True
    return any(_holds(part, kind) for part in get_args(annotation))
