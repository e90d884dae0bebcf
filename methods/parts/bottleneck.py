"""Bottleneck adapters: a small two-layer network beside or behind a frozen part. Shared by adapters and MAM.

B batch, T tokens, D hidden size, K bottleneck size.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn

from bench.method import computes_like
from methods.parts.blocks import Block
from methods.parts.transformer_parts import LinearLayer, LinearWrapper

Activation = Literal["relu", "gelu", "silu"]
Start = Literal["near_zero", "zero"]

# Houlsby et al. 2019, section 3.1 (figure 6): below this standard deviation of the start, results do not depend on it.
NEAR_ZERO_STD = 1e-2


class Bottleneck(nn.Module):
    """``up(activation(down(x)))``, ``(B, T, D)`` to ``(B, T, D)``.

    Args:
        width: D.
        size: K.
        activation: Between the two layers.
        start: ``near_zero``: both weights normal with standard deviation 0.01, cut at two of them (Houlsby et al. 2019,
            section 3.1); ``zero``: the second weight zero, the first Kaiming-uniform, as in LoRA (He et al. 2022).
            Biases start at zero.
        like: Tensor whose dtype and device the parameters get.
    """

    def __init__(self, width: int, size: int, activation: Activation, start: Start, like: torch.Tensor) -> None:
        super().__init__()
        self.down = nn.Linear(width, size, dtype=like.dtype, device=like.device)
        self.up = nn.Linear(size, width, dtype=like.dtype, device=like.device)
        self.activation = getattr(nn.functional, activation)
        for layer in (self.down, self.up):
            nn.init.zeros_(layer.bias)
        if start == "near_zero":
            for layer in (self.down, self.up):
                nn.init.trunc_normal_(layer.weight, std=NEAR_ZERO_STD, a=-2 * NEAR_ZERO_STD, b=2 * NEAR_ZERO_STD)
        else:
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.up(self.activation(self.down(x)))
        return output


class SequentialAdapterLayer(LinearWrapper):
    """``y + scale * adapter(y)`` with ``y = base_layer(x)`` of shape ``(B, T, D)``: an adapter behind a layer.

    Args:
        base_layer: ``nn.Linear`` or ``Conv1D``; it stays frozen.
        adapter: Reads the layer's output.
        scale: Factor on the adapter's output.
    """

    def __init__(self, base_layer: Any, adapter: Bottleneck, scale: float) -> None:
        super().__init__(base_layer)
        self.adapter = adapter
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.base_layer(x)
        return torch.add(output, self.adapter(output), alpha=self.scale)


class ParallelAdapterLayer(LinearWrapper):
    """``base_layer(x) + scale * adapter(h)``, where h is the input of the first linear layer of the same part.

    Args:
        base_layer: Last linear layer of the part that the adapter runs beside; it stays frozen.
        first_layer: First linear layer of that part.
        adapter: Reads ``(B, T, D)``.
        scale: Factor on the adapter's output.
    """

    def __init__(self, base_layer: Any, first_layer: nn.Module, adapter: Bottleneck, scale: float) -> None:
        super().__init__(base_layer)
        self.adapter = adapter
        self.scale = scale
        self._part_input: torch.Tensor | None = None
        first_layer.register_forward_pre_hook(self._keep_part_input)

    def _keep_part_input(self, _: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self._part_input = args[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._part_input is None:
            raise RuntimeError("the last layer of a part ran before its first")
        part_input, self._part_input = self._part_input, None
        output: torch.Tensor = self.base_layer(x)
        return torch.add(output, self.adapter(part_input), alpha=self.scale)


class MixtureAdapterLayer(nn.Module):
    """A mixture of experts with one adapter for all experts, behind or beside the mixture.

    Args:
        base_module: The mixture with its router, ``(B, T, D)`` to ``(B, T, D)`` or to a tuple that begins with it; it
            stays frozen.
        adapter: Reads the output of the mixture, or its input.
        scale: Factor on the adapter's output.
        beside: Whether the adapter reads the input of the mixture.
    """

    def __init__(self, base_module: nn.Module, adapter: Bottleneck, scale: float, beside: bool) -> None:
        super().__init__()
        self.base_module = base_module
        self.adapter = adapter
        self.scale = scale
        self.beside = beside

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = self.base_module(x, *args, **kwargs)
        states = output[0] if isinstance(output, tuple) else output
        added = self.adapter(x if self.beside else states)
        states = torch.add(states, added.view(states.shape), alpha=self.scale)
        return (states, *output[1:]) if isinstance(output, tuple) else states


def add_sequential_adapter(layer: LinearLayer, size: int, activation: Activation, scale: float, start: Start) -> None:
    """Put an adapter behind a linear layer that writes hidden states."""
    adapter = Bottleneck(layer.out_features, size, activation, start, layer.like)
    layer.replace(SequentialAdapterLayer(layer.module, adapter, scale))


def add_adapter_behind(block: Block, size: int, activation: Activation, scale: float, start: Start) -> None:
    """Put an adapter behind the feed-forward part of a block.

    Raises:
        MethodError: The block itself adds up the outputs of several parts.
    """
    if block.plain is not None:
        add_sequential_adapter(block.plain.writer, size, activation, scale, start)
    else:
        _add_to_mixture(block, size, activation, scale, start, beside=False)


def add_parallel_adapter(block: Block, size: int, activation: Activation, scale: float, start: Start) -> None:
    """Put an adapter beside the feed-forward part of a block.

    Raises:
        MethodError: The block itself adds up the outputs of several parts.
    """
    if block.plain is None:
        _add_to_mixture(block, size, activation, scale, start, beside=True)
        return
    layer, reader = block.plain.writer, block.plain.readers[0]
    adapter = Bottleneck(layer.out_features, size, activation, start, reader.like)  # whose input it reads
    layer.replace(ParallelAdapterLayer(layer.module, reader.module, adapter, scale))


def _add_to_mixture(block: Block, size: int, activation: Activation, scale: float, start: Start, beside: bool) -> None:
    parent, attribute = block.mixture
    module = getattr(parent, attribute)
    adapter = Bottleneck(block.width, size, activation, start, computes_like(module))
    setattr(parent, attribute, MixtureAdapterLayer(module, adapter, scale, beside))
