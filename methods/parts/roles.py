"""Finds the role of each matrix of a model, for all methods and for the coverage in records."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from bench.method import MethodError
from methods.parts.blocks import Block, block_modules, described_blocks, is_norm, is_state_space
from methods.parts.experts import expert_tensors
from methods.parts.joined_projections import ROLES, rows_by_role
from methods.parts.transformer_parts import (
    OUTPUTS,
    LinearLayer,
    Projection,
    attention_projections,
    is_attention,
    is_linear,
    linear_layers_in,
)

ROUTER = re.compile(r"router|gate$|classifier$", re.IGNORECASE)
EXPERT = re.compile(r"(^|\.)experts\.", re.IGNORECASE)


@dataclass(frozen=True)
class Site:
    """A place of a model that could be adapted: a module with its weight, or one tensor of experts."""

    kind: str
    """The role: query, key, value (joined by an underscore if one layer makes several), attention_output, latent,
    other_attention, feed_forward, expert, router, state_space, norm, embedding, head or other."""
    name: str
    module: nn.Module
    tensor: str | None = None
    """The name of a single tensor of the module; None: the module."""


def projections_in_every_block(model: Any, roles: Collection[str]) -> list[Projection]:
    """The projections of attention that have one of these roles.

    Raises:
        MethodError: A block has no projection with one of the roles, for example a block without attention (state-space
            layers of a hybrid). Adapting only the others would be another method.
    """
    projections = [projection for projection in attention_projections(model) if projection.role in roles]
    for name, block in block_modules(model):
        inner = {id(module) for module in block.modules()}
        own = {projection.role for projection in projections if id(projection.attention) in inner}
        if any(getattr(module, "is_kv_shared_layer", False) for module in block.modules()):
            own |= {"key", "value"}  # the block uses those of an earlier block, which are adapted there
        if missing := set(roles) - own:
            raise MethodError(
                f"{name} ({type(block).__name__}) makes no {' and no '.join(sorted(missing))} that is known, so "
                "that the method would change some blocks only; name the modules to adapt instead"
            )
    return projections


def sites(model: Any) -> list[Site]:
    """Every place of a base model that could be adapted, with its role, in order of the model."""
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    is_tied = head is not None and getattr(head, "weight", None) is getattr(embedding, "weight", None)
    inside = _kinds_inside(model)
    places: list[Site] = []
    for name, module in model.named_modules():
        if (module is head and is_tied) or not any(True for _ in module.parameters(recurse=False)):
            continue
        if tensors := expert_tensors(module):
            places.extend(Site("expert", f"{name}.{tensor}", module, tensor) for tensor in tensors)
        elif (kind := _kind(name, module, module is head, inside)) is not None:
            places.append(Site(kind, name, module))
    return places


def whole_parts(model: Any) -> dict[str, list[nn.Module]]:
    """The parts of a base model that can be adapted as a whole: attention layers, and mixtures of experts."""
    mixtures = []
    for block in _described(model):
        if block.experts or len(block.feed_forward) > 1:
            with contextlib.suppress(MethodError):  # a block that adds up its parts itself has no such module
                parent, attribute = block.mixture
                mixtures.append(getattr(parent, attribute))
    return {"attention_layer": [module for module in model.modules() if is_attention(module)], "mixture": mixtures}


def _kind(name: str, module: nn.Module, is_head: bool, inside: dict[int, str]) -> str | None:
    """The role of a module that holds parameters itself; None if it has no weight."""
    if is_head:
        return "head"
    if id(module) in inside:
        return inside[id(module)]
    if is_norm(module):
        return "norm"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if not any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)):
        return None
    if ROUTER.search(name) or "router" in type(module).__name__.lower():
        return "router"
    return "other"


def _kinds_inside(model: Any) -> dict[int, str]:
    """The roles of linear layers and convolutions in attention, feed-forward and state-space parts, by id."""
    kinds: dict[int, str] = {}
    for inner, module in model.named_modules():
        if is_attention(module):
            for layer in linear_layers_in(module, inner):
                kinds[id(layer.module)] = _kind_in_attention(module, layer)
        elif is_state_space(module):
            inner_layers = (child for child in module.modules() if is_linear(child) or isinstance(child, nn.Conv1d))
            kinds.update((id(child), "state_space") for child in inner_layers)
    for layer in _feed_forward_layers(model):
        kinds[id(layer.module)] = "expert" if EXPERT.search(layer.name) else "feed_forward"
    return kinds


def _kind_in_attention(attention: nn.Module, layer: LinearLayer) -> str:
    if layer.parent is attention and layer.attribute in OUTPUTS:
        return "attention_output"
    if layer.attribute in ("q_a_proj", "kv_a_proj_with_mqa"):
        return "latent"
    made = rows_by_role(attention, layer.attribute, layer.out_features)
    return "_".join(role for role in ROLES if role in made) or "other_attention"


def _feed_forward_layers(model: Any) -> Iterator[LinearLayer]:
    for block in _described(model):
        for part in block.feed_forward:
            yield from (*part.readers, part.writer)


def _described(model: Any) -> list[Block]:
    try:
        return described_blocks(model)
    except MethodError:  # the model has no blocks
        return []
