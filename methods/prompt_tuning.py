"""Prompt tuning (Lester et al. 2021): trained embeddings in front of the input, and nowhere else.

B batch, T tokens in this call, P prompt tokens, D hidden size, H key/value heads, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import nn

from bench.method import Method, PeftAdapter, Range, SearchSpace, positions_of
from methods.attention_prefix import KeysValues, KeyValueCapture, attend_with_prefix, attention_layers
from methods.prompt_init import PromptInitConfig, initial_token_ids, random_prompt


class PromptedAttentionLayer(nn.Module):
    """An attention layer that can report the prompt's keys and values, and attend to them."""

    base_attention_layer: Any

    def __init__(self, base_attention_layer: Any) -> None:
        super().__init__()
        self.base_attention_layer = base_attention_layer

    def forward(
        self,
        *args: Any,
        report_keys_values: list[KeysValues] | None = None,
        prompt_keys_values: list[KeysValues] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        layer = self.base_attention_layer
        if report_keys_values is not None:
            capture = KeyValueCapture(report_keys_values)
            outputs: tuple[Any, ...] = layer(*args, **{**kwargs, "past_key_values": capture})
            return outputs
        if prompt_keys_values is None:
            raise RuntimeError(
                f"{type(layer).__name__} {layer.layer_idx} got no prompt: this decoder does not hand keyword arguments "
                "down to its attention layers, which prompt_tuning needs"
            )
        return attend_with_prefix(layer, prompt_keys_values[layer.layer_idx], args, kwargs)


class PromptTuningDecoder(nn.Module):
    """A decoder whose tokens come after P trained embeddings.

    The prompt comes first and is the same for every row, so its keys and values do not depend on the tokens. They are
    computed once for the whole batch, from one sequence of P embeddings that runs through the frozen decoder, and every
    attention layer puts them in front of its own. For the tokens this equals concatenating the prompt to the input
    embeddings right before the first real token: the same positions, the same keys, the same values, to rounding.
    Outputs and cache hold the tokens only.

    Args:
        decoder: The headless model, e.g. LlamaModel or GPT2Model; it stays frozen.
        prompt: ``(P, D)`` initial embeddings.
    """

    def __init__(self, decoder: Any, prompt: torch.Tensor) -> None:
        super().__init__()
        self.decoder = decoder
        self.prompt_embeddings = nn.Embedding(prompt.shape[0], prompt.shape[1], _weight=prompt)
        self.register_buffer("prompt_tokens", torch.arange(len(prompt), device=prompt.device), persistent=False)
        self._decoding_keys_values: list[KeysValues] | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # config, embed_tokens, ... of the decoder that this one stands for
            return getattr(super().__getattr__("decoder"), name)

    def train(self, mode: bool = True) -> PromptTuningDecoder:
        self._decoding_keys_values = None  # The prompt may have been trained since.
        return super().train(mode)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if position_ids is None:
            position_ids = self._positions(input_ids, inputs_embeds, attention_mask, past_key_values)
        return self.decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids + len(self.prompt_tokens),
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            prompt_keys_values=self._prompt_keys_values(),
            **kwargs,
        )

    def _positions(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Any,
    ) -> torch.Tensor:
        """``(B, T)`` for callers that give none; padding does not count."""
        tokens = input_ids if input_ids is not None else inputs_embeds
        if tokens is None:
            raise ValueError("a decoder needs input_ids or inputs_embeds")
        num_tokens = tokens.shape[1]
        if attention_mask is not None and attention_mask.dim() == 2:
            return positions_of(attention_mask)[:, -num_tokens:]
        cached = past_key_values.get_seq_length() if past_key_values is not None else 0
        return (torch.arange(num_tokens, device=tokens.device) + cached)[None]

    def _prompt_keys_values(self) -> list[KeysValues]:
        """``(1, H, P, C)`` twice for each layer. Kept between the steps of decoding, where nothing is trained."""
        if self._decoding_keys_values is not None and not torch.is_grad_enabled():
            return self._decoding_keys_values
        keys_values: list[KeysValues] = []
        prompt = self.prompt_embeddings(self.prompt_tokens)[None]  # (1, P, D)
        with without_checkpointing(self.decoder):
            self.decoder(
                inputs_embeds=prompt,
                position_ids=self.prompt_tokens[None],
                use_cache=False,
                report_keys_values=keys_values,
            )
        if not self.training and not torch.is_grad_enabled():
            self._decoding_keys_values = keys_values
        return keys_values


@contextmanager
def without_checkpointing(decoder: nn.Module) -> Iterator[None]:
    """Switch gradient checkpointing off: keys and values that leave a block must not be recomputed apart from it."""
    layers: list[Any] = [module for module in decoder.modules() if getattr(module, "gradient_checkpointing", False)]
    for layer in layers:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True


class PromptTuning(Method):
    """Trained embeddings in front of the input embeddings, right before the first real token.

    Source: Lester et al. 2021, section 2.

    Deviations: a decoder instead of the T5 encoder; the prompt starts from words by default (their section 3.2 samples
    from common vocabulary or takes class labels, ``init: vocabulary`` is the nearest), because at 100 to 300 million
    parameters a random start hardly trains. Dropout inside the base model, where it has any, acts once on the prompt
    instead of once for each row.
    """

    class Config(PromptInitConfig):
        """Settings of prompt tuning."""

        num_prompt_tokens: PositiveInt = Field(20, description="prompt tokens in front of the input")

    paper: ClassVar[str] = "Lester et al. 2021, arXiv:2104.08691"
    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=3e-3, high=3e-1)}

    def patch(self, model: Any) -> nn.Module:
        for parent, name, layer in list(attention_layers(model)):
            setattr(parent, name, PromptedAttentionLayer(layer))
        decoder = PromptTuningDecoder(model.base_model, self._initial_prompt(model))
        setattr(model, model.base_model_prefix, decoder)
        module: nn.Module = model
        return module

    def to_peft(self, model: nn.Module) -> PeftAdapter:
        """Prompt tuning as it is: one matrix ``(P, D)``."""
        (prompt,) = self.adapter_state(model).values()
        config = {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": prompt.shape[0],
            "token_dim": prompt.shape[1],
            "num_transformer_submodules": 1,
        }
        return PeftAdapter(config, {"prompt_embeddings": prompt})

    def _initial_prompt(self, model: Any) -> torch.Tensor:
        embedding: torch.Tensor = model.get_input_embeddings().weight.detach()
        count = self.config.num_prompt_tokens
        if self.config.init == "normal":
            return random_prompt(count, embedding.shape[1], self.config.init_std, embedding)
        ids = initial_token_ids(self.config.init, self.config.init_text, count, embedding, self.tokenizer)
        return embedding[ids].clone()
