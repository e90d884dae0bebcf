"""A trained prefix in front of every attention layer: settings, start, storage. Shared by prefix tuning and MAM.

P prompt tokens, D hidden size, H key/value heads, C head channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import nn

from bench.method import Lanes, MethodError, copy_state, join_lanes, trained_parameters
from methods.parts.attention_prefix import KeysValues, NotHandedDown, made_keys_values, require_reach
from methods.parts.attention_sites import (
    AttentionSite,
    LayerInput,
    attention_sites,
    bias_source,
    chosen_sites,
    has_encoder,
    layer_inputs,
    looks_rotations_up,
    shared_layer,
    stacks,
    uses_distance_bias,
    uses_rotary_positions,
    without_experts,
)
from methods.parts.decoder_kinds import require_keys_and_values, require_readable
from methods.parts.prefix_layers import (
    KeyValuePrefixAttentionLayer,
    PrefixTuningAttentionLayer,
    Reparametrization,
    SharedPrefixAttentionLayer,
)
from methods.parts.prompt_init import PromptInitConfig, initial_token_ids, normal_like
from methods.parts.token_positions import PromptPlacement


class PrefixConfig(PromptInitConfig):
    """Settings of prefix tuning."""

    default_mlp_hidden_size: ClassVar[int] = 512
    """Li & Liang 2021, footnote 4: 512 for table-to-text, 800 for summarisation."""

    num_prompt_tokens: PositiveInt = Field(10, description="prompt tokens in front of every attention layer")
    parametrization: Literal["embedding", "key_value", "mlp"] = Field(
        "embedding",
        description="embedding: prompt embeddings sent through each layer's frozen projections; key_value: free "
        "keys and values; mlp: keys and values made by Li & Liang's MLP, which is trained and not stored",
    )
    mlp_hidden_size: PositiveInt | None = Field(
        None, description="with parametrization: mlp; null: that of the paper: 512, or 800 for mam"
    )
    layers: list[int] | None = Field(
        None,
        description="indices of the layers with a prefix, from 0, negative from the last; null: all",
        min_length=1,
    )
    shift_positions: bool = Field(
        False, description="tokens move by the prefix's length, as in Li & Liang's code; else they stay"
    )
    infix: bool = Field(
        False, description="right before the last source token instead of in front of all (Li & Liang's ablation)"
    )
    path: Literal["fused", "literal"] = Field(
        "fused",
        description="with parametrization: embedding; fused: the prompt's keys and values once per batch; literal: "
        "the specification",
    )

    @model_validator(mode="after")
    def _parametrization_uses_it(self) -> Self:
        if self.path == "literal" and self.parametrization != "embedding":
            raise ValueError(f"path: literal is defined for parametrization: embedding, not {self.parametrization}")
        if self.mlp_hidden_size is not None and self.parametrization != "mlp":
            raise ValueError(
                f"mlp_hidden_size has no effect with parametrization: {self.parametrization}; leave it out"
            )
        if self.parametrization == "mlp" and self.init != "normal" and self.num_prompt_tokens > self.hidden_size:
            raise ValueError(
                f"an MLP with {self.hidden_size} hidden units cannot start {self.num_prompt_tokens} prompt tokens from "
                "words; raise mlp_hidden_size, or set init: normal"
            )
        return self

    @property
    def hidden_size(self) -> int:
        """The hidden size of the MLP."""
        return self.mlp_hidden_size or self.default_mlp_hidden_size


class TrainedPrefix:
    """A prefix for the attention layers of a model.

    Args:
        config: The settings.
        tokenizer: Of the base model, for starts from words; None if only shapes matter.
    """

    def __init__(self, config: PrefixConfig, tokenizer: Any) -> None:
        self.config = config
        self.tokenizer = tokenizer

    def add_to(self, model: Any) -> None:
        """Give the chosen attention layers of a frozen base model a prefix.

        Raises:
            MethodError: A setting would have no effect in this model, or the model cannot have a prefix.
        """
        sites = attention_sites(model)
        self._require_effect(model, sites)
        require_reach(sites)
        if not has_encoder(model):
            require_readable(model, by_embeddings=False)
        chosen = self._with_own_keys(chosen_sites(sites, self.config.layers))
        require_keys_and_values(model, chosen)
        inputs = self._layer_inputs(model, chosen)
        sources = [bias_source(site, sites) for site in chosen]
        if self.config.parametrization == "embedding":
            self._patch_embeddings(chosen, inputs, sources)
        else:
            self._patch_keys_values(chosen, inputs, sources)
        self._patch_sharing(sites, chosen)
        PromptPlacement(
            self.config.num_prompt_tokens,
            shift=self.config.shift_positions or looks_rotations_up(model),
            infix=self.config.infix,
            rotary=uses_rotary_positions(model),
        ).apply_to(model)
        if self.config.infix:
            self._require_handing_down(model)

    def join_lanes(self, models: Sequence[nn.Module], lanes: Lanes) -> None:
        """Make each row of the first model see the prefix of its lane."""
        join_lanes(models, lanes, PrefixTuningAttentionLayer, KeyValuePrefixAttentionLayer, Reparametrization)

    def state(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The state to store: all trained tensors of the model, but for ``mlp`` keys and values instead of the MLP."""
        modules = _reparametrizations(model)
        dropped = {id(parameter) for _, module in modules for parameter in module.parameters()}
        kept = {name: tensor.detach() for name, tensor in trained_parameters(model) if id(tensor) not in dropped}
        with torch.no_grad():
            made = {module.role: module() for _, module in modules}
        for name, layer in _key_value_layers(model) if modules else ():
            for part, tensor in zip(("keys", "values"), made[layer.site.role][layer.index], strict=True):
                kept[f"{name}.prefix_{part}"] = tensor[0]
        return kept

    def load(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        """Put a stored state into a freshly patched model. Keys and values replace the MLP if there is one.

        Raises:
            MethodError: Names or shapes differ from those of :meth:`state`.
        """
        own = self.state(model)
        copy_state(own, state)
        if modules := _reparametrizations(model):
            for name, layer in _key_value_layers(model):
                layer.hold(own[f"{name}.prefix_keys"], own[f"{name}.prefix_values"])
            for stack, module in modules:
                module.retire(stack)

    def _require_effect(self, model: Any, sites: Sequence[AttentionSite]) -> None:
        name = type(model).__name__
        if has_encoder(model):
            for setting in ("shift_positions", "infix"):
                if getattr(self.config, setting):
                    raise MethodError(f"{setting} is for decoders alone; {name} has an encoder")
            return
        if uses_distance_bias(sites):
            if self.config.infix:
                raise MethodError(
                    f"infix is not for {name}: its scores fall with the distance from the first token, and an infix "
                    "stands at another distance in each row; leave it out"
                )
            if self.config.shift_positions:
                raise MethodError(
                    f"shift_positions changes nothing in {name}: only distances matter to its scores; leave it out"
                )
        if self.config.infix and looks_rotations_up(model):
            raise MethodError(
                f"infix is not for {name}: it looks rotations up in a table that begins at position 0; leave it out"
            )
        if (
            self.config.shift_positions
            and not self.config.infix
            and (self.config.parametrization == "embedding" or looks_rotations_up(model))
            and uses_rotary_positions(model)
        ):
            raise MethodError(
                f"shift_positions changes nothing in {name}: its positions are rotary, so that only "
                "distances matter, and the prompt stands right before the first token anyway; leave it out"
            )

    def _with_own_keys(self, sites: Sequence[AttentionSite]) -> list[AttentionSite]:
        """The chosen sites that make keys and values.

        Raises:
            MethodError: The setting ``layers`` names a layer that attends to the keys of another.
        """
        own = [site for site in sites if not site.reuses_keys]
        if self.config.layers is not None and len(own) < len(sites):
            (first, *_) = (site for site in sites if site.reuses_keys)
            raise MethodError(
                f"layers: {type(first.layer).__name__} {first.layer.layer_idx} attends to the keys of an earlier "
                "layer, and so to the prefix of that one; name layers that make keys"
            )
        return own

    def _patch_sharing(self, sites: Sequence[AttentionSite], chosen: Sequence[AttentionSite]) -> None:
        """Patch layers that attend to the keys of a layer with a prefix."""
        with_prefix = {id(site.layer) for site in chosen}
        for site in sites:
            if site.reuses_keys and id(shared_layer(site, sites)) in with_prefix:
                count = self.config.num_prompt_tokens
                site.replace(SharedPrefixAttentionLayer(site.layer, site, count, self.config.infix))

    def _require_handing_down(self, model: Any) -> None:
        """Check that the patched model passes keyword arguments on to its attention layers, by reading two tokens.

        Raises:
            MethodError: It does not.
        """
        ids = torch.zeros(1, 2, dtype=torch.long, device=model.get_input_embeddings().weight.device)
        mask = torch.ones(1, 1, 2, 2, device="meta") if ids.is_meta else None
        decoder = stacks(model)["decoder"]
        try:
            with torch.no_grad(), without_experts(decoder) if ids.is_meta else nullcontext():
                decoder(input_ids=ids, attention_mask=mask, source_lengths=ids[:, 0] + 1, use_cache=False)
        except NotHandedDown as error:
            raise MethodError(str(error)) from error

    def _layer_inputs(self, model: Any, sites: list[AttentionSite]) -> list[LayerInput]:
        """The input that each layer would get if the initial words were in front of the text."""
        embedding = model.get_input_embeddings().weight
        ids = initial_token_ids(self.config, self.config.num_prompt_tokens, embedding, self.tokenizer)
        # With rotary positions the prompt is right before the first token, which is at 0 unless tokens shift.
        before = uses_rotary_positions(model) and (self.config.infix or not self.config.shift_positions)
        from_zero = layer_inputs(model, sites, ids)
        if not before or looks_rotations_up(model):
            return from_zero
        # Hidden states are those at positions from 0, because some models scale queries by position. Only the rotation
        # is that of the prompt's positions.
        rotated = layer_inputs(model, sites, ids, first_position=-self.config.num_prompt_tokens)
        return [replace(moved, states=read.states) for read, moved in zip(from_zero, rotated, strict=True)]

    def _patch_embeddings(
        self, sites: Sequence[AttentionSite], inputs: Sequence[LayerInput], sources: Sequence[Any]
    ) -> None:
        tokens = torch.arange(self.config.num_prompt_tokens, device=inputs[0].states.device)
        for site, given, source in zip(sites, inputs, sources, strict=True):
            with torch.no_grad():
                made_keys_values(site, given)
            prompt = self._start(given.states)
            embeddings = nn.Embedding(prompt.shape[0], prompt.shape[1], _weight=prompt)
            layer = PrefixTuningAttentionLayer(
                site.layer,
                embeddings,
                tokens,
                site,
                given.rotary,
                source,
                self.config.path,
                self.config.infix,
                given.others,
            )
            site.replace(layer)

    def _patch_keys_values(
        self, sites: Sequence[AttentionSite], inputs: Sequence[LayerInput], sources: Sequence[Any]
    ) -> None:
        by_role: dict[str, list[tuple[KeyValuePrefixAttentionLayer, KeysValues]]] = {}
        for site, given, source in zip(sites, inputs, sources, strict=True):
            with torch.no_grad():
                keys, values = made_keys_values(site, given)
            of_role = by_role.setdefault(site.role, [])
            layer = KeyValuePrefixAttentionLayer(site.layer, site, len(of_role), source, self.config.infix)
            of_role.append((layer, (keys, values)))
            site.replace(layer)
            if self.config.parametrization == "key_value":
                layer.hold(self._start(keys[0]), self._start(values[0]))
        if self.config.parametrization == "mlp":
            for role, of_role in by_role.items():
                self._add_reparametrization(role, of_role)

    def _start(self, from_words: torch.Tensor) -> torch.Tensor:
        return normal_like(from_words, self.config.init_std) if self.config.init == "normal" else from_words

    def _add_reparametrization(
        self, role: str, of_role: Sequence[tuple[KeyValuePrefixAttentionLayer, KeysValues]]
    ) -> None:
        layer, (keys, _) = of_role[0]
        site = layer.site
        module = Reparametrization(
            self.config.num_prompt_tokens,
            site.config.hidden_size,
            self.config.hidden_size,
            [(part.shape[1], part.shape[-1]) for _, (part, _) in of_role],
            keys,
        )
        if self.config.init == "normal":
            with torch.no_grad():
                module.embedding.weight *= self.config.init_std or 1.0
        elif not keys.is_meta:
            module.start_from([keys_values for _, keys_values in of_role])
        module.serve(site.stack, role, [each for each, _ in of_role])


def _key_value_layers(model: nn.Module) -> Iterator[tuple[str, KeyValuePrefixAttentionLayer]]:
    return (
        (name, module) for name, module in model.named_modules() if isinstance(module, KeyValuePrefixAttentionLayer)
    )


def _reparametrizations(model: nn.Module) -> list[tuple[nn.Module, Reparametrization]]:
    """The stack and module of each reparametrisation."""
    return [
        (stack, module)
        for stack in model.modules()
        for module in stack.children()
        if isinstance(module, Reparametrization)
    ]
