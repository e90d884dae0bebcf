"""LLaMA-Adapter (Zhang et al. 2023): attention to trained prompts, let in by gates that start at zero.

B batch, H heads, G key/value heads, T tokens in this call, P prompt tokens, D hidden size, C head channels.
"""

from __future__ import annotations

import copy
import sys
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import nn
from transformers import AttentionInterface

from bench.method import Method, MethodConfig, MethodError, Range, SearchSpace
from methods.attention_sites import AttentionSite, attention_sites
from methods.transformer_parts import Projection, attention_projections

ATTENTION = "tuneoff_gated_prompt"
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
    """An attention function of transformers: what the layer would attend to, plus the gated prompt.

    Args:
        module: The attention layer.
        query: ``(B, H, T, C)``, rotated where the model rotates.
        key: ``(B, G, S, C)``.
        value: ``(B, G, S, C)``.
        attention_mask: As the layer's own function takes it.
        gated_prompt: Handed down by the wrapper of the layer.
        scaling: Of the scores; None is one over the root of C.
        kwargs: For the layer's own function.

    Raises:
        RuntimeError: The layer does not hand keyword arguments down.
    """
    if gated_prompt is None:
        raise RuntimeError(f"{type(module).__name__} {module.layer_idx} does not hand keyword arguments down")
    output, weights = gated_prompt.attend(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    prompt_keys, prompt_values = gated_prompt.keys_values(query)  # (1, H, P, C)
    rows = (len(query), -1, -1, -1)
    read = nn.functional.scaled_dot_product_attention(
        query, prompt_keys.expand(rows), prompt_values.expand(rows), scale=scaling
    )
    return output + (gated_prompt.gate.tanh()[:, None, None] * read).transpose(1, 2), weights


class ZeroGatedAttentionLayer(nn.Module):
    """An attention layer whose tokens also read a trained prompt, in a softmax of its own and through a gate per head.

    ``W_o [softmax(q k^T) v + tanh(g) softmax(q (W_k p)^T) W_v p]`` with the frozen projections of the layer. Prompt
    keys are not rotated. The gates start at zero, so that step 0 is the base model.

    Args:
        site: The layer and its place.
        keys: Where the layer makes its keys.
        values: Where the layer makes its values.
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
        self.attend = own_attention_function(layer)
        layer.config = copy.copy(layer.config)  # of this layer only: masks are made as the model's configuration says
        layer.config._attn_implementation = ATTENTION
        like: Any = {"dtype": keys.layer.weight.dtype, "device": keys.layer.weight.device}
        self.adapter_query = nn.Parameter(torch.randn(num_prompt_tokens, width, **like))
        self.gate = nn.Parameter(torch.zeros(self.num_heads, **like))

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        outputs: tuple[Any, ...] = self.base_attention_layer(*args, gated_prompt=self, **kwargs)
        return outputs

    def keys_values(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the prompt, ``(1, H, P, C)`` each, for queries with C channels."""
        keys, values = (self._heads(projection, query.shape[-1]) for projection in self._projections)
        if (norm := getattr(self.base_attention_layer, "k_norm", None)) is not None:
            keys = norm(keys)
        return keys, values

    def _heads(self, projection: Projection, channels: int) -> torch.Tensor:
        made: torch.Tensor = projection.layer.module(self.adapter_query)
        if not projection.is_whole:
            made = made[:, projection.rows.to(made.device)]
        heads = made.view(len(made), -1, channels).transpose(0, 1)[None]  # (1, G, P, C)
        return heads.repeat_interleave(self.num_heads // heads.shape[1], dim=1)


def query_heads(layer: Any) -> int:
    """H of an attention layer: an encoder may have another number than its decoder, and then layers say theirs."""
    heads: int = (
        getattr(layer, "num_heads", None) or getattr(layer, "n_heads", None) or layer.config.num_attention_heads
    )
    return heads


def own_attention_function(layer: Any) -> Any:
    """The function with which an attention layer attends.

    Raises:
        MethodError: It has none that could be exchanged.
    """
    module = sys.modules[type(layer).__module__]
    functions = getattr(module, "ALL_ATTENTION_FUNCTIONS", None)
    if functions is None:
        raise MethodError(f"{type(layer).__name__} does not attend through the attention functions of transformers")
    return functions.get_interface(layer.config._attn_implementation, getattr(module, "eager_attention_forward", None))


class LlamaAdapter(Method):
    """Attention layers read trained prompts through gates that start at zero.

    Source: Zhang et al. 2023, section 3.1 and 3.2, and OpenGVLab/LLaMA-Adapter, alpaca_finetuning_v1/llama/model.py
    (lines 84 to 121): 10 prompt tokens in the top 30 of 32 layers, keys and values by the frozen projections without
    rotation, a softmax of their own, one gate for each head, tanh.

    Deviations: none for decoders. Of an encoder-decoder model the self-attention of the decoder reads prompts. Where a
    model normalises its keys (Qwen3, Gemma 3), the prompt's are normalised too. (Hugging Face peft has one gate for all
    heads and no tanh, and in GPT-2 adds what was read behind the output projection.)
    """

    class Config(MethodConfig):
        """Settings of LLaMA-Adapter."""

        num_prompt_tokens: PositiveInt = Field(10, description="prompt tokens of each layer")
        num_layers: PositiveInt | None = Field(
            None, description="how many layers read prompts, counted from the output; None is all but the lowest two"
        )

    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2303.16199"
    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=1e-3, high=1e-1)}

    def patch(self, model: Any) -> nn.Module:
        AttentionInterface.register(ATTENTION, gated_prompt_attention)
        sites = [site for site in attention_sites(model) if site.role == "decoder"]
        made_by = {
            (id(projection.attention), projection.role): projection for projection in attention_projections(model)
        }
        width = model.config.get_text_config().hidden_size
        for site in sites[-self._num_layers(len(sites)) :]:
            keys, values = (made_by[id(site.layer), role] for role in ("key", "value"))
            site.replace(ZeroGatedAttentionLayer(site, keys, values, self.config.num_prompt_tokens, width))
        module: nn.Module = model
        return module

    def _num_layers(self, count: int) -> int:
        wanted: int | None = self.config.num_layers
        if wanted is None:
            return max(1, count - UNTOUCHED_LAYERS)
        if wanted > count:
            raise MethodError(f"num_layers: {wanted} is more than the {count} layers of this model")
        return wanted
