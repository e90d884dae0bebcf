"""The blocks of a transformer: where attention and feed-forward part read and write hidden states, and their norms.

Found by the conventions of transformers: a block is an element of a list of modules that all hold attention, and its
feed-forward part is the linear layers outside of its attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from bench.method import MethodError
from methods.transformer_parts import LinearLayer, attention_output, is_attention, linear_layers_in


@dataclass(frozen=True)
class Block:
    """A layer of a transformer, with the linear layers through which its parts read and write its hidden states."""

    name: str
    module: nn.Module
    attention_outputs: tuple[LinearLayer, ...]
    """The last linear layer of self-attention and, in the decoder of an encoder-decoder model, of cross-attention."""
    feed_forward_input: LinearLayer
    feed_forward_output: LinearLayer


def blocks(model: Any) -> list[Block]:
    """All blocks in order of the model: of an encoder-decoder model the encoder's, then the decoder's.

    Raises:
        MethodError: There are none, or one whose attention or feed-forward part is not known.
    """
    width = model.config.get_text_config().hidden_size
    return [
        _block(f"{list_name}.{index}" if list_name else str(index), module, width)
        for list_name, modules in _block_lists(model)
        for index, module in enumerate(modules)
    ]


def _block_lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, nn.ModuleList) and not inside and len(module) and all(map(_holds_attention, module)):
            found.append((name, module))
    if not found:
        raise MethodError(f"{type(model).__name__} has no blocks: looked for a list of modules that all hold attention")
    return found


def _holds_attention(module: nn.Module) -> bool:
    return any(is_attention(child) for child in module.modules())


def _block(name: str, module: nn.Module, width: int) -> Block:
    attentions = [(inner, child) for inner, child in module.named_modules(prefix=name) if is_attention(child)]
    inside = {id(layer.module) for inner, child in attentions for layer in linear_layers_in(child, inner)}
    others = [layer for layer in linear_layers_in(module, name) if id(layer.module) not in inside]
    outputs = tuple(attention_output(child, inner) for inner, child in attentions)
    if unknown := [layer.name for layer in outputs if layer.out_features != width]:
        raise MethodError(f"{unknown[0]} ends its attention layer and does not put out {width} features")
    if not others or others[0].in_features != width or others[-1].out_features != width:
        names = ", ".join(layer.attribute for layer in others) or "none"
        raise MethodError(
            f"{name} ({type(module).__name__}) has no known feed-forward part: its linear layers outside of attention "
            f"({names}) do not lead from {width} features to {width} features"
        )
    return Block(name, module, outputs, others[0], others[-1])


def norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of all norms with a trained scale, in order of the model.

    Raises:
        MethodError: There is none.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and isinstance(getattr(module, "weight", None), nn.Parameter)
    ]
    if not found:
        raise MethodError(f"{type(model).__name__} has no norm: looked for modules named ...Norm that have a weight")
    return found
