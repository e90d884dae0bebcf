"""Prompt tuning (Lester et al. 2021): trained embeddings in front of the input, and nowhere else.

B batch, T tokens in this call, P prompt tokens, D hidden size, H key/value heads, C channels of a head, K trials
that share the rows (1 unless they train in lanes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import nn

from bench.method import Lanes, Method, MethodError, PeftAdapter, Range, SearchSpace, join_lanes
from methods.attention_prefix import (
    KeptWhileDecoding,
    KeysValues,
    KeyValueCapture,
    attend_with_prefix,
    require_reach,
)
from methods.attention_sites import AttentionSite, attention_sites, replace_module, stacks
from methods.prompt_init import PromptInitConfig, initial_token_ids, label_embeddings, normal_like
from methods.prompt_insertion import PromptEmbeddings, PromptInfixDecoder, PromptTuningEncoder
from methods.token_positions import accept_source_lengths, token_positions

DEFAULT_RANGE = 0.5  # Lester et al. 2021, section 3.2: uniform in [-0.5, 0.5]


class PromptedAttentionLayer(nn.Module):
    """An attention layer that can report the prompt's keys and values, and attend to them."""

    def __init__(self, base_attention_layer: nn.Module, site: AttentionSite) -> None:
        super().__init__()
        self.base_attention_layer = base_attention_layer
        self.site = site

    def forward(
        self,
        *args: Any,
        report_keys_values: list[KeysValues] | None = None,
        prompt_keys_values: list[KeysValues] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        layer = self.site.layer
        if report_keys_values is not None:
            capture = KeyValueCapture(report_keys_values)
            outputs: tuple[Any, ...] = layer(*args, **{**kwargs, self.site.names.cache: capture})
            return outputs
        if prompt_keys_values is None:
            raise RuntimeError(
                f"{type(layer).__name__} {layer.layer_idx} got no prompt: this decoder does not hand keyword arguments "
                "down to its attention layers, which prompt_tuning needs"
            )
        return attend_with_prefix(self.site, _of_layer(prompt_keys_values, layer), args, kwargs)


# Not compiled: each layer, with an index of its own, would otherwise be compiled by itself.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _of_layer(prompt_keys_values: list[KeysValues], layer: Any) -> KeysValues:
    keys_values: KeysValues = prompt_keys_values[layer.layer_idx]
    return keys_values


class PromptTuningDecoder(PromptEmbeddings):
    """A decoder whose tokens come after P trained embeddings.

    The prompt comes first and is the same for every row, so its keys and values do not depend on the tokens. They are
    computed once for the whole batch, from one sequence of P embeddings that runs through the frozen decoder, and every
    attention layer puts them in front of its own. For the tokens this equals concatenating the prompt to the input
    embeddings right before the first real token: the same positions, the same keys, the same values, to rounding.
    Outputs and cache hold the tokens only.
    """

    def __init__(self, stack: Any, prompt: torch.Tensor) -> None:
        super().__init__(stack, prompt)
        self._kept = KeptWhileDecoding(list(self.prompt_embeddings.parameters()))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        positions = token_positions(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        return self.stack(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions + len(self.prompt_tokens),
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            prompt_keys_values=self._kept.get(self, self._prompt_keys_values),
            **kwargs,
        )

    def _prompt_keys_values(self) -> list[KeysValues]:
        """``(K, H, P, C)`` twice for each layer."""
        keys_values: list[KeysValues] = []
        # A pass of few tokens, in which every layer adds to a list, is not worth compiling.
        with without_checkpointing(self.stack), torch.compiler.set_stance("force_eager"):
            self.stack(
                inputs_embeds=self.prompts(),
                position_ids=self.prompt_tokens[None],
                use_cache=False,
                report_keys_values=keys_values,
            )
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

    Source: Lester et al. 2021, section 2. In an encoder-decoder model, as theirs, the prompt stands at the encoder's
    input; otherwise at the decoder's.

    Deviations: the prompt starts from words by default (section 3.2 draws it at random, from common vocabulary or from
    class labels: ``init: uniform``, ``vocabulary``, ``labels``), because at 100 to 300 million parameters a random
    start hardly trains. In a decoder, dropout inside the base model, where it has any, acts once on the prompt instead
    of once for each row, and a layer with a sliding window sees the prompt however far the text goes.
    """

    class Config(PromptInitConfig):
        """Settings of prompt tuning."""

        num_prompt_tokens: PositiveInt = Field(20, description="prompt tokens in front of the input")
        init: Literal["text", "vocabulary", "labels", "uniform", "normal"] = Field(  # type: ignore[assignment] # wider
            "text",
            description="text: the embeddings of init_text; vocabulary: of sampled common tokens; labels: of "
            "init_labels, the rest sampled; uniform: random within init_range; normal: random with standard deviation "
            "init_std",
        )
        init_range: PositiveFloat | None = Field(None, description="with init: uniform; None is 0.5, for [-0.5, 0.5]")
        init_labels: list[str] | None = Field(
            None, description="with init: labels; texts, such as class labels, of one prompt token each", min_length=1
        )
        infix: bool = Field(
            False, description="right before the last source token instead of in front (Li & Liang's ablation)"
        )

        @model_validator(mode="after")
        def _has_labels(self) -> Self:
            if self.init == "labels" and self.init_labels is None:
                raise ValueError("init: labels needs init_labels, a list of texts")
            return self

    paper: ClassVar[str] = "Lester et al. 2021, arXiv:2104.08691"
    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=3e-3, high=3e-1)}

    def patch(self, model: Any) -> nn.Module:
        prompt, found = self._initial_prompt(model), stacks(model)
        decoder = found["decoder"]
        if "encoder" in found:
            if self.config.infix:
                raise MethodError(f"infix is for decoders alone; {type(model).__name__} has an encoder")
            encoder = PromptTuningEncoder(found["encoder"], prompt)
            decoder.register_forward_pre_hook(encoder.lengthen_source_mask, with_kwargs=True)
            replace_module(model, found["encoder"], encoder)
        elif self.config.infix:
            accept_source_lengths(model)
            replace_module(model, decoder, PromptInfixDecoder(decoder, prompt))
        else:
            sites = attention_sites(model)
            require_reach(sites)
            for site in sites:
                site.replace(PromptedAttentionLayer(site.layer, site))
            replace_module(model, decoder, PromptTuningDecoder(decoder, prompt))
        module: nn.Module = model
        return module

    @property
    def fusable(self) -> bool:
        return True

    def fuse(self, models: Sequence[nn.Module], lanes: Lanes) -> None:
        join_lanes(models, lanes, PromptEmbeddings)

    def to_peft(self, model: nn.Module) -> PeftAdapter:
        """Prompt tuning as it is: one matrix ``(P, D)``."""
        if self.config.infix:
            raise MethodError("infix: peft puts prompts in front of the source only; set infix: false to export")
        (prompt,) = self.adapter_state(model).values()
        config = {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": prompt.shape[0],
            "token_dim": prompt.shape[1],
            "num_transformer_submodules": 1,
        }
        return PeftAdapter(config, {"prompt_embeddings": prompt})

    def _initial_prompt(self, model: Any) -> torch.Tensor:
        """``(P, D)`` in the space of the input embeddings, after whatever scale the model gives them."""
        reader = next(iter(stacks(model).values()))
        embed, count = reader.get_input_embeddings(), self.config.num_prompt_tokens
        with torch.no_grad():
            if self.config.init == "labels" and not embed.weight.is_meta:
                size = len(embed.weight)
                return label_embeddings(self.config.init_labels, count, embed, size, self.tokenizer)
            prompt: torch.Tensor = embed(initial_token_ids(self.config, count, embed.weight, self.tokenizer))
        if self.config.init == "normal":
            return normal_like(prompt, self.config.init_std)
        if self.config.init == "uniform":
            return (torch.rand_like(prompt) * 2 - 1) * (self.config.init_range or DEFAULT_RANGE)
        return prompt
