"""Where attention happens in a model of transformers: the layers, what each attends to, what reaches each.

Everything is found by the conventions of transformers: an attention layer is a module named ...Attention that knows its
layer_idx. Shared by prefix and prompt tuning.

B batch, P prompt tokens, D hidden size, C head channels.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from bench.method import MethodError

Role = Literal["decoder", "encoder", "cross"]
"""Self-attention of a decoder, self-attention of an encoder, or a decoder's attention to the encoder's output."""


@dataclass(frozen=True)
class CallNames:
    """What an attention layer calls its arguments: T5 and GPT-NeoX have names of their own."""

    mask: str
    cache: str
    has_position_bias: bool


@dataclass(frozen=True)
class AttentionSite:
    """One attention layer of a model."""

    role: Role
    stack: nn.Module  # the encoder or decoder that the layer is part of
    parent: nn.Module
    name: str
    layer: Any
    names: CallNames

    def replace(self, wrapper: nn.Module) -> None:
        """Put ``wrapper`` where the layer is."""
        setattr(self.parent, self.name, wrapper)


@dataclass(frozen=True)
class LayerInput:
    """What an attention layer works on, for one sequence."""

    states: torch.Tensor  # (P, D) what keys and values are made of: for cross-attention the encoder's output
    rotary: tuple[torch.Tensor, torch.Tensor] | None  # cos and sin, (1, P, C) each, where keys are rotated by position


def has_encoder(model: Any) -> bool:
    """Whether a model has an encoder besides its decoder."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def stacks(model: Any) -> dict[Literal["decoder", "encoder"], Any]:
    """The modules that run a model's layers, the encoder first."""
    if has_encoder(model):
        return {"encoder": model.get_encoder(), "decoder": model.get_decoder()}
    return {"decoder": model.get_decoder()}


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` where ``old`` is in ``model``."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


def attention_sites(model: Any) -> list[AttentionSite]:
    """Every attention layer: the encoder's first, each stack's in order of its layers.

    Raises:
        MethodError: The model has none that is known by the conventions of transformers.
    """
    found = [
        AttentionSite(_role(part, child, has_encoder(model)), stack, parent, name, child, _call_names(child))
        for part, stack in stacks(model).items()
        for parent in stack.modules()
        for name, child in parent.named_children()
        if type(child).__name__.endswith("Attention") and getattr(child, "layer_idx", None) is not None
    ]
    if not found:
        raise MethodError(
            f"{type(model).__name__} has no attention layer to patch: looked for modules named ...Attention that know "
            "their layer_idx, as the models of transformers do"
        )
    return found


def _role(part: Literal["decoder", "encoder"], layer: Any, beside_encoder: bool) -> Role:
    return "cross" if part == "decoder" and beside_encoder and not is_causal(layer) else part


def is_causal(layer: Any) -> bool:
    """Whether an attention layer hides later tokens from earlier ones."""
    return bool(getattr(layer, "is_causal", True))


def _call_names(layer: nn.Module) -> CallNames:
    parameters = inspect.signature(layer.forward).parameters
    return CallNames(
        mask="mask" if "mask" in parameters else "attention_mask",
        cache="layer_past" if "layer_past" in parameters else "past_key_values",
        has_position_bias="position_bias" in parameters,
    )


def uses_rotary_positions(model: nn.Module) -> bool:
    """Whether a model rotates keys and queries by position."""
    return any(type(module).__name__.endswith("RotaryEmbedding") for module in model.modules())


def sliding_window(layer: Any) -> int | None:
    """How far back an attention layer sees, None for all the way."""
    window: int | None = getattr(layer, "sliding_window", None)
    if not hasattr(layer, "sliding_window") and not getattr(layer.config, "layer_types", None):
        window = getattr(layer.config, "sliding_window", None)  # Mistral's layers ask their configuration
    return window


def layer_inputs(
    model: Any, sites: list[AttentionSite], token_ids: torch.Tensor, first_position: int = 0
) -> list[LayerInput]:
    """What reaches each of ``sites`` when the frozen model reads ``token_ids``.

    An encoder and its decoder both read them.

    Args:
        model: The base model, also without weights on the meta device.
        sites: Unpatched layers of it.
        token_ids: ``(P,)`` int64.
        first_position: Of the first token; has no effect beside an encoder.
    """
    inputs: dict[int, LayerInput] = {}

    def keep(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = kwargs.get("key_value_states")
        if states is None:
            states = args[0] if args else kwargs["hidden_states"]
        rotary = kwargs.get("position_embeddings")
        inputs[id(layer)] = LayerInput(states[0].detach().clone(), rotary)

    hooks = [site.layer.register_forward_pre_hook(keep, with_kwargs=True) for site in sites]
    try:
        with torch.no_grad():
            model.base_model(**_reading(model, token_ids, first_position), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [inputs[id(site.layer)] for site in sites]


def _reading(model: Any, token_ids: torch.Tensor, first_position: int) -> dict[str, torch.Tensor]:
    """Arguments with which a model reads one text."""
    arguments = {"input_ids": token_ids[None]}
    if has_encoder(model):
        arguments["decoder_input_ids"] = token_ids[None]
    else:
        positions = torch.arange(first_position, first_position + len(token_ids), device=token_ids.device)
        arguments["position_ids"] = positions[None]
    if token_ids.is_meta:  # Masks are made by looking at values, and there are none; a 4-D mask is taken as it is.
        mask = torch.ones(1, 1, len(token_ids), len(token_ids), device="meta")
        arguments["attention_mask"] = mask
        if has_encoder(model):
            arguments["decoder_attention_mask"] = mask
    return arguments


def chosen_sites(sites: list[AttentionSite], indices: list[int] | None) -> list[AttentionSite]:
    """The sites of these layers, in every stack alike; negative indices count from the last layer, None is all.

    Raises:
        MethodError: A stack has no such layer.
    """
    if indices is None:
        return sites
    chosen: list[AttentionSite] = []
    for stack in dict.fromkeys(site.stack for site in sites):
        of_stack = [site for site in sites if site.stack is stack]
        count = max(site.layer.layer_idx for site in of_stack) + 1
        if wrong := [index for index in indices if not -count <= index < count]:
            raise MethodError(f"layers: {wrong[0]} is not among the {count} layers of {type(stack).__name__}")
        wanted = {index % count for index in indices}
        chosen.extend(site for site in of_stack if site.layer.layer_idx in wanted)
    return chosen


def bias_source(site: AttentionSite, sites: list[AttentionSite]) -> Any:
    """The layer that makes the relative position bias which ``site`` shares; None where there is none (cross)."""
    return next(
        (
            other.layer
            for other in sites
            if other.stack is site.stack
            and other.role == site.role
            and getattr(other.layer, "has_relative_attention_bias", False)
        ),
        None,
    )
