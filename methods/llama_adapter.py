"""LLaMA-Adapter (Zhang et al. 2023): attention to trained prompts, through gates that start at zero.

B batch, H heads, G key/value heads, T tokens in this call, P prompt tokens, D hidden size, C head channels.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import nn
from transformers import AttentionInterface

from bench.method import Method, MethodConfig, MethodError, Range, SearchSpace
from methods.parts.attention_prefix import KeysValues, made_keys_values
from methods.parts.attention_sites import AttentionSite, LayerInput, attention_sites, has_encoder, layer_inputs
from methods.parts.decoder_kinds import require_readable
from methods.parts.transformer_parts import Projection, attention_projections

ATTENTION = "tuneoff_gated_prompt"
KEY_NORMS = ("k_norm", "k_layernorm", "key_layernorm")
VALUE_NORMS = ("v_norm",)
UNTOUCHED_LAYERS = 2


def gated_prompt_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    gated_prompt: ZeroGatedAttentionLayer | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """An attention function of transformers that adds gated attention to a prompt to the layer's own attention.

    Args:
        module: The attention layer.
        query: ``(B, H, T, C)``, rotated where the model rotates.
        key: ``(B, G, S, C)``.
        value: ``(B, G, S, C)``.
        attention_mask: In the form of the layer's own function.
        gated_prompt: The wrapper of the layer, which passes itself.
        scaling: Factor of the scores; None is one over the root of C.
        kwargs: For the layer's own function.

    Raises:
        RuntimeError: The layer does not pass keyword arguments on to its attention function.
    """
    if gated_prompt is None:
        raise RuntimeError(f"{type(module).__name__} {module.layer_idx} does not hand keyword arguments down")
    output, weights = gated_prompt.attend(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    prompt_keys, prompt_values = gated_prompt.keys_values(query)  # (1, H, P, C)
    rows = (len(query), -1, -1, -1)
    prompt_output = nn.functional.scaled_dot_product_attention(
        query, prompt_keys.expand(rows), prompt_values.expand(rows), scale=scaling
    )
    return output + (gated_prompt.gate.tanh()[:, None, None] * prompt_output).transpose(1, 2), weights


class ZeroGatedAttentionLayer(nn.Module):
    """An attention layer whose tokens also read a trained prompt, with a separate softmax and a gate for each head.

    ``W_o [softmax(q k^T) v + tanh(g) softmax(q (W_k p)^T) W_v p]`` with the frozen projections of the layer. Prompt
    keys are not rotated. The gates start at zero, so that step 0 is the base model.

    Args:
        site: The layer and its place.
        keys: The projection that makes the layer's keys.
        values: The projection that makes the layer's values.
        num_prompt_tokens: P.
        width: D.
    """

    def __init__(
        self,
        site: AttentionSite,
        keys: Projection,
        values: Projection,
        num_prompt_tokens: int,
        width: int,
    ) -> None:
        super().__init__()
        layer = site.layer
        self.base_attention_layer = layer
        self.num_heads = query_heads(layer)
        self._projections = (keys, values)
        self._norms = tuple(_norm(layer, names) for names in (KEY_NORMS, VALUE_NORMS))
        self.attend = own_attention_function(layer)
        layer.config = copy.copy(layer.config)  # of this layer only, because masks follow the model's configuration
        layer.config._attn_implementation = ATTENTION
        beside = keys.layer.like
        like: Any = {"dtype": beside.dtype, "device": beside.device}
        self.adapter_query = nn.Parameter(torch.randn(num_prompt_tokens, width, **like))
        self.gate = nn.Parameter(torch.zeros(self.num_heads, **like))

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        outputs: tuple[Any, ...] = self.base_attention_layer(*args, gated_prompt=self, **kwargs)
        return outputs

    def keys_values(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the prompt, ``(1, H, P, C)`` each, for queries with C channels."""
        keys, values = (
            heads.repeat_interleave(self.num_heads // heads.shape[1], dim=1)
            for heads in self.project(self.adapter_query, query.shape[-1])
        )
        return keys, values

    def project(self, states: torch.Tensor, channels: int) -> KeysValues:
        """Keys and values that the frozen projections make of ``(P, D)``, ``(1, G, P, C)`` each."""
        keys, values = (
            self._heads(projection, norm, states, channels)
            for projection, norm in zip(self._projections, self._norms, strict=True)
        )
        return keys, values

    def _heads(self, projection: Projection, norm: Any, states: torch.Tensor, channels: int) -> torch.Tensor:
        made: torch.Tensor = projection.layer.module(states)
        if not projection.is_whole:
            made = made[:, projection.rows.to(made.device)]
        whole = norm is not None and getattr(norm, "weight", None) is not None and norm.weight.numel() == made.shape[-1]
        if whole:
            made = norm(made)
        heads = made.view(len(made), -1, channels).transpose(0, 1)[None]  # (1, G, P, C)
        return heads if norm is None or whole else norm(heads)


def _norm(layer: Any, names: Sequence[str]) -> Any:
    """The norm of an attention layer that has one of these names, None if it has none."""
    return next((norm for name in names if (norm := getattr(layer, name, None)) is not None), None)


def query_heads(layer: Any) -> int:
    """H of an attention layer. Layers have their own number if encoder and decoder differ."""
    heads: int = (
        getattr(layer, "num_heads", None) or getattr(layer, "n_heads", None) or layer.config.num_attention_heads
    )
    return heads


def own_attention_function(layer: Any) -> Any:
    """The attention function of an attention layer.

    Raises:
        MethodError: The layer has no function that could be replaced.
    """
    module = sys.modules[type(layer).__module__]
    functions = getattr(module, "ALL_ATTENTION_FUNCTIONS", None)
    if functions is None:
        raise MethodError(f"{type(layer).__name__} does not attend through the attention functions of transformers")
    return functions.get_interface(layer.config._attn_implementation, getattr(module, "eager_attention_forward", None))


def without_rotation(given: LayerInput) -> LayerInput:
    """The same call with a rotation by 0. Sines are recognised by the first position, at which they are 0."""
    if given.rotary is None:
        return given

    def unrotated(part: torch.Tensor) -> torch.Tensor:
        is_sine = not part.is_meta and not part[..., 0, :].any()
        return torch.zeros_like(part) if is_sine else torch.ones_like(part)

    return replace(given, rotary=tuple(map(unrotated, given.rotary)))


def require_same(site: AttentionSite, own: KeysValues, layer: ZeroGatedAttentionLayer, states: torch.Tensor) -> None:
    """Compare the keys and values of a text, without rotation, with those that the layer itself makes.

    Raises:
        MethodError: They differ, so that the layer has more than known projections and norms.
    """
    made = layer.project(states, own[0].shape[-1])
    for one, other in zip(made, own, strict=True):
        if one.shape != other.shape or not (one.is_meta or torch.allclose(one, other, rtol=1e-2, atol=1e-3)):
            raise MethodError(
                f"{type(site.layer).__name__} {site.layer.layer_idx} makes keys and values by more than projections "
                "and norms that are known, so that a prompt would not be read as text is"
            )


class LlamaAdapter(Method):
    """Attention layers read trained prompts through gates that start at zero.

    Source: Zhang et al. 2023, section 3.1 and 3.2, and OpenGVLab/LLaMA-Adapter, alpaca_finetuning_v1/llama/model.py
    (lines 84 to 121): 10 prompt tokens in the top 30 of 32 layers, keys and values by the frozen projections without
    rotation, a separate softmax, one gate for each head, tanh.

    Deviations: none for decoders. In an encoder-decoder model the self-attention of the decoder reads prompts. If a
    model normalises its keys (Qwen3, Gemma 3), the prompt's keys are normalised, too. (Hugging Face peft has one gate
    for all heads and no tanh, and in GPT-2 adds attention to the prompt after the output projection.)
    """

    class Config(MethodConfig):
        """Settings of LLaMA-Adapter."""

        num_prompt_tokens: PositiveInt = Field(10, description="prompt tokens of each layer")
        num_layers: PositiveInt | None = Field(
            None, description="how many layers read prompts, counted from the output; null: all but the lowest two"
        )

    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2303.16199"
    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=1e-3, high=1e-1)}

    def patch(self, model: Any) -> nn.Module:
        AttentionInterface.register(ATTENTION, gated_prompt_attention)
        sites = [site for site in attention_sites(model) if site.role == "decoder"]
        if not has_encoder(model):
            require_readable(model, by_embeddings=False)
        chosen = sites[-self._num_layers(len(sites)) :]
        for site in chosen:
            own_attention_function(site.layer)
            if site.reuses_keys:
                raise MethodError(
                    f"{type(site.layer).__name__} {site.layer.layer_idx} attends to the keys of an earlier layer and "
                    "has no projections of its own to send a prompt through"
                )
        made_by = {
            (id(projection.attention), projection.role): projection for projection in attention_projections(model)
        }
        width = model.config.get_text_config().hidden_size
        ids = torch.zeros(
            self.config.num_prompt_tokens, dtype=torch.long, device=model.get_input_embeddings().weight.device
        )
        for site, given in zip(chosen, layer_inputs(model, chosen, ids), strict=True):
            own = made_keys_values(site, without_rotation(given))
            keys, values = (made_by.get((id(site.layer), role)) for role in ("key", "value"))
            if keys is None or values is None or {keys.layer.in_features, values.layer.in_features} != {width}:
                raise MethodError(
                    f"{type(site.layer).__name__} {site.layer.layer_idx} has no linear layers from hidden states to "
                    "keys and to values, through which a prompt could be sent"
                )
            layer = ZeroGatedAttentionLayer(site, keys, values, self.config.num_prompt_tokens, width)
            require_same(site, own, layer, given.states)
            site.replace(layer)
        module: nn.Module = model
        return module

    def _num_layers(self, count: int) -> int:
        num_layers: int | None = self.config.num_layers
        if num_layers is None:
            return max(1, count - UNTOUCHED_LAYERS)
        if num_layers > count:
            raise MethodError(f"num_layers: {num_layers} is more than the {count} layers of this model")
        return num_layers
