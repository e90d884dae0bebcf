"""Runs all checks of the contract on families of tiny models, for ``tuneoff check-method`` and tests."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal

import torch

from bench.conformance.method_checks import CHECKS, PROCESS_CHECK, ContractError, Subject
from bench.conformance.process import OtherProcesses, importable
from bench.conformance.surroundings import put_back
from bench.method import Method, MethodError


@dataclass(frozen=True)
class Verdict:
    """The result of one check on one family. A method that refuses a family in ``patch`` keeps the contract there."""

    check: str
    family: str
    outcome: Literal["pass", "fail", "refused"]
    reason: str = ""


def verdicts(
    method_class: type[Method],
    config: Any,
    families: Iterable[str],
    dtype: torch.dtype = torch.float64,
    processes: int = 2,
) -> Iterator[Verdict]:
    """Run every check on every family, also after failures.

    Changes that a method makes to the process are undone, and its output goes to stderr.

    Args:
        method_class: The method.
        config: Its settings.
        families: Names of tiny models.
        dtype: Of the models.
        processes: The number of other processes whose models are compared; 0 leaves that check out. A class that no
            other process can import is not checked there.
    """
    subjects = [Subject(method_class, config, family, dtype) for family in families]
    refusals = [_refusal(subject) for subject in subjects]
    served = [subject for subject, refusal in zip(subjects, refusals, strict=True) if refusal is None]
    with redirect_stdout(sys.stderr):
        others = OtherProcesses(served if importable(method_class) else [], processes)
    try:
        for subject, refusal in zip(subjects, refusals, strict=True):
            for name, check in CHECKS.items():
                if name != PROCESS_CHECK:
                    yield _verdict(name, subject, refusal, check)
            if processes:
                reason = refusal if importable(method_class) else _out_of_reach(method_class)
                yield _verdict(PROCESS_CHECK, subject, reason, others.check)
    finally:
        others.close()


def _out_of_reach(method_class: type[Method]) -> str:
    return (
        f"another process cannot import {method_class.__module__}:{method_class.__qualname__}; put the class into a "
        "module of its own"
    )


def _verdict(name: str, subject: Subject, refusal: str | None, check: Any) -> Verdict:
    if refusal is not None:
        return Verdict(name, subject.family, "refused", refusal)
    with redirect_stdout(sys.stderr), put_back(subject.base_model()):
        try:
            check(subject)
        except ContractError as error:
            return Verdict(name, subject.family, "fail", str(error))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a stranger's code raises is the reason
            return Verdict(name, subject.family, "fail", f"{type(error).__name__}: {error}")
    return Verdict(name, subject.family, "pass")


def keeps_contract(found: Iterable[Verdict]) -> bool:
    """Whether no check failed and at least one family was not refused."""
    outcomes = {verdict.outcome for verdict in found}
    return "fail" not in outcomes and "pass" in outcomes


def _refusal(subject: Subject) -> str | None:
    """Why the method cannot be applied to this family, in its own words; None if it can."""
    with redirect_stdout(sys.stderr), put_back(subject.base_model()):
        try:
            subject.patched()
        except MethodError as error:
            return str(error)
        except (Exception, SystemExit):  # noqa: BLE001 - the checks meet the same error and report it
            return None
    return None
