"""Inserts prompt embeddings into the input embeddings of every row, if the prompt's activations depend on the row.

They do in an encoder, whose prompt sees the source; between source and target (infix); and in decoders of which not all
layers attend to all tokens. In other decoders the activations of a prompt in front of a text do not depend on the text,
and :mod:`methods.prompt_tuning` computes them once for all rows.

B batch, T tokens in this call, P prompt tokens, D hidden size, K trials that share the rows (1 unless they train in
lanes).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import CacheLayerMixin

from bench.method import for_rows, of_lanes
from methods.parts.decoder_kinds import arguments_of, cache_name, per_layer_inputs
from methods.parts.token_positions import required_source_lengths, token_positions


class PromptEmbeddings(nn.Module):
    """Replaces an encoder or decoder, and makes it read trained embeddings among its tokens.

    Args:
        stack: The headless model, e.g. LlamaModel, GPT2Model or T5Stack; it stays frozen.
        prompt: ``(P, D)`` initial embeddings.
    """

    prompt_tokens: torch.Tensor

    def __init__(self, stack: Any, prompt: torch.Tensor) -> None:
        super().__init__()
        self.stack = stack
        self.prompt_embeddings = nn.Embedding(prompt.shape[0], prompt.shape[1], _weight=prompt)
        self.register_buffer("prompt_tokens", torch.arange(len(prompt), device=prompt.device), persistent=False)

    def prompts(self) -> torch.Tensor:
        """The prompts of the active lanes, ``(K, P, D)``."""
        return of_lanes(self, lambda module: module.prompt_embeddings(module.prompt_tokens))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # config, embed_tokens, ... of the stack inside
            return getattr(super().__getattr__("stack"), name)


class PromptTuningEncoder(PromptEmbeddings):
    """An encoder that reads P trained embeddings before its tokens, so that its output is P longer.

    The prompt is right before the first real token of each row. The decoder attends to its outputs, too, so that
    :meth:`lengthened` has to lengthen the decoder's mask of the source.
    """

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if inputs_embeds is None:
            inputs_embeds = self.stack.get_input_embeddings()(input_ids)
        if attention_mask is None:
            attention_mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        prompt = for_rows(self.prompts(), len(inputs_embeds))
        return self.stack(
            inputs_embeds=inserted(prompt, inputs_embeds, num_left_pads(attention_mask)),
            attention_mask=self.lengthened(attention_mask),
            **kwargs,
        )

    def lengthened(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """The mask ``(B, P + T)`` for a mask ``(B, T)`` of the tokens."""
        return mask_with_prompt(attention_mask, len(self.prompt_tokens), num_left_pads(attention_mask))

    def lengthen_source_mask(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """A hook before the forward of the decoder that attends to this encoder's output."""
        if (mask := kwargs.get("encoder_attention_mask")) is not None:
            kwargs = {**kwargs, "encoder_attention_mask": self.lengthened(mask)}
        return args, kwargs


class PromptInRowsDecoder(PromptEmbeddings):
    """A decoder that reads P trained embeddings among the tokens of every row, as if they were words.

    They are right before the first real token, or, with ``infix``, right before the last source token, which predicts
    the target. All layers see the prompt, also those with a state or a convolution. Outputs are for the tokens only;
    the prompt stays in the cache.

    Source: Lester et al. 2021, section 2; with ``infix`` Li & Liang 2021, section 7.3, at the input alone.

    Args:
        stack: The headless model; it stays frozen.
        prompt: ``(P, D)`` initial embeddings.
        per_layer: ``(P, layers, channels)``, each layer's own embedding of the prompt, in Gemma 3n and Gemma 4.
        infix: Whether the prompt is between source and target.
    """

    def __init__(
        self, stack: Any, prompt: torch.Tensor, per_layer: torch.Tensor | None = None, infix: bool = False
    ) -> None:
        super().__init__(stack, prompt)
        self.infix = infix
        self.per_layer_shape = None if per_layer is None else per_layer.shape[1:]
        self.per_layer_embeddings = (
            None if per_layer is None else nn.Embedding(len(prompt), per_layer[0].numel(), _weight=per_layer.flatten(1))
        )

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        source_lengths: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if self.per_layer_embeddings is not None and kwargs.get("per_layer_inputs") is None:
            if input_ids is None:
                raise ValueError("inputs_embeds without input_ids need per_layer_inputs in this model")
            kwargs["per_layer_inputs"] = per_layer_inputs(self.stack, input_ids)
        if inputs_embeds is None:
            inputs_embeds = self.stack.get_input_embeddings()(input_ids)
        rows, num_tokens, count = len(inputs_embeds), inputs_embeds.shape[1], len(self.prompt_tokens)
        before = self._real_tokens_before(rows, source_lengths)  # (B, 1)
        mask = self._mask_so_far(attention_mask, rows, num_tokens, kwargs, before)
        column = num_left_pads(mask) + before[:, 0]
        at = column - (mask.shape[1] - num_tokens)  # (B,) among the tokens of this call
        ends_before, ends_later = at < 0, at >= num_tokens
        positions = token_positions(attention_mask=mask, position_ids=position_ids, inputs_embeds=inputs_embeds)
        positions = positions + count * ((positions >= before) & (mask[:, -num_tokens:] == 1))  # (B, T)
        if attention_mask is not None and not ends_later.all():
            attention_mask = mask_with_prompt(mask, count, column)
        if inserting := not (ends_before.all() or ends_later.all()):
            if (ends_before | ends_later).any():
                raise ValueError("the source ends among the tokens of this call in some rows, and not in others")
            inputs_embeds = inserted(for_rows(self.prompts(), rows), inputs_embeds, at)
            positions = inserted(before + self.prompt_tokens, positions, at)
        if (per_layer := kwargs.get("per_layer_inputs")) is not None and inserting:
            kwargs["per_layer_inputs"] = inserted(for_rows(self._per_layer_prompts(), rows), per_layer, at)
        kwargs.pop("logits_to_keep", None)  # Gemma 4 would cut hidden states by it before the prompt's are removed
        if self._takes_positions:
            kwargs["position_ids"] = positions
        outputs = self.stack(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)
        if inserting:
            outputs.last_hidden_state = without(outputs.last_hidden_state, count, at)
        return outputs

    @functools.cached_property
    def _takes_positions(self) -> bool:
        return "position_ids" in arguments_of(self.stack)

    def _real_tokens_before(self, rows: int, source_lengths: torch.Tensor | None) -> torch.Tensor:
        """``(B, 1)``, the number of real tokens before the prompt."""
        if self.infix:
            return required_source_lengths(source_lengths)[:, None] - 1
        return self.prompt_tokens.new_zeros(rows, 1)

    def _per_layer_prompts(self) -> torch.Tensor:
        """The layers' own embeddings of the prompts, ``(K, P, layers, channels)``."""
        flat = of_lanes(self, lambda module: module.per_layer_embeddings(module.prompt_tokens))
        return flat.view(*flat.shape[:2], *(self.per_layer_shape or ()))

    def _mask_so_far(
        self, attention_mask: Any, rows: int, num_tokens: int, kwargs: dict[str, Any], before: torch.Tensor
    ) -> torch.Tensor:
        """``(B, tokens so far)``: 1 for real tokens, without the prompt; the tokens of this call are at the end."""
        if attention_mask is not None:
            if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
                raise ValueError("a prompt in the rows needs a mask (B, tokens), as dynamic caches leave it")
            return attention_mask
        name = cache_name(self.stack)
        cache = None if name is None else kwargs.get(name)
        cached = num_cached(cache)
        if cached is None:  # a model with states only: it has read the prompt, and positions do not matter
            if self.infix:
                raise ValueError("a cache of states does not tell how many tokens it has seen; pass attention_mask")
            cached = len(self.prompt_tokens) + 1
        if cached > int(before.min()):
            cached -= len(self.prompt_tokens)
        return torch.ones(rows, cached + num_tokens, dtype=torch.long, device=before.device)


def num_cached(cache: Any) -> int | None:
    """The number of tokens in a cache, including the prompt; None if it holds states of an unknown number of them."""
    if cache is None:
        return 0
    if any(isinstance(layer, CacheLayerMixin) for layer in cache.layers):
        return int(cache.get_seq_length())
    return None if cache.layers and cache.has_previous_state() else 0


def num_left_pads(attention_mask: torch.Tensor) -> torch.Tensor:
    """``(B,)``, the number of padding tokens in front of each row of a mask ``(B, T)``."""
    return (attention_mask.cumsum(-1) == 0).sum(-1)


def mask_with_prompt(attention_mask: torch.Tensor, num_prompt_tokens: int, at: torch.Tensor) -> torch.Tensor:
    """The mask ``(B, T + P)`` with the prompt inserted at column ``at`` ``(B,)`` of each row of ``(B, T)``."""
    return inserted(attention_mask.new_ones(len(attention_mask), num_prompt_tokens), attention_mask, at)


def inserted(prompt: torch.Tensor, tokens: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Insert each row's prompt before column ``at`` of its tokens.

    Args:
        prompt: ``(B, P, ...)``.
        tokens: ``(B, T, ...)``.
        at: ``(B,)``, from 0 to T.

    Returns:
        ``(B, T + P, ...)``.
    """
    count, columns = prompt.shape[1], torch.arange(prompt.shape[1] + tokens.shape[1], device=tokens.device)
    start = at[:, None]
    of_tokens = torch.where(columns < start, columns + count, columns)
    index = torch.where((columns >= start) & (columns < start + count), columns - start, of_tokens)
    return _rows_at(torch.cat([prompt, tokens], dim=1), index)


def without(together: torch.Tensor, num_prompt_tokens: int, at: torch.Tensor) -> torch.Tensor:
    """The tokens ``(B, T, ...)`` in the result of :func:`inserted`."""
    columns = torch.arange(together.shape[1] - num_prompt_tokens, device=together.device)
    return _rows_at(together, columns + num_prompt_tokens * (columns >= at[:, None]))


def _rows_at(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return tensor.take_along_dim(index.view(*index.shape, *[1] * (tensor.dim() - 2)), dim=1)
