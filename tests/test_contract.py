"""Every registered method keeps every point of the contract, on every family of models."""

from __future__ import annotations

from typing import Any

import pytest

from bench.contract import CHECKS, Subject
from bench.registry import load_method, targets
from bench.tiny_models import FAMILIES

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in targets("method")),
    ("prefix_tuning", {"path": "literal"}),
    ("prefix_tuning", {"init": "normal", "num_prompt_tokens": 3}),
    ("prefix_tuning", {"init": "vocabulary", "num_prompt_tokens": 1}),
    ("prompt_tuning", {"init": "normal", "num_prompt_tokens": 3}),
    ("prompt_tuning", {"init": "vocabulary", "num_prompt_tokens": 1}),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("name", "config"), VARIANTS, ids=[f"{name}-{config}" for name, config in VARIANTS])
def test_contract(name: str, config: dict[str, Any], check: str, family: str) -> None:
    method_class = load_method(targets("method")[name])
    CHECKS[check](Subject(method_class, method_class.Config(**config), family))
