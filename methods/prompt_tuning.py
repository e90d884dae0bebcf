"""Prompt tuning (Lester et al. 2021): trained embeddings in front of the input, and nowhere else.

B batch, T tokens in this call, P prompt tokens, D hidden size, H key/value heads, C channels of a head, K trials
that share the rows (1 unless they train in lanes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import nn

from bench.method import Lanes, Method, MethodError, PeftAdapter, Range, SearchSpace, join_lanes
from methods.parts.attention_prefix import (
    KeptWhileDecoding,
    KeysValues,
    KeyValueCapture,
    NotHandedDown,
    attend_with_prefix,
)
from methods.parts.attention_sites import (
    AttentionSite,
    attention_sites,
    cache_layers,
    replace_module,
    stacks,
    without_experts,
)
from methods.parts.cache_names import CACHE
from methods.parts.decoder_kinds import keeps_prompt_apart, per_layer_inputs, require_readable
from methods.parts.prompt_init import PromptInitConfig, initial_token_ids, label_embeddings, normal_like
from methods.parts.prompt_insertion import PromptEmbeddings, PromptInRowsDecoder, PromptTuningEncoder
from methods.parts.token_positions import accept_source_lengths, token_positions

DEFAULT_RANGE = 0.5  # Lester et al. 2021, section 3.2: uniform in [-0.5, 0.5]


class PromptedAttentionLayer(nn.Module):
    """An attention layer that can report the prompt's keys and values, and attend to them.

    Args:
        base_attention_layer: An attention layer of transformers; it stays frozen.
        site: Its place.
        window: The number of last tokens that a token sees, itself and prompt tokens included; None: all.
    """

    def __init__(self, base_attention_layer: nn.Module, site: AttentionSite, window: int | None) -> None:
        super().__init__()
        self.base_attention_layer = base_attention_layer
        self.site = site
        self.window = window

    def forward(
        self,
        *args: Any,
        report_keys_values: list[KeysValues] | None = None,
        prompt_keys_values: list[KeysValues] | None = None,
        token_distances: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Call the base layer, and return its outputs.

        Args:
            args: Of the base layer.
            report_keys_values: A list to which the keys and values of this call are added.
            prompt_keys_values: The prompt's keys and values for each layer, ``(K, H, P, C)`` each.
            token_distances: ``(B, T)``, the distance of each token from the first token after the prompt.
            kwargs: Of the base layer.
        """
        layer = self.site.layer
        if report_keys_values is not None:
            capture = KeyValueCapture(report_keys_values)
            outputs: tuple[Any, ...] = layer(*args, **{**kwargs, self.site.names.cache: capture})
            return outputs
        if prompt_keys_values is None:
            raise NotHandedDown(f"{type(layer).__name__} {layer.layer_idx} got no prompt")
        keys_values = _of_layer(prompt_keys_values, layer)
        visible = None
        if self.window is not None and token_distances is not None:
            count = keys_values[0].shape[2]
            back = torch.arange(count, 0, -1, device=token_distances.device)  # (P,) from the first token after it
            visible = token_distances[..., None] + back < self.window  # (B, T, P)
        return attend_with_prefix(self.site, keys_values, args, kwargs, visible=visible)


# It is not compiled, because each layer has another index and would be compiled separately.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _of_layer(prompt_keys_values: list[KeysValues], layer: Any) -> KeysValues:
    keys_values: KeysValues = prompt_keys_values[layer.layer_idx]
    return keys_values


class PromptTuningDecoder(PromptEmbeddings):
    """A decoder whose tokens come after P trained embeddings.

    The prompt comes first and is the same for every row, so that its keys and values do not depend on the tokens. They
    are computed once for the whole batch, from one sequence of P embeddings that runs through the frozen decoder, and
    every attention layer puts them in front of its own. The tokens get the same positions, keys and values, to
    rounding, as if the prompt were inserted into the input embeddings right before the first real token. Outputs and
    cache hold the tokens only.
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
        tokens: Any = input_ids if input_ids is not None else inputs_embeds
        cache = kwargs.pop(CACHE, past_key_values)
        positions = token_positions(input_ids, attention_mask, position_ids, cache, inputs_embeds)
        return self.stack(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions + len(self.prompt_tokens),
            **{CACHE: cache},
            inputs_embeds=inputs_embeds,
            prompt_keys_values=self._kept.get(self, self._prompt_keys_values),
            token_distances=positions.expand(len(tokens), -1),
            **kwargs,
        )

    def reaches(self, sites: Sequence[AttentionSite]) -> bool:
        """Whether every layer gets the prompt. Some decoders do not pass keyword arguments on to attention layers."""
        on_meta = self.prompt_tokens.is_meta
        try:
            with torch.no_grad(), without_experts(self.stack) if on_meta else nullcontext():
                return len(self._prompt_keys_values()) == len(sites)
        except NotHandedDown:
            return False

    def _prompt_keys_values(self) -> list[KeysValues]:
        """The prompt's keys and values for each layer, ``(K, H, P, C)`` each."""
        keys_values: list[KeysValues] = []
        prompts = self.prompts()
        mask = torch.ones(1, 1, *[prompts.shape[1]] * 2, device="meta") if prompts.is_meta else None
        # This pass has few tokens, and every layer adds to a list, so that compiling it does not pay.
        with without_checkpointing(self.stack), torch.compiler.set_stance("force_eager"):
            self.stack(
                inputs_embeds=prompts,
                attention_mask=mask,
                position_ids=self.prompt_tokens[None],
                use_cache=False,
                report_keys_values=keys_values,
            )
        return keys_values


def prompt_apart(model: Any, prompt: torch.Tensor) -> PromptTuningDecoder | None:
    """A decoder that computes the prompt once for all rows; None if this model needs the prompt in every row."""
    sites, kept = attention_sites(model, required=False), cache_layers(model)
    if not keeps_prompt_apart(model, sites):
        return None
    for site in sites:
        site.replace(
            PromptedAttentionLayer(site.layer, site, getattr(kept[site.layer.layer_idx], "sliding_window", None))
        )
    decoder = PromptTuningDecoder(stacks(model)["decoder"], prompt)
    if decoder.reaches(sites):
        return decoder
    for site in sites:
        site.replace(site.layer)
    return None


@contextmanager
def without_checkpointing(decoder: nn.Module) -> Iterator[None]:
    """Inside the block gradient checkpointing is off: keys and values that leave a block must not be recomputed."""
    layers: list[Any] = [module for module in decoder.modules() if getattr(module, "gradient_checkpointing", False)]
    for layer in layers:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True


class PromptTuning(Method):
    """Trains embeddings in front of the input embeddings, right before the first real token.

    Source: Lester et al. 2021, section 2. In an encoder-decoder model, which the paper uses, the prompt is part of the
    encoder's input; otherwise of the decoder's.

    Deviations: the prompt starts from words by default (section 3.2 draws it at random, from common vocabulary or from
    class labels: ``init: uniform``, ``vocabulary``, ``labels``), because models of 100 to 300 million parameters hardly
    train from a random start. In decoders whose layers all attend to tokens, dropout inside the base model acts once on
    the prompt instead of once for each row. If each layer has its own embedding of every token (Gemma 3n, Gemma 4),
    those of the prompt are trained, too.
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
        init_range: PositiveFloat | None = Field(None, description="with init: uniform; null: 0.5, for [-0.5, 0.5]")
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
        parts = stacks(model)
        decoder = parts["decoder"]
        if "encoder" not in parts:
            require_readable(model)
        ids = self._initial_token_ids(model)
        prompt = self._initial_prompt(model, ids)
        if "encoder" in parts:
            if self.config.infix:
                raise MethodError(f"infix is for decoders alone; {type(model).__name__} has an encoder")
            encoder = PromptTuningEncoder(parts["encoder"], prompt)
            decoder.register_forward_pre_hook(encoder.lengthen_source_mask, with_kwargs=True)
            replace_module(model, parts["encoder"], encoder)
        elif (apart := None if self.config.infix else prompt_apart(model, prompt)) is not None:
            replace_module(model, decoder, apart)
        else:
            if self.config.infix:
                accept_source_lengths(model)
            model.prompt_in_rows = True
            in_rows = PromptInRowsDecoder(decoder, prompt, self._per_layer(decoder, ids), self.config.infix)
            replace_module(model, decoder, in_rows)
        module: nn.Module = model
        return module

    @property
    def fusable(self) -> bool:
        return True

    def fuse(self, models: Sequence[nn.Module], lanes: Lanes) -> None:
        join_lanes(models, lanes, PromptEmbeddings)

    def to_peft(self, model: nn.Module) -> PeftAdapter:
        """PROMPT_TUNING of peft: one matrix ``(P, D)``."""
        if self.config.infix:
            raise MethodError("infix: peft puts prompts in front of the source only; set infix: false to export")
        prompt, *others = self.adapter_state(model).values()
        if others:
            raise MethodError("peft trains no embeddings of single layers, and this model has them: no equal export")
        config = {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": prompt.shape[0],
            "token_dim": prompt.shape[1],
            "num_transformer_submodules": 1,
        }
        return PeftAdapter(config, {"prompt_embeddings": prompt})

    def _initial_token_ids(self, model: Any) -> torch.Tensor:
        """``(P,)``, the tokens to start from; zeros if the prompt does not start from words."""
        weight = next(iter(stacks(model).values())).get_input_embeddings().weight
        return initial_token_ids(self.config, self.config.num_prompt_tokens, weight, self.tokenizer)

    def _initial_prompt(self, model: Any, ids: torch.Tensor) -> torch.Tensor:
        """``(P, D)`` in the space of the input embeddings, with the model's own scaling of them."""
        embed = next(iter(stacks(model).values())).get_input_embeddings()
        with torch.no_grad():
            if self.config.init == "labels" and not embed.weight.is_meta:
                size = len(embed.weight)
                return label_embeddings(self.config.init_labels, len(ids), embed, size, self.tokenizer)
            prompt: torch.Tensor = embed(ids)
        if self.config.init == "normal":
            return normal_like(prompt, self.config.init_std)
        if self.config.init == "uniform":
            return (torch.rand_like(prompt) * 2 - 1) * (self.config.init_range or DEFAULT_RANGE)
        return prompt

    def _per_layer(self, decoder: Any, ids: torch.Tensor) -> torch.Tensor | None:
        """The layers' own embeddings ``(P, layers, channels)`` of the initial words, or zeros; None in most models."""
        with torch.no_grad():
            made = per_layer_inputs(decoder, ids[None])
        if made is None:
            return None
        return made[0] if self.config.init in ("text", "vocabulary") else torch.zeros_like(made[0])
