"""What one check of a task or a metric found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CheckVerdict:
    """Name of the check, and what came of it."""

    check: str
    outcome: Literal["pass", "warn", "fail"]
    reason: str = ""
