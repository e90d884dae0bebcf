"""The contract over all checks and families of tiny models: what ``tuneoff check-method`` and our tests run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from bench.contract import CHECKS, ContractError, Subject
from bench.method import Method, MethodError


@dataclass(frozen=True)
class Verdict:
    """What one check found on one family. A method that refuses a family in ``patch`` keeps the contract there."""

    check: str
    family: str
    outcome: Literal["pass", "fail", "refused"]
    reason: str = ""


def verdicts(
    method_class: type[Method], config: Any, families: Iterable[str], dtype: torch.dtype = torch.float64
) -> Iterator[Verdict]:
    """Run every check on every family; a failure of one does not keep the others from running."""
    for family in families:
        subject = Subject(method_class, config, family, dtype)
        refusal = _refusal(subject)
        for name, check in CHECKS.items():
            if refusal is not None:
                yield Verdict(name, family, "refused", refusal)
                continue
            try:
                check(subject)
            except ContractError as error:
                yield Verdict(name, family, "fail", str(error))
            except Exception as error:  # noqa: BLE001 - whatever a stranger's code raises is the reason of a failure
                yield Verdict(name, family, "fail", f"{type(error).__name__}: {error}")
            else:
                yield Verdict(name, family, "pass")


def keeps_contract(found: Iterable[Verdict]) -> bool:
    """No check failed, and at least one family was not refused."""
    outcomes = {verdict.outcome for verdict in found}
    return "fail" not in outcomes and "pass" in outcomes


def _refusal(subject: Subject) -> str | None:
    """Why the method cannot be applied to this family, in its own words; None if it can."""
    try:
        subject.patched()
    except MethodError as error:
        return str(error)
    except Exception:  # noqa: BLE001 - the checks run into it again, and tell
        return None
    return None
