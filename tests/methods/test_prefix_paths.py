"""The fast path of prefix tuning is the literal layer in every way to run a model, in training and in decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from soft_prompts import patched, prefix_layers

from bench.conformance.method_checks import target_logits
from bench.method import trained_parameters
from bench.models.architecture import padded
from methods.parts.prefix_literal import with_prompt_rows
from methods.prefix_tuning import PrefixTuning

FAMILIES = ["gpt2", "llama", "gemma3", "t5"]
PATHS = ("fused", "literal")
# Ways to decode: settings of generate.
CACHES: tuple[dict[str, Any], ...] = (
    {"use_cache": True},
    {"use_cache": True, "cache_implementation": "static"},
    {"use_cache": False},
)


def tolerance(family: str, attention: str) -> float:
    """Norms (Gemma, T5) are taken in float32 by transformers, and so is the softmax of eager attention."""
    return 1e-4 if attention == "eager" and family != "gpt2" else 1e-6


def trained(family: str, attention: str, path: str, checkpointing: bool, use_cache: bool) -> dict[str, Any]:
    """Logits and gradients of a step, and how often the attention layers ran for it."""
    model = patched(PrefixTuning, family, attention, path=path)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    calls: list[int] = []
    for layer in prefix_layers(model):
        layer.register_forward_hook(lambda *_: calls.append(1))
    logits = target_logits(model, use_cache=use_cache)
    logits.logsumexp(-1).sum().backward()
    gradients = {name: parameter.grad for name, parameter in trained_parameters(model)}
    return {"logits": logits.detach(), "gradients": gradients, "calls": len(calls)}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_training(family: str, attention: str) -> None:
    close = {"atol": tolerance(family, attention), "rtol": 0}
    expected = trained(family, attention, "literal", checkpointing=False, use_cache=False)
    for path in PATHS:
        for checkpointing, use_cache in ((True, False), (False, True), (False, False)):
            run_of_path = trained(family, attention, path, checkpointing, use_cache)
            torch.testing.assert_close(run_of_path["logits"], expected["logits"], **close)
            for name, gradient in expected["gradients"].items():
                torch.testing.assert_close(run_of_path["gradients"][name], gradient, **close)
            assert run_of_path["calls"] == expected["calls"] * (2 if checkpointing else 1), (
                "checkpointing computes it twice"
            )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding(family: str, attention: str) -> None:
    ids, mask = padded([[7, 21, 5, 40], [11, 3]], 0, "right" if family == "t5" else "left")
    models = [patched(PrefixTuning, family, attention, path=path) for path in PATHS]
    settings = {"do_sample": False, "max_new_tokens": 5, "disable_compile": True, "attention_mask": mask}
    for beams in (1, 3):
        outputs = [
            model.generate(ids, **settings, num_beams=beams, output_logits=True, return_dict_in_generate=True, **cache)
            for model in models
            for cache in CACHES
        ]
        for other in outputs[1:]:
            assert torch.equal(other.sequences, outputs[0].sequences)
            for one, two in zip(other.logits, outputs[0].logits, strict=True):
                torch.testing.assert_close(one, two, atol=tolerance(family, attention), rtol=0)


@pytest.mark.parametrize("true_hides", [False, True])
def test_rows_of_a_literal_prompt_see_the_prompt_and_nothing_else(true_hides: bool) -> None:
    seen, hidden = (False, True) if true_hides else (True, False)
    mask = torch.full((2, 1, 3, 5), seen)  # two prompt tokens in front of three of the text
    rows = with_prompt_rows(mask, 2, None, true_hides)
    assert rows is not None and rows.shape == (2, 1, 5, 5)
    assert rows[:, :, :2].tolist() == [[[[seen, seen, hidden, hidden, hidden]] * 2]] * 2
    assert torch.equal(rows[:, :, 2:], mask)
    within = with_prompt_rows(mask, 2, torch.tensor([0, 3]), true_hides)
    assert within is not None
    assert within[1, 0, :2].tolist() == [[hidden, hidden, hidden, seen, seen]] * 2
    added = with_prompt_rows(torch.zeros(1, 1, 3, 5), 2)
    assert added is not None
    assert added[0, 0, 0].tolist() == [0.0, 0.0, *[torch.finfo(torch.float32).min] * 3]
    assert with_prompt_rows(None, 2) is None
    default = with_prompt_rows(torch.ones(1, 1, 3, 5, dtype=torch.bool), 2)
    assert default is not None
    assert default[0, 0, 0].tolist() == [True, True, False, False, False], "a boolean mask is true where a key is seen"
