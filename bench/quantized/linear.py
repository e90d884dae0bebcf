"""Frozen linear layers whose weights are stored in four or eight bits, and are dequantised where they are multiplied.

The layers of bitsandbytes compute otherwise in training than in evaluation: in four bits some repack their weights for
a kernel without a gradient, in eight bits evaluation rounds activations too. This one has a single way, with a gradient
for what goes in, so that what is trained is what is scored.

I and O input and output features of a linear layer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.autograd.function import once_differentiable

# It looks for kernels on the hub when it is imported (by peft too), and warns that it has not found them.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

Quantization = Literal["nf4", "fp4", "int8"]
BITS: Mapping[str, int] = {"nf4": 4, "fp4": 4, "int8": 8}
# Weights that share a largest absolute value (Dettmers et al. 2023, section 3), and such values that share one where
# they are quantised too.
BLOCK, BLOCK_OF_STATISTICS = 64, 256


class QuantizedLinear(nn.Linear):
    """``x W^T + b`` with a W that is stored in four or eight bits.

    The weights lie packed, in a shape of which nothing else could take them for a matrix: ``(I O / 2, 1)`` in four bits
    (two in a byte), ``(I O, 1)`` in eight.

    Args:
        in_features: I.
        out_features: O.
        kind: How the weights are stored.
        packed: The weights, uint8 in four bits and int8 in eight.
        statistics: What dequantises them. In four bits ``absmax`` of each block of weights; where that is quantised
            too, with ``nested_absmax``, ``nested_code`` and ``offset``. In eight bits ``absmax`` of each row.
        bias: ``(O,)`` or None; it stays as it is.
        like: A tensor of the dtype that the layer takes and gives.
        multiplied_in: Dtype in which weights and inputs are multiplied; None is that of the inputs.
        block: Weights of a block, in four bits.
    """

    absmax: torch.Tensor
    like: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kind: Quantization,
        packed: torch.Tensor,
        statistics: Mapping[str, torch.Tensor],
        bias: nn.Parameter | None,
        like: torch.Tensor,
        multiplied_in: torch.dtype | None = None,
        block: int = BLOCK,
    ) -> None:
        nn.Module.__init__(self)  # that of a linear layer would make a matrix
        self.in_features, self.out_features = in_features, out_features
        self.kind, self.block, self.multiplied_in = kind, block, multiplied_in
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_parameter("bias", bias)
        self._statistics = tuple(statistics)
        self.register_buffer("like", like.new_empty(0), persistent=False)
        for name, statistic in statistics.items():
            self.register_buffer(name, statistic, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = self.multiplied_in or x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        output: torch.Tensor = _Multiplied.apply(x.to(dtype), bias, self)  # type: ignore[no-untyped-call]
        return output.to(x.dtype)

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """W, ``(O, I)``."""
        if self.kind == "int8":
            rows = self.weight.view(self.out_features, self.in_features).to(dtype, copy=True)
            return rows.mul_((self.absmax / 127)[:, None])
        # The operators of bitsandbytes know three dtypes; what is in another one is dequantised in fp32.
        known = dtype if dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.float32
        operators: Any = torch.ops.bitsandbytes
        absmax = self.absmax
        if "offset" in self._statistics:
            of_blocks = operators.dequantize_blockwise(
                absmax, self.nested_absmax, self.nested_code, BLOCK_OF_STATISTICS, torch.float32
            )
            absmax = of_blocks + self.offset
        weight: torch.Tensor = operators.dequantize_4bit(
            self.weight, absmax, self.block, self.kind, self._read_as, known
        )
        return weight.to(dtype).view(self.out_features, self.in_features)

    @property
    def _read_as(self) -> list[int]:
        """A shape of as many elements whose rows hold whole blocks.

        Where blocks go over the ends of rows, the kernel of bitsandbytes 0.50 for CPUs takes wrong scales.
        """
        elements = self.in_features * self.out_features
        if self.in_features % self.block == 0:
            return [self.out_features, self.in_features]
        return [elements // self.block, self.block] if elements % self.block == 0 else [1, elements]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.kind}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> QuantizedLinear:
        """Statistics are moved and never cast: in another dtype they would stand for other weights."""
        statistics = {id(self._buffers[name]) for name in self._statistics}

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            made = fn(tensor)
            return made if id(tensor) not in statistics or made.dtype == tensor.dtype else tensor.to(made.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self


class _Multiplied(torch.autograd.Function):
    """``x W^T + b``, which keeps neither x nor W for the backward pass: W is dequantised a second time."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bias: torch.Tensor | None, layer: QuantizedLinear) -> torch.Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.dequantized(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        of_x, of_bias = ctx.needs_input_grad[:2]
        return (
            gradient @ ctx.layer.dequantized(gradient.dtype) if of_x else None,
            gradient.flatten(0, -2).sum(0) if of_bias else None,
            None,
        )


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    """Names and modules of the layers of a model whose weights are quantised."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLinear))


def quantization_of(model: nn.Module) -> Quantization | None:
    """How weights of a model are stored; None where none is quantised."""
    return next((layer.kind for _, layer in quantized_layers(model)), None)


def computes_like(module: nn.Module) -> torch.Tensor:
    """A tensor of the dtype and on the device in which a module computes: what stands beside it has these too.

    Its weights do not tell where they are quantised.

    Raises:
        ValueError: The module holds nothing that computes.
    """
    for part in module.modules():
        if isinstance(part, QuantizedLinear):
            return part.like
        for parameter in part.parameters(recurse=False):
            if parameter.is_floating_point():
                return parameter
    raise ValueError(f"{type(module).__name__} holds no parameter, so that nothing says in which dtype it computes")


def dequantize(model: nn.Module) -> list[str]:
    """Put plain linear layers with the dequantised weights in place of quantised ones, wherever these lie.

    Returns:
        The names of the layers.
    """

    def plain(_: str, layer: nn.Module) -> nn.Module | None:
        if not isinstance(layer, QuantizedLinear):
            return None
        linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        linear.weight = nn.Parameter(layer.dequantized(layer.like.dtype), requires_grad=False)
        linear.bias = layer.bias
        return linear.train(layer.training)

    return replace_layers(model, plain)


def replace_layers(model: nn.Module, made_of: Callable[[str, nn.Module], nn.Module | None]) -> list[str]:
    """Put other modules in place of some of a model's.

    Args:
        model: It is changed.
        made_of: Of the name of a module and the module what takes its place; None leaves it.

    Returns:
        The names of those that were replaced.
    """
    replaced = []
    for parent_name, parent in list(model.named_modules()):
        for attribute, layer in list(parent.named_children()):
            name = f"{parent_name}.{attribute}" if parent_name else attribute
            if (made := made_of(name, layer)) is not None:
                setattr(parent, attribute, made)
                replaced.append(name)
    return replaced


def num_elements(model: nn.Module) -> int:
    """Of all parameters; of packed weights those that they stand for."""
    packed = {id(layer.weight): layer.in_features * layer.out_features for _, layer in quantized_layers(model)}
    return sum(packed.get(id(parameter), parameter.numel()) for parameter in model.parameters())


def packed_sizes(kind: Quantization, double: bool, in_features: int, out_features: int) -> dict[str, torch.Size]:
    """Shapes of the packed weights (``weight``) and of what dequantises them, see :class:`QuantizedLinear`."""
    assert kind in get_args(Quantization)
    elements = in_features * out_features
    if kind == "int8":
        return {"weight": torch.Size([elements, 1]), "absmax": torch.Size([out_features])}
    blocks = math.ceil(elements / BLOCK)
    sizes = {"weight": torch.Size([math.ceil(elements / 2), 1]), "absmax": torch.Size([blocks])}
    if double:
        of_blocks = torch.Size([math.ceil(blocks / BLOCK_OF_STATISTICS)])
        sizes |= {"nested_absmax": of_blocks, "nested_code": torch.Size([256]), "offset": torch.Size([])}
    return sizes
