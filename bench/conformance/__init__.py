"""The contract of methods, tasks and metrics, which the tests of a plugin check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.conformance.method_verdicts import Verdict, keeps_contract, verdicts

__all__ = ["Verdict", "keeps_contract", "verdicts"]


def __getattr__(name: str) -> Any:
    """Import the checks of methods when they are first used: they import torch, which checks of metrics do not need."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bench.conformance import method_verdicts

    return getattr(method_verdicts, name)
