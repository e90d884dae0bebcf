"""Frozen linear layers with weights in four or eight bits, which are dequantised for each multiplication.

The layers of bitsandbytes compute one function in training and another in evaluation: in four bits some repack their
weights for a kernel without a gradient, in eight bits evaluation rounds activations, too. This layer computes the same
function in both, with a gradient for its input.

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

# When bitsandbytes is imported (peft imports it, too), it looks for kernels on the hub and warns that there are none.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

Quantization = Literal["nf4", "fp4", "int8"]
BITS: Mapping[str, int] = {"nf4": 4, "fp4": 4, "int8": 8}
# So many weights share a largest absolute value (Dettmers et al. 2023, section 3). If these values are quantised, too,
# so many of them share their own largest value.
BLOCK, BLOCK_OF_STATISTICS = 64, 256


class QuantizedLinear(nn.Linear):
    """``x W^T + b`` with a W that is stored in four or eight bits.

    The shape of the packed weights is no matrix, so that other code cannot use them as one: ``(I O / 2, 1)`` in four
    bits (two in a byte), ``(I O, 1)`` in eight.

    Args:
        in_features: I.
        out_features: O.
        kind: How the weights are stored.
        packed: The weights, uint8 in four bits and int8 in eight.
        statistics: The tensors that dequantise the weights. In four bits ``absmax`` of each block of weights; if that
            is quantised, too, also ``nested_absmax``, ``nested_code`` and ``offset``. In eight bits ``absmax`` of each
            row.
        bias: ``(O,)`` or None. It is not quantised.
        like: A tensor with the dtype of the layer's inputs and outputs.
        multiplied_in: Dtype in which weights and inputs are multiplied; None is that of the inputs.
        block: The number of weights in a block, in four bits.
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
        nn.Module.__init__(self)  # nn.Linear's own would make a matrix
        self.in_features, self.out_features = in_features, out_features
        self.kind, self.block, self.multiplied_in = kind, block, multiplied_in
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_parameter("bias", bias)
        self._statistics = tuple(statistics)
        # Reads the weight (O, I) as it was before it was quantised; None if nobody has it.
        self.original: Callable[[], torch.Tensor] | None = None
        self.register_buffer("like", like.new_empty(0), persistent=False)
        for name, statistic in statistics.items():
            self.register_buffer(name, statistic, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.is_floating_point():  # models that cast inputs to the dtype of the weight cast them to bytes
            raise TypeError(
                f"a layer stored in {self.kind} got inputs in {x.dtype}: the model casts them to the dtype of its "
                "packed weights; take a base model that is not quantised"
            )
        dtype = self.multiplied_in or x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        output: torch.Tensor = _Multiplied.apply(x.to(dtype), bias, self)  # type: ignore[no-untyped-call]
        return output.to(x.dtype)

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """W, ``(O, I)``."""
        if self.kind == "int8":
            rows = self.weight.view(self.out_features, self.in_features).to(dtype, copy=True)
            return rows.mul_((self.absmax / 127)[:, None])
        # The operators of bitsandbytes know three dtypes. Weights for another dtype are dequantised in fp32.
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
        """A shape with the same number of elements whose rows hold whole blocks.

        If a block crosses the end of a row, the CPU kernel of bitsandbytes 0.50 applies wrong scales.
        """
        elements = self.in_features * self.out_features
        if self.in_features % self.block == 0:
            return [self.out_features, self.in_features]
        return [elements // self.block, self.block] if elements % self.block == 0 else [1, elements]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.kind}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> QuantizedLinear:
        """Statistics are moved and never cast, because rounding them would change the weights."""
        statistics = {id(self._buffers[name]) for name in self._statistics}

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            made = fn(tensor)
            return made if id(tensor) not in statistics or made.dtype == tensor.dtype else tensor.to(made.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self


class _Multiplied(torch.autograd.Function):
    """``x W^T + b``. It keeps neither x nor W for the backward pass, which dequantises W a second time."""

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
    """Names and modules of a model's quantised layers."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLinear))


def quantization_of(model: nn.Module) -> Quantization | None:
    """The format of a model's quantised weights; None if it has none."""
    return next((layer.kind for _, layer in quantized_layers(model)), None)


def say_stored_in(model: nn.Module, kind: str, trains: bool = True) -> None:
    """Let every module of a model say that its weights are in a format of another library, such as gptq or awq.

    Args:
        model: The model.
        kind: The format.
        trains: Whether gradients go through weights in it.
    """
    for module in model.modules():
        vars(module)["stored_in"] = kind
        vars(module)["only_infers"] = not trains


def stored_in(model: nn.Module) -> str | None:
    """The format of a model's, or a module's, quantised weights, of whatever library; None if it has none."""
    return quantization_of(model) or vars(model).get("stored_in")


def only_infers(model: nn.Module) -> bool:
    """Whether a model's weights are in a format without gradients, so that nothing beside them can be trained."""
    return bool(vars(model).get("only_infers", False))


def computes_like(module: nn.Module) -> torch.Tensor:
    """A tensor with the dtype and on the device in which a module computes, for a module beside it.

    Quantised weights do not have that dtype.

    Raises:
        ValueError: The module has no floating-point parameter.
    """
    for part in module.modules():
        if isinstance(part, QuantizedLinear):
            return part.like
        for parameter in part.parameters(recurse=False):
            if parameter.is_floating_point():
                return parameter
    raise ValueError(f"{type(module).__name__} holds no parameter, so that nothing says in which dtype it computes")


def dequantize(model: nn.Module) -> list[str]:
    """Replace all quantised layers of a model by plain linear layers with the dequantised weights.

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
    """Replace some of a model's modules.

    Args:
        model: It is changed in place.
        made_of: Name and module to the new module; None keeps the module.

    Returns:
        The names of the replaced modules.
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
    """The number of elements of all parameters. Packed weights count as many as they stand for."""
    packed = {id(layer.weight): layer.in_features * layer.out_features for _, layer in quantized_layers(model)}
    return sum(packed.get(id(parameter), parameter.numel()) for parameter in model.parameters())


def packed_sizes(kind: Quantization, double: bool, in_features: int, out_features: int) -> dict[str, torch.Size]:
    """Shapes of the packed weights (``weight``) and of their statistics, see :class:`QuantizedLinear`."""
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
