"""The blocks of a transformer: the layers that read and write hidden states in each part, and the norms.

A block is an element of a list of modules that all hold norms and linear layers. Its feed-forward parts lead from
hidden states to an inner width and back, outside of attention and state-space layers. Low-rank and gating side paths do
so, too, so that a part also needs the name or class of a feed-forward part, or an inner width that the configuration
names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bench.method import MethodError
from methods.parts.experts import expert_tensors
from methods.parts.transformer_parts import (
    LinearLayer,
    attention_output,
    is_attention,
    is_linear,
    linear_layers_in,
    modules_with_parents,
)
from methods.parts.weight_reads import uses_of

# Names of feed-forward parts and their layers in transformers, and names of other parts of the same shape.
FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward|\bff\b|\bfc_?\w*|dense|moe\b|experts?\b|\bwi\b|\bwo\b", re.IGNORECASE)
NO_FEED_FORWARD = re.compile(r"laurel|altup|per_layer|adapter|router|\bgate\b", re.IGNORECASE)
# Names of inner widths in configurations.
WIDTHS = re.compile(r"intermediate|ffn|n_inner|d_ff|feed_forward|mlp", re.IGNORECASE)


@dataclass(frozen=True)
class LinearFeedForward:
    """A feed-forward part of linear layers."""

    name: str
    module: nn.Module
    readers: tuple[LinearLayer, ...]
    """The linear layers that read hidden states."""
    writer: LinearLayer
    """The linear layer that writes hidden states."""


@dataclass(frozen=True)
class ExpertTensors:
    """The experts of a mixture, whose matrices are tensors and not linear layers."""

    name: str
    module: nn.Module
    parent: nn.Module
    attribute: str


@dataclass(frozen=True)
class Block:
    """A layer of a transformer."""

    name: str
    module: nn.Module
    width: int
    feed_forward: tuple[LinearFeedForward, ...]
    """One part; in a mixture of experts each expert that is a module, and the expert that every token uses."""
    experts: tuple[ExpertTensors, ...]

    @property
    def attention_outputs(self) -> tuple[LinearLayer, ...]:
        """The last linear layer of self-attention and, in the decoder of an encoder-decoder model, of cross-attention.

        Raises:
            MethodError: The block has no attention, or its last linear layer is not known.
        """
        inner = self.module.named_modules(prefix=self.name)
        outputs = tuple(attention_output(child, name) for name, child in inner if is_attention(child))
        if not outputs:
            raise MethodError(f"{self.name} ({type(self.module).__name__}) has no attention layer")
        return outputs

    @property
    def plain(self) -> LinearFeedForward | None:
        """The feed-forward part if it consists of linear layers; None for a mixture of experts."""
        return self.feed_forward[0] if len(self.feed_forward) == 1 and not self.experts else None

    @property
    def mixture(self) -> tuple[nn.Module, str]:
        """Parent and attribute of the module around all feed-forward parts.

        Raises:
            MethodError: They are in several modules, whose outputs the block itself adds up.
        """
        parts = [part.name for part in self.feed_forward] + [part.name for part in self.experts]
        names = [part.removeprefix(self.name).split(".")[1:] for part in parts]
        depth = 0
        while all(len(name) > depth and name[depth] == names[0][depth] for name in names):
            depth += 1
        if len(names) == 1:
            depth = max(1, depth - 1)  # the parent of the experts contains the router
        if depth == 0:
            raise MethodError(
                f"{self.name} ({type(self.module).__name__}) adds up several feed-forward parts itself "
                f"({', '.join('.'.join(name) for name in names)}), so that no module puts out what they do together"
            )
        return self.module.get_submodule(".".join(names[0][: depth - 1])), names[0][depth - 1]


def blocks(model: Any) -> list[Block]:
    """All blocks in order of the model: in an encoder-decoder model the encoder's, then the decoder's.

    Raises:
        MethodError: There are no blocks, or the feed-forward part of one is unknown.
    """
    described = described_blocks(model)
    for block in described:
        if not block.feed_forward and not block.experts:
            mixing = [inner for inner, _ in token_mixers(block.module, block.name)]
            others = [
                layer.attribute
                for layer in linear_layers_in(block.module, block.name)
                if not layer.name.startswith(tuple(f"{inner}." for inner in mixing))
            ]
            raise MethodError(
                f"{block.name} ({type(block.module).__name__}) has no known feed-forward part: its linear layers "
                f"outside of attention and state-space layers ({', '.join(others) or 'none'}) do not lead from "
                f"{block.width} features to an inner width and back, or are not called a feed-forward part"
            )
    return described


def described_blocks(model: Any) -> list[Block]:
    """All blocks. Those whose feed-forward part is unknown have none.

    Raises:
        MethodError: There are no blocks.
    """
    width, widths = model.config.get_text_config().hidden_size, set(_widths(model.config.to_dict()))
    return [_block(name, module, width, widths) for name, module in block_modules(model)]


def block_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of all blocks, in order of the model.

    Raises:
        MethodError: There are no blocks.
    """
    stacks: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in stacks)
        if isinstance(module, nn.ModuleList) and not inside and len(module) and all(map(_is_block, module)):
            stacks.append((name, module))
    if not stacks:
        raise MethodError(
            f"{type(model).__name__} has no blocks: looked for a list of modules that all hold norms and linear layers"
        )
    return [
        (f"{list_name}.{index}" if list_name else str(index), module)
        for list_name, modules in stacks
        for index, module in enumerate(modules)
    ]


def _is_block(module: nn.Module) -> bool:
    inner = list(module.modules())
    return any(map(is_linear, inner)) and any(is_norm(child) for child in inner)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm, by the name of its class."""
    return "norm" in type(module).__name__.lower() and not any(map(is_linear, module.modules()))


def is_state_space(module: nn.Module) -> bool:
    """Whether a module mixes tokens by a convolution or a recurrence instead of attention."""
    own = {name for name, _ in module.named_parameters(recurse=False)}
    recurrent = not own.isdisjoint({"A_log", "time_decay", "dt_bias", "recurrent_param"})
    return recurrent or any(isinstance(child, nn.Conv1d) for child in module.children())


def token_mixers(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of the attention and state-space layers in a block called ``name``."""
    for inner, child in module.named_modules(prefix=name):
        if is_attention(child) or is_state_space(child):
            yield inner, child


def _block(name: str, block: nn.Module, width: int, widths: set[int]) -> Block:
    mixing = tuple(f"{inner}." for inner, _ in token_mixers(block, name))
    groups: dict[str, list[LinearLayer]] = {}
    for layer in linear_layers_in(block, name):
        if not layer.name.startswith(mixing):
            groups.setdefault(layer.name.rpartition(".")[0], []).append(layer)
    experts = tuple(
        ExpertTensors(inner, child, parent, attribute)
        for inner, parent, attribute, child in modules_with_parents(block, name)
        if expert_tensors(child) and not inner.startswith(mixing)
    )
    candidates = [part for inner, layers in groups.items() if (part := _linear(inner, layers, width)) is not None]
    chosen = [part for part in candidates if _is_called_feed_forward(name, part)]
    if not chosen and not experts:
        unnamed = [part for part in candidates if not NO_FEED_FORWARD.search(part.name.removeprefix(name))]
        chosen = [part for part in unnamed if part.writer.in_features in widths]
    return Block(name, block, width, tuple(chosen), experts)


def _linear(name: str, layers: list[LinearLayer], width: int) -> LinearFeedForward | None:
    """The linear layers of one module, if they lead from hidden states to an inner width and back."""
    writers = [layer for layer in layers if layer.out_features == width and layer.in_features != width] or layers[-1:]
    writer = writers[-1]
    inner = writer.in_features
    readers = [
        layer
        for layer in layers
        if layer is not writer and layer.in_features == width and layer.out_features in (inner, 2 * inner)
    ]
    if writer.out_features != width or not readers:
        return None
    return LinearFeedForward(name, writer.parent, tuple(readers), writer)


def _is_called_feed_forward(block: str, part: LinearFeedForward) -> bool:
    own = part.name.removeprefix(block)
    layers = [layer.attribute for layer in part.readers]
    if NO_FEED_FORWARD.search(own) or any(NO_FEED_FORWARD.search(attribute) for attribute in layers if not own):
        return False
    # The layers of a part that is the block itself have its name (BART); otherwise its module does.
    names = " ".join(layers) if not own else f"{own.replace('.', ' ')} {type(part.module).__name__}"
    return FEED_FORWARD.search(names) is not None


def _widths(config: Mapping[str, Any]) -> Iterator[int]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _widths(value)
        elif WIDTHS.search(str(name)):
            values = value if isinstance(value, list | tuple) else [value]
            yield from (each for each in values if isinstance(each, int))


def norms(model: Any) -> list[tuple[str, nn.Module]]:
    """Names and modules of all norms whose scale changes the model's output, in order of the model.

    Raises:
        MethodError: There are no norms.
    """
    uses = uses_of(model)
    named_norms = [
        (name, module)
        for name, module in model.named_modules()
        if is_norm(module)
        and isinstance(getattr(module, "weight", None), nn.Parameter)
        and uses.has_part(f"{name}.weight")
    ]
    if not named_norms:
        raise MethodError(f"{type(model).__name__} has no norm: looked for modules named ...Norm that have a weight")
    return named_norms
