"""Methods on base models in four and eight bits keep the contract as they do elsewhere, or refuse such a model."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from test_contract import DEFAULTS, NEEDS_QUANTIZED, OF_RELATIVES, VARIANTS, named

from bench.conformance.method_checks import CHECKS, PROCESS_CHECK, Subject
from bench.conformance.tiny_models import CORE_FAMILIES, FAMILIES
from bench.method import MethodError
from bench.models.quantization import Storage, quantize
from bench.plugins.registry import load_method, targets

KINDS = ("nf4", "int8")
# Methods that need the weights of the base model as they are, with a part of what they say.
WHOLE_WEIGHTS = {
    **dict.fromkeys(("full", "top_layers", "lisa"), "which are stored in {} here and have no gradient"),
    **dict.fromkeys(("pissa", "olora", "corda", "lora_ga"), "stored in {} cannot be taken apart for a start"),
}
REFUSE = tuple(WHOLE_WEIGHTS)
METHODS = [*DEFAULTS, (NEEDS_QUANTIZED, {}, CORE_FAMILIES)]
# What packed weights can break most easily.
OFTEN = (
    "precisions",
    "every tensor gets a gradient",
    "training computes what evaluation does",
)


def subject(name: str, config: dict[str, Any], family: str, kind: Any) -> Subject:
    method_class = load_method(targets("method")[name])
    return Subject(method_class, method_class.Config(**config), family, quantization=kind)


@pytest.mark.parametrize(
    ("name", "family", "kind", "check"),
    [
        pytest.param(name, family, kind, check, id=f"{name}-{family}-{kind}-{check}")
        for number, (name, _, _) in enumerate(METHODS)
        for check in (*OFTEN, *(OF_RELATIVES[1:3] if name == NEEDS_QUANTIZED else ()))
        for family, kind in [(CORE_FAMILIES[number % 3], KINDS[number % 2])]
        if name not in REFUSE
    ],
)
def test_contract(name: str, family: str, kind: str, check: str) -> None:
    CHECKS[check](subject(name, {}, family, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REFUSE)
def test_what_needs_whole_weights_refuses(name: str, kind: Any) -> None:
    of_kind = subject(name, {}, "llama", kind)
    with pytest.raises(MethodError, match=re.escape(WHOLE_WEIGHTS[name].format(kind))):
        of_kind.patched()
    with torch.device("meta"):
        without_weights = FAMILIES["llama"]().requires_grad_(False)
    quantize(without_weights, Storage(kind))
    with pytest.raises(MethodError, match=re.escape(WHOLE_WEIGHTS[name].format(kind))):
        of_kind.patched(disturbed=False, base=without_weights)


def test_what_needs_quantised_weights_refuses_others() -> None:
    with pytest.raises(MethodError, match=r"these weights are not quantised; set model.quantization, or choose lora"):
        subject(NEEDS_QUANTIZED, {}, "llama", None).patched()


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "config", "family"),
    [
        named(name, config, family)
        for name, config, families in (*METHODS, *VARIANTS)
        for family in CORE_FAMILIES
        if family in families and name not in REFUSE
    ],
)
def test_the_whole_contract(name: str, config: dict[str, Any], family: str, kind: str) -> None:
    broken = {}
    for check in CHECKS.keys() - {PROCESS_CHECK}:
        try:
            CHECKS[check](subject(name, config, family, kind))
        except Exception as error:  # noqa: BLE001 - all that are broken are wanted
            broken[check] = str(error)
    assert broken == {}
