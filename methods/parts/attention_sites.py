"""Finds the attention layers of a model of transformers, their kinds and their inputs. Shared by prefix and prompt.

They are found by a convention of transformers: an attention layer is a module named ...Attention with a layer_idx.

B batch, P prompt tokens, D hidden size, C head channels.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicCache, LinearAttentionCacheLayerMixin

from bench.method import MethodError
from methods.parts.cache_names import CACHE

Rotary = tuple[torch.Tensor, ...]
"""Cosine and sine of positions, or both as one complex tensor."""

Role = Literal["decoder", "encoder", "cross"]
"""Self-attention of a decoder, self-attention of an encoder, or a decoder's attention to the encoder's output."""


# Layers whose boolean mask is true where a key is hidden; in other layers it is true where a key is seen.
HIDING_MASKS = ("MptAttention",)

# Arguments of attention layers that are handled for every family when a prompt is put in front.
KNOWN_ARGUMENTS = frozenset(
    (
        "hidden_states",
        "position_embeddings",
        "attention_mask",
        "mask",
        "past_key_values",
        "cache",
        "layer_past",
        "use_cache",
        "output_attentions",
        "key_value_states",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "kwargs",
    )
)


@dataclass(frozen=True)
class CallNames:
    """The names of an attention layer's arguments: T5 and GPT-NeoX have different ones."""

    mask: str
    cache: str
    has_position_bias: bool
    """Whether the layer takes and returns T5's position bias."""
    order: tuple[str, ...]
    """All arguments, in their order."""
    others: tuple[str, ...]
    """Arguments that few families have: residual and alibi (BLOOM), position_ids (GPT-J), position_bias (MPT), ..."""


@dataclass(frozen=True)
class AttentionSite:
    """One attention layer of a model."""

    role: Role
    stack: nn.Module  # the encoder or decoder that the layer is part of
    parent: nn.Module
    name: str
    layer: Any
    names: CallNames

    @property
    def config(self) -> Any:
        """The configuration of the layer, or that of its stack if it has none."""
        return getattr(self.layer, "config", None) or self.stack.config

    @property
    def in_decoder_only(self) -> bool:
        """Whether the layer is part of a model without an encoder."""
        return not bool(getattr(self.stack.config, "is_encoder_decoder", False))

    @property
    def mask_hides(self) -> bool:
        """Whether a boolean mask is true where a key is hidden."""
        return type(self.layer).__name__ in HIDING_MASKS

    @property
    def reuses_keys(self) -> bool:
        """Whether the layer attends to keys and values of an earlier layer and makes none (Gemma 3n, Gemma 4)."""
        return bool(getattr(self.layer, "is_kv_shared_layer", False))

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by their names, also those that were passed by position."""
        return {**dict(zip(self.names.order, args, strict=False)), **kwargs}

    def replace(self, wrapper: nn.Module) -> None:
        """Put ``wrapper`` in the place of the layer."""
        setattr(self.parent, self.name, wrapper)


@dataclass(frozen=True)
class LayerInput:
    """The input of an attention layer, for one sequence."""

    states: torch.Tensor  # (P, D) from which keys and values are made: for cross-attention the encoder's output
    rotary: Rotary | None  # (1, P, C) each, if keys are rotated by position
    others: Mapping[str, Any] = field(default_factory=dict)  # further arguments of few families, see CallNames


def has_encoder(model: Any) -> bool:
    """Whether a model has an encoder besides its decoder."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def stacks(model: Any) -> dict[Literal["decoder", "encoder"], Any]:
    """The modules that run a model's layers, the encoder first."""
    if has_encoder(model):
        return {"encoder": model.get_encoder(), "decoder": model.get_decoder()}
    return {"decoder": _decoder(model)}


def _decoder(model: Any) -> Any:
    """The headless model within a decoder. ``get_decoder`` of some models returns the model itself, or its head."""
    decoder = model.get_decoder()
    if decoder is not model and (not isinstance(decoder, nn.Linear)):
        return decoder
    inside = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    return inside[0] if len(inside) == 1 else decoder


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace ``old`` by ``new`` everywhere in ``model``."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


def attention_sites(model: Any, required: bool = True) -> list[AttentionSite]:
    """All attention layers: the encoder's first, in the order of each stack's layers.

    Layers with a state instead of keys (linear attention, convolutions) are not among them.

    Raises:
        MethodError: A layer is required, and the model has none that follows the conventions of transformers.
    """
    with_encoder = has_encoder(model)
    stateful = set() if with_encoder else _stateful_layers(model)
    sites = [
        AttentionSite(_role(part, child, with_encoder), stack, parent, name, child, _call_names(child))
        for part, stack in stacks(model).items()
        for parent in stack.modules()
        for name, child in parent.named_children()
        if type(child).__name__.endswith("Attention")
        and getattr(child, "layer_idx", None) is not None
        and child.layer_idx not in stateful
        and (with_encoder or is_causal(child))
    ]
    if required and not sites:
        raise MethodError(
            f"{type(model).__name__} has no attention layer to patch: looked for modules named ...Attention that know "
            "their layer_idx, as the models of transformers do, and that keep keys and values of the tokens"
        )
    return sites


def cache_layers(model: Any) -> list[Any]:
    """The layers of a new cache of transformers for this model, one for each layer of the model.

    Raises:
        MethodError: transformers cannot make a cache for this model.
    """
    try:
        layers: list[Any] = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MethodError(f"transformers makes no cache for {type(model).__name__}: {error}") from error
    return layers


def keeps_states_alone(model: Any) -> bool:
    """Whether every layer of a model keeps a state that sums up its tokens, and none keeps keys."""
    return len(_stateful_layers(model)) == len(cache_layers(model)) > 0


def _stateful_layers(model: Any) -> set[int]:
    """Indices of the layers that keep a state and no keys."""
    if not isinstance(model, PreTrainedModel):
        return set()
    return {
        at
        for at, layer in enumerate(cache_layers(model))
        if isinstance(layer, LinearAttentionCacheLayerMixin) and not isinstance(layer, CacheLayerMixin)
    }


def _role(part: Literal["decoder", "encoder"], layer: Any, beside_encoder: bool) -> Role:
    return "cross" if part == "decoder" and beside_encoder and not is_causal(layer) else part


def is_causal(layer: Any) -> bool:
    """Whether an attention layer hides later tokens from earlier ones."""
    return bool(getattr(layer, "is_causal", True))


def _call_names(layer: nn.Module) -> CallNames:
    parameters = inspect.signature(layer.forward).parameters
    return CallNames(
        mask="mask" if "mask" in parameters else "attention_mask",
        cache=next((name for name in ("layer_past", CACHE) if name in parameters), "past_key_values"),
        has_position_bias=hasattr(layer, "has_relative_attention_bias"),
        order=tuple(parameters),
        others=tuple(name for name in parameters if name not in KNOWN_ARGUMENTS),
    )


def uses_rotary_positions(model: nn.Module) -> bool:
    """Whether a model rotates keys and queries by position."""
    return looks_rotations_up(model) or any(
        type(module).__name__.endswith("RotaryEmbedding") for module in model.modules()
    )


def looks_rotations_up(model: nn.Module) -> bool:
    """Whether rotations are read from a table, which begins at position 0 (GPT-J, CodeGen).

    Attention layers read the table themselves; since transformers 5.24 a module of GPT-J does so for all layers.
    """
    return any(
        type(module).__name__.endswith(("Attention", "RotaryEmbedding"))
        and isinstance(getattr(module, "embed_positions", None), torch.Tensor)
        for module in model.modules()
    )


def uses_distance_bias(sites: Sequence[AttentionSite]) -> bool:
    """Whether scores fall with the distance of a key (ALiBi: BLOOM, MPT, some Falcons)."""
    return any(has_distance_bias(site) for site in sites)


def has_distance_bias(site: AttentionSite) -> bool:
    """Whether an attention layer uses ALiBi."""
    if "alibi" in site.names.others:
        return bool(getattr(site.config, "alibi", True))  # Falcon has both kinds
    return "position_bias" in site.names.others and not site.names.has_position_bias


def sliding_window(layer: Any) -> int | None:
    """The number of last tokens that an attention layer sees; None: all tokens."""
    window: int | None = getattr(layer, "sliding_window", None)
    if not hasattr(layer, "sliding_window") and not getattr(layer.config, "layer_types", None):
        window = getattr(layer.config, "sliding_window", None)  # Mistral's layers read it from their configuration
    return window


def layer_inputs(
    model: Any, sites: list[AttentionSite], token_ids: torch.Tensor, first_position: int = 0, patched: bool = False
) -> list[LayerInput]:
    """The input of each of ``sites`` when the frozen model reads ``token_ids``.

    If there is an encoder, it and the decoder both read them.

    Args:
        model: The base model. It may be without weights, on the meta device.
        sites: Layers of the model.
        token_ids: ``(P,)`` int64.
        first_position: Position of the first token. It has no effect if there is an encoder.
        patched: Whether the layers may run for a prefix before they run for the text.

    Raises:
        MethodError: The model cannot be called like this, or a layer does not run exactly once.
    """
    inputs: dict[int, list[LayerInput]] = {id(site.layer): [] for site in sites}

    def keeping(site: AttentionSite) -> Any:
        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs[id(site.layer)].append(_layer_input(site, site.named(args, kwargs)))

        return keep

    hooks = [site.layer.register_forward_pre_hook(keeping(site), with_kwargs=True) for site in sites]
    try:
        with torch.no_grad():
            _read(model, token_ids, first_position)
    except MethodError:
        raise
    except Exception as error:
        raise MethodError(
            f"{type(model).__name__} cannot be read as the models of transformers are: {type(error).__name__}: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    for site in sites:
        times = len(inputs[id(site.layer)])
        if times == 0 or (times > 1 and not patched):
            raise MethodError(
                f"{type(site.layer).__name__} {site.layer.layer_idx} of {type(model).__name__} runs {times} times in "
                "one pass: a prefix needs layers that run once"
            )
    return [inputs[id(site.layer)][-1] for site in sites]


def _layer_input(site: AttentionSite, call: dict[str, Any]) -> LayerInput:
    if "hidden_states" not in call:
        raise MethodError(f"{type(site.layer).__name__} makes keys and values of something else than hidden_states")
    states = call.get("key_value_states")
    if states is None:
        states = call["hidden_states"]
    rotary = call.get("position_embeddings")
    if isinstance(rotary, torch.Tensor):
        rotary = (rotary,)
    elif not (isinstance(rotary, tuple) and all(isinstance(part, torch.Tensor) for part in rotary)):
        rotary = None
    others: dict[str, Any] = {}
    if site.in_decoder_only:
        others = {name: call[name] for name in site.names.others if name in call}
    if others:
        others[site.names.mask] = call.get(site.names.mask)
    return LayerInput(states[0].detach().clone(), rotary, others)


def _read(model: Any, token_ids: torch.Tensor, first_position: int) -> None:
    """Let a model read one text."""
    arguments: dict[str, Any] = {"input_ids": token_ids[None], "use_cache": False}
    if has_encoder(model):
        reader, arguments["decoder_input_ids"] = model.base_model, token_ids[None]
    else:
        reader = stacks(model)["decoder"]
        if "position_ids" in inspect.signature(reader.forward).parameters:
            positions = torch.arange(first_position, first_position + len(token_ids), device=token_ids.device)
            arguments["position_ids"] = positions[None]
    if not token_ids.is_meta:
        reader(**arguments)
        return
    # Models compute masks from values, which do not exist on the meta device. Most models accept a 4-D mask. Those with
    # ALiBi do not, but compute a mask without values if they get none and have a cache.
    masks: dict[str, Any] = {}
    if any(map(has_distance_bias, attention_sites(model, required=False))):
        arguments["use_cache"] = True
    else:
        masks["attention_mask"] = torch.ones(1, 1, len(token_ids), len(token_ids), device="meta")
    if masks and has_encoder(model):
        masks["decoder_attention_mask"] = masks["attention_mask"]
    with without_experts(reader):
        reader(**arguments, **masks)


@contextmanager
def without_experts(model: nn.Module) -> Iterator[None]:
    """Inside the block experts return their input, because on the meta device no values route tokens to experts."""
    experts: list[Any] = [module for module in model.modules() if type(module).__name__.endswith("Experts")]
    for module in experts:
        module.forward = lambda hidden_states, *_, **__: hidden_states
    try:
        yield
    finally:
        for module in experts:
            del module.forward


def chosen_sites(sites: list[AttentionSite], indices: list[int] | None) -> list[AttentionSite]:
    """The sites of the layers with these indices, in each stack; negative indices count from the last, None is all.

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
        positive = {index % count for index in indices}
        chosen.extend(site for site in of_stack if site.layer.layer_idx in positive)
    return chosen


def shared_layer(site: AttentionSite, sites: Sequence[AttentionSite]) -> Any:
    """The layer whose keys and values a site without own ones attends to: the last of the same kind that makes them."""
    return next(
        (
            other.layer
            for other in reversed(sites)
            if not other.reuses_keys and other.layer.layer_type == site.layer.layer_type
        ),
        None,
    )


def bias_source(site: AttentionSite, sites: list[AttentionSite]) -> Any:
    """The layer that makes the relative position bias which ``site`` shares; None if there is none (cross)."""
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
