"""Prefix tuning (Li & Liang 2021) as a wrapper of every attention layer.

B batch, T tokens in this call, P prompt tokens, D hidden size.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from bench.method import Method, MethodError, Range, SearchSpace
from methods.attention_prefix import (
    KeysValues,
    PromptRowsCache,
    attend_with_prefix,
    attention_layers,
    keys_values_of,
    prefix_mask,
)
from methods.prompt_init import PromptInitConfig, initial_token_ids, random_prompt


class PrefixTuningAttentionLayer(nn.Module):
    """An attention layer whose tokens also attend to trained prompt embeddings.

    The specification is the path ``literal``: ``prompt_embeddings(prompt_tokens)``, shape ``(P, D)``, is concatenated
    in front of the hidden states along the sequence, the result goes through ``base_attention_layer`` with its keyword
    arguments, and the prompt positions are cut off again. For the tokens this is attention over
    ``[W_k p; W_k x]`` and ``[W_v p; W_v x]`` with the layer's own frozen projections.

    The path ``fused`` computes the prompt's keys and values once for the whole batch and shows them to the layer in
    front of its own. It equals the literal path to rounding, without B copies of the prompt and without queries and
    outputs for prompt positions of every row.

    On both paths the prompt stays out of the key/value cache.

    Args:
        base_attention_layer: An attention layer of a decoder of transformers; it stays frozen.
        prompt_embeddings: ``nn.Embedding(P, D)`` in the space of the layer's input (after the norm, if it comes first).
        prompt_tokens: ``(P,)`` int64, the rows of ``prompt_embeddings`` to use, in order.
        prompt_rotary: ``(cos, sin)``, each ``(1, P, C)``, for layers with rotary positions; see :class:`PrefixTuning`.
        path: ``fused`` or ``literal``.
    """

    prompt_tokens: torch.Tensor
    prompt_cos: torch.Tensor | None
    prompt_sin: torch.Tensor | None

    def __init__(
        self,
        base_attention_layer: nn.Module,
        prompt_embeddings: nn.Embedding,
        prompt_tokens: torch.Tensor,
        prompt_rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
        path: Literal["fused", "literal"] = "fused",
    ) -> None:
        super().__init__()
        self.base_attention_layer = base_attention_layer
        self.prompt_embeddings = prompt_embeddings
        self.path = path
        self.register_buffer("prompt_tokens", prompt_tokens, persistent=False)
        cos, sin = prompt_rotary if prompt_rotary is not None else (None, None)
        self.register_buffer("prompt_cos", cos, persistent=False)
        self.register_buffer("prompt_sin", sin, persistent=False)
        self._decoding_keys_values: KeysValues | None = None

    def train(self, mode: bool = True) -> PrefixTuningAttentionLayer:
        self._decoding_keys_values = None  # The prompt may have been trained since.
        return super().train(mode)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        if self.path == "literal":
            return self._forward_literal(*args, **kwargs)
        return attend_with_prefix(self.base_attention_layer, self._prompt_keys_values(), args, kwargs)

    def _prompt_keys_values(self) -> KeysValues:
        """``(1, H, P, C)`` each. Kept between the steps of decoding, where nothing is trained."""
        if self._decoding_keys_values is not None and not torch.is_grad_enabled():
            return self._decoding_keys_values
        prompt = self.prompt_embeddings(self.prompt_tokens)[None]  # (1, P, D)
        rotary = {} if self.prompt_cos is None else {"position_embeddings": (self.prompt_cos, self.prompt_sin)}
        keys_values = keys_values_of(self.base_attention_layer, prompt, **rotary)
        if not self.training and not torch.is_grad_enabled():
            self._decoding_keys_values = keys_values
        return keys_values

    def _forward_literal(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        hidden_states = args[0] if args else kwargs.pop("hidden_states")
        prompt = self.prompt_embeddings(self.prompt_tokens).to(hidden_states.dtype)  # (P, D)
        num_prompt_tokens = len(prompt)
        cache = kwargs.get("past_key_values")
        mask = prefix_mask(
            kwargs.get("attention_mask"), num_prompt_tokens, hidden_states, cache, self.base_attention_layer
        )
        kwargs["attention_mask"] = with_prompt_rows(mask, num_prompt_tokens)
        if cache is not None:
            kwargs["past_key_values"] = PromptRowsCache(num_prompt_tokens, cache)
        if (rotary := kwargs.get("position_embeddings")) is not None:
            if self.prompt_cos is None or self.prompt_sin is None:
                raise MethodError("the layer rotates its keys by position, and got no prompt_rotary")
            kwargs["position_embeddings"] = tuple(
                torch.cat([prompt_part.to(part.dtype).expand(len(part), -1, -1), part], dim=1)
                for prompt_part, part in zip((self.prompt_cos, self.prompt_sin), rotary, strict=True)
            )
        hidden_states = torch.cat([prompt.expand(len(hidden_states), -1, -1), hidden_states], dim=1)  # (B, P + T, D)
        output, *rest = self.base_attention_layer(hidden_states, *args[1:], **kwargs)
        return output[:, num_prompt_tokens:], *rest


def with_prompt_rows(mask: torch.Tensor | None, num_prompt_tokens: int) -> torch.Tensor | None:
    """Add rows for the prompt's own queries, which see the prompt only; their outputs are cut off.

    Args:
        mask: ``(B, 1, T, P + S)``, or for flash attention ``(B, P + S)`` or None, which need no rows.
        num_prompt_tokens: P.

    Returns:
        ``(B, 1, P + T, P + S)``, or the mask as it came.
    """
    if mask is None or mask.dim() == 2:
        return mask
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    rows = torch.full_like(mask[..., :1, :], hidden).repeat(1, 1, num_prompt_tokens, 1)
    rows[..., :num_prompt_tokens] = mask[..., :1, :num_prompt_tokens]
    return torch.cat([rows, mask], dim=-2)


class PrefixTuning(Method):
    """Trained prompt embeddings in front of the hidden states of every attention layer.

    Every attention layer of the base model is replaced by a :class:`PrefixTuningAttentionLayer` with prompt embeddings
    of its own.

    Source: Li & Liang 2021, section 4; the idea of sending the prompt through frozen key and value projections is the
    per-layer prompt of google-research/prompt-tuning (extended/train/per_layer.py).

    Deviations from Li & Liang: keys and values are those that the frozen layer makes of the embeddings, so there are D
    parameters for a token and layer instead of two free vectors; there is no reparametrisation MLP; token positions do
    not shift. With rotary positions the prompt stands at positions -P to -1, which is the same function as shifting
    the tokens; learned absolute positions are added at the input only, so that there the prompt has none.
    """

    class Config(PromptInitConfig):
        """Settings of prefix tuning."""

        num_prompt_tokens: PositiveInt = Field(10, description="prompt tokens in front of every attention layer")
        path: Literal["fused", "literal"] = Field(
            "fused", description="fused: the prompt's keys and values once per batch; literal: the specification"
        )

    paper: ClassVar[str] = "Li & Liang 2021, arXiv:2101.00190"
    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=1e-3, high=1e-1)}

    def patch(self, model: Any) -> nn.Module:
        layers = list(attention_layers(model))
        initial = self._initial_prompts(model, [layer for _, _, layer in layers])
        rotary = self._prompt_rotary(model, initial[0])
        prompt_tokens = torch.arange(self.config.num_prompt_tokens, device=initial[0].device)
        for (parent, name, layer), prompt in zip(layers, initial, strict=True):
            embeddings = nn.Embedding(prompt.shape[0], prompt.shape[1], _weight=prompt)
            setattr(
                parent, name, PrefixTuningAttentionLayer(layer, embeddings, prompt_tokens, rotary, self.config.path)
            )
        module: nn.Module = model
        return module

    def _initial_prompts(self, model: Any, layers: list[nn.Module]) -> list[torch.Tensor]:
        """``(P, D)`` for each layer: what the layer's input would be, were the initial words in front of the text."""
        embedding = model.get_input_embeddings().weight
        shape = (self.config.num_prompt_tokens, model.config.hidden_size)
        if embedding.is_meta:
            return [torch.empty(shape, dtype=embedding.dtype, device="meta") for _ in layers]
        if self.config.init == "normal":
            return [random_prompt(*shape, self.config.init_std, embedding) for _ in layers]
        ids = initial_token_ids(
            self.config.init, self.config.init_text, self.config.num_prompt_tokens, embedding, self.tokenizer
        )
        return inputs_of(model, layers, ids)

    def _prompt_rotary(self, model: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        rotary_embedding = getattr(model.base_model, "rotary_emb", None)
        if rotary_embedding is None:
            return None
        positions = torch.arange(-self.config.num_prompt_tokens, 0, device=like.device)[None]
        cos, sin = rotary_embedding(like, positions)
        return cos, sin


def inputs_of(model: Any, layers: list[nn.Module], token_ids: torch.Tensor) -> list[torch.Tensor]:
    """Hidden states ``(P, D)`` that reach each of ``layers`` when the frozen model reads ``token_ids`` ``(P,)``."""
    inputs: list[torch.Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden_states = args[0] if args else kwargs["hidden_states"]
        inputs.append(hidden_states[0].detach().clone())

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        with torch.no_grad():
            model.base_model(
                input_ids=token_ids[None], attention_mask=torch.ones_like(token_ids)[None], use_cache=False
            )
    finally:
        for hook in hooks:
            hook.remove()
    return inputs
