"""Prompt embeddings put among the input embeddings of every row, where what the prompt becomes depends on the row.

So it is in an encoder, whose prompt sees the source, and between source and target (infix). A prompt in front of a
decoder's text does not depend on the text: :mod:`methods.prompt_tuning` computes it once for all rows.

B batch, T tokens in this call, P prompt tokens, D hidden size, K trials that share the rows (1 unless they train in
lanes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bench.method import for_rows, of_lanes
from methods.token_positions import required_source_lengths, token_positions


class PromptEmbeddings(nn.Module):
    """Stands for an encoder or decoder that reads trained embeddings among its tokens.

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
        """``(K, P, D)``."""
        return of_lanes(self, lambda module: module.prompt_embeddings(module.prompt_tokens))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # config, embed_tokens, ... of the stack that this one stands for
            return getattr(super().__getattr__("stack"), name)


class PromptTuningEncoder(PromptEmbeddings):
    """An encoder whose tokens come after P trained embeddings; its output is that much longer.

    The prompt stands right before the first real token of each row. Its outputs are part of the encoder's: the decoder
    attends to them, so that the decoder's mask of the source has to be lengthened by :meth:`lengthened`.
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
        """``(B, P + T)`` of a mask ``(B, T)``."""
        return mask_with_prompt(attention_mask, len(self.prompt_tokens), num_left_pads(attention_mask))

    def lengthen_source_mask(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Hook before the forward of the decoder that attends to this encoder's output."""
        if (mask := kwargs.get("encoder_attention_mask")) is not None:
            kwargs = {**kwargs, "encoder_attention_mask": self.lengthened(mask)}
        return args, kwargs


class PromptInfixDecoder(PromptEmbeddings):
    """A decoder that reads P trained embeddings right before the last source token, which predicts the target.

    Outputs are for the tokens only. The prompt's keys and values depend on the source, so that here they live in the
    cache.

    Source: Li & Liang 2021, section 7.3 (infix-tuning), at the input alone.
    """

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        source_lengths: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if inputs_embeds is None:
            inputs_embeds = self.stack.get_input_embeddings()(input_ids)
        num_tokens, count = inputs_embeds.shape[1], len(self.prompt_tokens)
        last_source = required_source_lengths(source_lengths)[:, None] - 1  # (B, 1) among the real tokens
        mask = self._mask_so_far(attention_mask, num_tokens, past_key_values, last_source)
        column = num_left_pads(mask) + last_source[:, 0]
        at = column - (mask.shape[1] - num_tokens)  # (B,) among the tokens of this call
        ends_before, ends_later = at < 0, at >= num_tokens
        positions = token_positions(attention_mask=mask, position_ids=position_ids, inputs_embeds=inputs_embeds)
        positions = positions + count * (positions >= last_source)  # (B, T)
        if attention_mask is not None and not ends_later.all():
            attention_mask = mask_with_prompt(mask, count, column)
        if inserting := not (ends_before.all() or ends_later.all()):
            if (ends_before | ends_later).any():
                raise ValueError("the source ends among the tokens of this call in some rows, and not in others")
            prompt = for_rows(self.prompts(), len(inputs_embeds))
            inputs_embeds = inserted(prompt, inputs_embeds, at)
            positions = inserted(last_source + self.prompt_tokens, positions, at)
        outputs = self.stack(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=past_key_values,
            **kwargs,
        )
        if inserting:
            outputs.last_hidden_state = without(outputs.last_hidden_state, count, at)
        return outputs

    def _mask_so_far(self, attention_mask: Any, num_tokens: int, cache: Any, last_source: torch.Tensor) -> torch.Tensor:
        """``(B, tokens so far)``: 1 at the real tokens, those of this call at the end, without the prompt."""
        if attention_mask is not None:
            if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
                raise ValueError(
                    "a prompt between source and target needs a mask (B, tokens), as dynamic caches leave it"
                )
            return attention_mask
        cached = 0 if cache is None else int(cache.get_seq_length())
        if cached > int(last_source.min()):
            cached -= len(self.prompt_tokens)
        return torch.ones(len(last_source), cached + num_tokens, dtype=torch.long, device=last_source.device)


def num_left_pads(attention_mask: torch.Tensor) -> torch.Tensor:
    """``(B,)``, how much padding stands in front of each row of a mask ``(B, T)``."""
    return (attention_mask.cumsum(-1) == 0).sum(-1)


def mask_with_prompt(attention_mask: torch.Tensor, num_prompt_tokens: int, at: torch.Tensor) -> torch.Tensor:
    """A mask ``(B, T)`` with room for the prompt at column ``at`` ``(B,)`` of each row: ``(B, T + P)``."""
    return inserted(attention_mask.new_ones(len(attention_mask), num_prompt_tokens), attention_mask, at)


def inserted(prompt: torch.Tensor, tokens: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Each row's prompt put before column ``at`` of its tokens.

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
    """``(B, T, ...)``: the tokens of what :func:`inserted` put together."""
    columns = torch.arange(together.shape[1] - num_prompt_tokens, device=together.device)
    return _rows_at(together, columns + num_prompt_tokens * (columns >= at[:, None]))


def _rows_at(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return tensor.take_along_dim(index.view(*index.shape, *[1] * (tensor.dim() - 2)), dim=1)
