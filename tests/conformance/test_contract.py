"""Every registered method keeps every point of the contract, on every family of models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from bench.conformance import verdicts
from bench.conformance.method_checks import CHECKS, PROCESS_CHECK, Subject
from bench.conformance.process import OtherProcesses
from bench.conformance.tiny_models import CORE_FAMILIES, FAMILIES
from bench.plugins.registry import load_method, targets

SOFT_PROMPTS = ("prefix_tuning", "prompt_tuning")
DECODERS = tuple(family for family in FAMILIES if family not in ("t5", "bart"))
# Families whose learned positions a soft prompt can shift.
ABSOLUTE = ("gpt2", "opt")

# The checks that other settings than the defaults break most easily. `make test` runs only these on such settings.
OF_VARIANTS = (
    "causal",
    "padding changes nothing",
    "cached logits",
    "beams share a row",
    "only what is declared is trained",
    "gradients are derivatives",
    "gradient checkpointing",
    "state reloads",
    "state is the method's own",
    "lanes do not meet",
    "counts",
)

# Of these families nothing but attention differs from Llama: a window, biases, norms of queries and keys.
LIKE_LLAMA = ("mistral", "qwen2", "qwen3")
OF_ATTENTION = (
    "causal",
    "padding changes nothing",
    "cached logits",
    "beams share a row",
    "gradients are derivatives",
    "gradient checkpointing",
)

# The checks that `make test` runs on those core families on which it does not run all checks of a method.
OF_OTHER_FAMILIES = ("causal", "padding changes nothing", "cached logits", "gradient checkpointing", "state reloads")

# Relatives of LoRA share its layer and its code: on them `make test` runs what can differ.
NEEDS_QUANTIZED = "loftq"  # it refuses other base models; test_quantized_contract.py tries it
RELATIVES = ("rslora", "lora_plus", "lora_fa", "dora", "pissa", "olora", "eva", "corda", "lora_ga")
OF_RELATIVES = ("start from examples", "only what is declared is trained", "state reloads", "merging changes nothing")

# Settings other than the defaults, with their families.
VARIANTS: list[tuple[str, dict[str, Any], Iterable[str]]] = [
    ("prefix_tuning", {"path": "literal"}, FAMILIES),
    ("prefix_tuning", {"init": "normal", "num_prompt_tokens": 3}, FAMILIES),
    ("prefix_tuning", {"init": "vocabulary", "num_prompt_tokens": 1}, FAMILIES),
    ("prefix_tuning", {"layers": [-1]}, FAMILIES),
    ("prefix_tuning", {"parametrization": "key_value"}, FAMILIES),
    ("prefix_tuning", {"parametrization": "key_value", "shift_positions": True}, DECODERS),
    ("prefix_tuning", {"parametrization": "mlp", "mlp_hidden_size": 16}, FAMILIES),
    ("prefix_tuning", {"parametrization": "mlp", "init": "normal", "layers": [0]}, FAMILIES),
    ("prefix_tuning", {"shift_positions": True}, ABSOLUTE),
    ("prefix_tuning", {"infix": True}, DECODERS),
    ("prefix_tuning", {"infix": True, "path": "literal"}, DECODERS),
    ("prefix_tuning", {"infix": True, "shift_positions": True, "parametrization": "key_value"}, DECODERS),
    ("prompt_tuning", {"init": "normal", "num_prompt_tokens": 3}, FAMILIES),
    ("prompt_tuning", {"init": "vocabulary", "num_prompt_tokens": 1}, FAMILIES),
    ("prompt_tuning", {"init": "labels", "init_labels": ["family friendly", "price"]}, FAMILIES),
    ("prompt_tuning", {"init": "uniform"}, FAMILIES),
    ("prompt_tuning", {"infix": True, "num_prompt_tokens": 3}, DECODERS),
    ("lora", {"target_modules": "all_linear"}, FAMILIES),
    ("adapters", {"placement": "houlsby", "bottleneck_size": 4}, FAMILIES),
    ("adapters", {"placement": "parallel", "bottleneck_size": 4}, FAMILIES),
    ("top_layers", {"num_layers": 1}, FAMILIES),
    ("llama_adapter", {"num_layers": 2, "num_prompt_tokens": 3}, FAMILIES),
    ("lisa", {"num_layers": 1, "every_steps": 2}, FAMILIES),
    ("loreft", {"rank": 3, "first": 2, "last": 1, "tied": False}, FAMILIES),
    ("mam", {"parametrization": "key_value", "num_prompt_tokens": 3, "bottleneck_size": 4}, FAMILIES),
    ("hf_peft", {"peft_type": "LORA", "target_modules": "all-linear"}, FAMILIES),
]


def named(name: str, config: dict[str, Any], family: str, *rest: str) -> Any:
    """A parameter of a test."""
    return pytest.param(name, config, family, *rest, id="-".join((name, str(config), family, *rest)))


DEFAULTS: list[tuple[str, dict[str, Any], Iterable[str]]] = [
    (name, {}, FAMILIES)
    for name in targets("method")
    if name not in ("hf_peft", NEEDS_QUANTIZED)  # the first has no default
]
IN_PROCESS = [check for check in CHECKS if check != PROCESS_CHECK]
# Every method takes every check on one of the core families, in turn, and soft prompts on all three; elsewhere the
# checks that break most easily.
OFTEN = [
    *(
        named(name, {}, family, check)
        for number, (name, _, _) in enumerate(DEFAULTS)
        for family in FAMILIES
        for check in IN_PROCESS
        if (name not in RELATIVES or (check in OF_RELATIVES and family in CORE_FAMILIES))
        if (name in RELATIVES)
        or (family in CORE_FAMILIES and (name in SOFT_PROMPTS or family == CORE_FAMILIES[number % len(CORE_FAMILIES)]))
        or (check in (OF_ATTENTION if family in LIKE_LLAMA else OF_VARIANTS) and name in SOFT_PROMPTS)
        or (check in OF_OTHER_FAMILIES and family in CORE_FAMILIES)
    ),
    named("lora_plus", {}, "llama", "lanes do not meet"),  # its groups have rates of their own
    *(
        named(name, config, family, check)
        for number, (name, config, families) in enumerate(VARIANTS)
        for family in families
        for check in OF_VARIANTS
        if family == ("llama", "t5" if families == FAMILIES else "llama")[number % 2] or families == ABSOLUTE
    ),
]


def test_every_method_is_the_same_in_another_process() -> None:
    """One start for all of them."""
    subjects = [
        Subject(method_class, method_class.Config(), "llama", quantization="nf4" if name == NEEDS_QUANTIZED else None)
        for name, method_class in ((name, load_method(target)) for name, target in targets("method").items())
        if name != "hf_peft"
    ]
    others = OtherProcesses(subjects, count=1)
    try:
        for subject in subjects:
            others.check(subject)
    finally:
        others.close()


@pytest.mark.parametrize(("name", "config", "family", "check"), OFTEN)
def test_contract(name: str, config: dict[str, Any], family: str, check: str) -> None:
    method_class = load_method(targets("method")[name])
    CHECKS[check](Subject(method_class, method_class.Config(**config), family))


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "config", "family"),
    [named(name, config, family) for name, config, families in (*DEFAULTS, *VARIANTS) for family in families],
)
def test_the_whole_contract(name: str, config: dict[str, Any], family: str) -> None:
    method_class = load_method(targets("method")[name])
    all_verdicts = verdicts(method_class, method_class.Config(**config), [family], processes=0)
    assert [verdict for verdict in all_verdicts if verdict.outcome != "pass"] == []
