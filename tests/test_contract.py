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
    ("lora", {"target_modules": "all_linear"}),
    ("adapters", {"placement": "houlsby", "bottleneck_size": 4}),
    ("adapters", {"placement": "parallel", "bottleneck_size": 4}),
    ("top_layers", {"num_layers": 1}),
]

DECODERS = ("gpt2", "llama")
CASES = [
    pytest.param(name, config, family, id=f"{name}-{config}-{family}")
    for name, config in VARIANTS
    for family in (DECODERS if name in ("prefix_tuning", "prompt_tuning") else FAMILIES)
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("name", "config", "family"), CASES)
def test_contract(name: str, config: dict[str, Any], family: str, check: str) -> None:
    method_class = load_method(targets("method")[name])
    CHECKS[check](Subject(method_class, method_class.Config(**config), family))
