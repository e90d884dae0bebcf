"""Converts a trained prefix into one of Hugging Face peft: the keys and values of every layer.

peft puts them into the cache before the first token, so that tokens have the positions P, P + 1, ...

H key/value heads, P prompt tokens, C head channels, R rotated channels, N layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bench.method import MethodError, PeftAdapter
from methods.parts.attention_prefix import KeysValues
from methods.parts.attention_sites import (
    AttentionSite,
    LayerInput,
    has_encoder,
    layer_inputs,
    sliding_window,
    uses_distance_bias,
    uses_rotary_positions,
)
from methods.parts.prefix_layers import KeyValuePrefixAttentionLayer, PrefixTuningAttentionLayer
from methods.parts.trained_prefix import PrefixConfig


def prefix_for_peft(model: Any, config: PrefixConfig, state: Mapping[str, torch.Tensor]) -> PeftAdapter:
    """PREFIX_TUNING of peft with free keys and values that compute the same as a patched model.

    Args:
        model: Patched, with its trained tensors.
        config: The settings of the prefix.
        state: The result of :meth:`methods.parts.trained_prefix.TrainedPrefix.state` for the model.

    Raises:
        MethodError: peft has no counterpart of these settings, or not in this model.
    """
    require_counterpart(model, config)
    sites, prefixes = _prefixes(model, state)
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    if uses_distance_bias(sites) or len(sites) != layers:
        raise MethodError(
            f"peft knows a prefix of every layer by its place in the cache, and of {type(model).__name__} "
            f"{len(sites)} of {layers} layers have one, or scores fall with distance: there is no equal export"
        )
    for site in sites:
        if (window := sliding_window(site.layer)) is not None:
            raise MethodError(
                f"{type(site.layer).__name__} {site.layer.layer_idx} has a sliding window of {window} tokens, behind "
                "which peft's prefix would be lost; here it stays in sight"
            )
    if uses_rotary_positions(model) and not config.shift_positions:
        token = torch.zeros(1, dtype=torch.long, device=prefixes[0][0].device)
        given = layer_inputs(model, sites, token, first_position=config.num_prompt_tokens, patched=True)
        prefixes = [
            (moved_keys(keys, *_last_rotary(each)), values)
            for (keys, values), each in zip(prefixes, given, strict=True)
        ]
    return _free_keys_values(prefixes)


def require_counterpart(model: Any, config: PrefixConfig) -> None:
    """Refuse settings and models for which peft has no counterpart.

    Raises:
        MethodError: peft has no counterpart of these settings, or not in this model.
    """
    if has_encoder(model):
        raise MethodError("peft puts a prefix into the self-attention of the decoder alone; this model has three kinds")
    if config.infix or config.layers is not None:
        raise MethodError("peft puts a prefix in front of all tokens and into all layers: no infix, no layers")
    if not (config.shift_positions or uses_rotary_positions(model)):
        raise MethodError(
            f"behind a prefix of P tokens peft moves all others by P, and {type(model).__name__} has learned its "
            "positions: only prefixes that were trained with shift_positions: true compute the same there"
        )


def _prefixes(model: nn.Module, state: Mapping[str, torch.Tensor]) -> tuple[list[AttentionSite], list[KeysValues]]:
    """The site of every layer with a prefix, and its keys and values, ``(1, H, P, C)`` each."""
    sites, prefixes = [], []
    for name, layer in model.named_modules():
        if isinstance(layer, PrefixTuningAttentionLayer):
            with torch.no_grad():
                prefixes.append(layer.prompt_keys_values())
        elif isinstance(layer, KeyValuePrefixAttentionLayer):
            prefixes.append((state[f"{name}.prefix_keys"][None], state[f"{name}.prefix_values"][None]))
        else:
            continue
        sites.append(layer.site)
    return sites, prefixes


def _last_rotary(given: LayerInput) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine, ``(R,)`` each, of the last position in a layer's input."""
    if given.rotary is None:
        raise MethodError("some attention layers rotate their keys and others do not, which peft cannot express")
    cos, sin = given.rotary
    return cos[0, -1], sin[0, -1]


def moved_keys(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate keys further, from their positions to those that are P larger.

    Args:
        keys: ``(1, H, P, C)``, already rotated.
        cos: ``(R,)``, the model's cosine of the position P; R may be less than C.
        sin: ``(R,)``, the model's sine.
    """
    scaling = (cos.square() + sin.square()).sqrt()  # some models scale their tables
    cos, sin = cos / scaling, sin / scaling
    rotated, rest = keys[..., : len(cos)], keys[..., len(cos) :]
    first, second = rotated.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return torch.cat([rotated * cos + turned * sin, rest], dim=-1)


def _free_keys_values(prefixes: Sequence[KeysValues]) -> PeftAdapter:
    """PREFIX_TUNING of peft with these keys and values.

    Raises:
        MethodError: Layers have prefixes of different shapes.
    """
    shapes = {tuple(part.shape) for pair in prefixes for part in pair}
    if len(shapes) > 1:
        raise MethodError(f"peft knows one shape of keys and values for all layers, and these are {sorted(shapes)}")
    ((_, heads, num_prompt_tokens, channels),) = shapes
    rows = [part[0].transpose(0, 1).flatten(1) for pair in prefixes for part in pair]  # (P, H C) each
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": num_prompt_tokens,
        "num_layers": len(prefixes),
        "num_attention_heads": heads,
        "token_dim": heads * channels,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
    }
    return PeftAdapter(config, {"prompt_embeddings": torch.cat(rows, dim=-1).detach()})  # (P, N 2 H C)
