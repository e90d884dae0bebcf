"""What the tests of prefix and prompt tuning share: patched tiny models in float64, and rows of tokens."""

from __future__ import annotations

from typing import Any

import torch
from disturbed import disturb

from bench.conformance.tiny_models import WordTokenizer, tiny_model
from bench.method import Method, positions_of, trained_parameters
from methods.parts.prefix_layers import KeyValuePrefixAttentionLayer, PrefixTuningAttentionLayer

ROWS = ((7, 21, 5, 40, 13, 2, 33), (11, 3, 60), (25, 8, 14, 90, 6))
TOLERANCE = 1e-9


def patched_with(method_class: Any, family: str, attention: str = "sdpa", **config: Any) -> tuple[Method, Any]:
    """A method and a tiny model that it has patched; what is trained is moved off its start."""
    torch.manual_seed(0)
    model = tiny_model(family)
    model.set_attn_implementation(attention)
    method = method_class(method_class.Config(**config), WordTokenizer())
    method.patch(model)
    disturb(model)
    return method, model.eval()


def patched(method_class: Any, family: str, attention: str = "sdpa", **config: Any) -> Any:
    return patched_with(method_class, family, attention, **config)[1]


def logits_of(model: Any, ids: torch.Tensor, mask: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask), **kwargs).logits
    return logits


def prefix_layers(model: Any) -> list[Any]:
    kinds = (PrefixTuningAttentionLayer, KeyValuePrefixAttentionLayer)
    return [module for module in model.modules() if isinstance(module, kinds)]


def prompt_of(model: Any) -> torch.Tensor:
    """The trained embeddings of a prompt-tuned model."""
    (weight,) = (parameter for _, parameter in trained_parameters(model))
    return weight
