"""Prefix and prompt tuning give the logits of Hugging Face peft 0.21 with the same weights, both ways, to 1e-9."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from disturbed import disturb
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from soft_prompts import ROWS, TOLERANCE, patched_with, prompt_of

from bench.conformance.tiny_models import tiny_model
from bench.method import MethodError
from bench.models.architecture import padded
from methods.prefix_tuning import PrefixTuning
from methods.prompt_tuning import PromptTuning

FAMILIES = ["gpt2", "llama"]
COUNT = 4


def logits(model: Any) -> torch.Tensor:
    """Of right-padded rows, at real tokens; positions are left to the model, as peft drops them."""
    ids, mask = padded(ROWS, 0, "right")
    with torch.no_grad():
        computed_logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
    return computed_logits[mask == 1]


def theirs(family: str, config: Any) -> Any:
    torch.manual_seed(1)
    model = get_peft_model(tiny_model(family), config).double()
    disturb(model)
    return model.eval()


def peft_layout(state: dict[str, torch.Tensor]) -> torch.Tensor:
    """``(P, layers x 2 x H x C)``: peft's table, of our keys and values, which come layer by layer."""
    parts = [tensor.transpose(0, 1).flatten(1) for tensor in state.values()]  # (P, H C) each
    return torch.cat(parts, dim=1)


def our_layout(table: torch.Tensor, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    parts = table.split([tensor.shape[0] * tensor.shape[2] for tensor in like.values()], dim=1)
    return {
        name: part.reshape(COUNT, tensor.shape[0], tensor.shape[2]).transpose(0, 1)
        for (name, tensor), part in zip(like.items(), parts, strict=True)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_of_free_keys_and_values_is_peft_prefix_tuning(family: str) -> None:
    """Keys and values of peft live in the cache, so that tokens stand behind them: our ``shift_positions``."""
    other = theirs(family, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=COUNT))
    table = other.prompt_encoder["default"].embedding.weight
    method, model = patched_with(
        PrefixTuning, family, num_prompt_tokens=COUNT, parametrization="key_value", shift_positions=True
    )
    state = method.adapter_state(model)
    assert table.numel() == sum(tensor.numel() for tensor in state.values())
    assert float((logits(other) - logits(model)).abs().max()) > 0.1
    method.load_adapter_state(model, our_layout(table.detach(), state))
    torch.testing.assert_close(logits(model), logits(other), atol=TOLERANCE, rtol=0)
    disturb(model)
    table.data.copy_(peft_layout(method.adapter_state(model)))
    torch.testing.assert_close(logits(other), logits(model), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_peft_prompt_tuning(family: str) -> None:
    other = theirs(family, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=COUNT))
    table = other.prompt_encoder["default"].embedding.weight
    method, model = patched_with(PromptTuning, family, num_prompt_tokens=COUNT)

    def their_logits() -> torch.Tensor:
        """Of the tokens: peft returns those of the prompt too."""
        ids, mask = padded(ROWS, 0, "right")
        with torch.no_grad():
            computed_logits: torch.Tensor = other(input_ids=ids, attention_mask=mask).logits
        return computed_logits[:, COUNT:][mask == 1]

    assert float((their_logits() - logits(model)).abs().max()) > 0.1
    (name,) = method.adapter_state(model)
    method.load_adapter_state(model, {name: table.detach()})
    torch.testing.assert_close(logits(model), their_logits(), atol=TOLERANCE, rtol=0)
    disturb(model)
    table.data.copy_(prompt_of(model).detach())
    torch.testing.assert_close(their_logits(), logits(model), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("parametrization", ["embedding", "key_value"])
@pytest.mark.parametrize("family", ["opt", "gpt_neox", "qwen3"])  # not rotated, rotated in part, in heads of any width
def test_exported_keys_stand_where_peft_puts_them(family: str, parametrization: str) -> None:
    shift = {"shift_positions": True} if family == "opt" else {}
    method, model = patched_with(
        PrefixTuning, family, num_prompt_tokens=COUNT, parametrization=parametrization, **shift
    )
    adapter = method.to_peft(model)
    config = {key: value for key, value in adapter.config.items() if key != "peft_type"}
    assert adapter.config["peft_type"] == "PREFIX_TUNING"
    other = theirs(family, PrefixTuningConfig(task_type="CAUSAL_LM", **config))
    other.prompt_encoder["default"].embedding.weight.data.copy_(adapter.state["prompt_embeddings"])
    # rotary tables are float32 whatever the model is
    torch.testing.assert_close(logits(other), logits(model), atol=1e-5, rtol=0)


def test_a_prefix_that_a_sliding_window_would_leave_behind_is_not_exported() -> None:
    method, model = patched_with(PrefixTuning, "mistral")
    with pytest.raises(MethodError, match="MistralAttention 0 has a sliding window of 4 tokens, behind which peft's"):
        method.to_peft(model)
