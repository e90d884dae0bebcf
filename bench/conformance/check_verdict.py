"""The result of one check of a task or a metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CheckVerdict:
    """The result of one check, with the reason if it warns or fails."""

    check: str
    outcome: Literal["pass", "warn", "fail"]
    reason: str = ""
