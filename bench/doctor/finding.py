"""A finding of a check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import model_validator

from bench.schema.trial import Spec

Status = Literal["ok", "warning", "problem"]


class Finding(Spec):
    """One line of the doctor. A problem keeps trials from running; a warning may slow them or blur their numbers."""

    check: str
    status: Status
    found: str
    remedy: str | None = None
    node: str | None = None

    @model_validator(mode="after")
    def _has_remedy(self) -> Finding:
        if (self.status == "ok") != (self.remedy is None):
            raise ValueError("whatever is not ok has a remedy, and nothing else has")
        return self

    def on(self, node: str) -> Finding:
        """The same finding, of a node of a cluster."""
        return self.model_copy(update={"node": node})


def ok(check: str, found: str) -> Finding:
    return Finding(check=check, status="ok", found=found)


def warning(check: str, found: str, remedy: str) -> Finding:
    return Finding(check=check, status="warning", found=found, remedy=remedy)


def problem(check: str, found: str, remedy: str) -> Finding:
    return Finding(check=check, status="problem", found=found, remedy=remedy)


def worst(findings: Sequence[Finding]) -> Status:
    """The worst status among them."""
    found = {finding.status for finding in findings}
    return "problem" if "problem" in found else "warning" if "warning" in found else "ok"
