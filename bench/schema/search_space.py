"""The settings that a search may vary: ranges and choices. Methods declare theirs, and sweeps may name others.

Imports little of ours, so that both the authors of methods and the specification of sweeps can use it.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from bench.schema.strict_numbers import StrictNumbers


class Range(StrictNumbers):
    """Numbers from ``low`` to ``high``, spaced evenly in their logarithm unless ``log`` is off."""

    low: float
    high: float
    log: bool = True
    extend: bool = Field(True, description="whether a best value on the border may move the border outwards")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} must be positive where log is on")
        return self


class Choices(BaseModel):
    """A few values without an order. YAML has them as a list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: tuple[Any, ...] = Field(min_length=1)


def _bare_list(entry: Any) -> Any:
    return {"values": entry} if isinstance(entry, list | tuple) else entry


def _kind(entry: Any) -> str:
    return "choices" if isinstance(entry, Choices) or (isinstance(entry, dict) and "values" in entry) else "range"


Dimension = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")],
    Discriminator(_kind),
    BeforeValidator(_bare_list),
]
# Dotted key (config.x or train.x, as in a grid) to the values that it may take.
SearchSpace = dict[str, Dimension]
