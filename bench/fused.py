"""Modules of base models that have a faster or smaller equal."""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable


def use_fused_activations(model: Any) -> None:
    """Replace activations of a base model by equals that keep less for the backward pass.

    GPT-2's GELU, eight operations in Python, becomes one kernel of the same formula: ``gelu_new`` and the tanh
    approximation of torch are the same function (Hendrycks & Gimpel 2016, section 2), equal to rounding in value and
    gradient. The kernel keeps its input, the operations keep four tensors of that size.

    The gated MLPs of Llama and of all families that compute the same keep two tensors instead of three, see
    :class:`GatedSiLU`.
    """
    from transformers.activations import NewGELUActivation

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh"))
        if is_gated_silu(module):
            module.forward = MethodType(_gated_forward, module)


class GatedSiLU(torch.autograd.Function):
    """``silu(gate) * up`` (Shazeer 2020, section 2), which keeps its two inputs and computes ``silu(gate)`` again.

    The two operations by themselves keep ``silu(gate)`` too, a third tensor of the MLP's width.
    """

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Gate and up of the same shape, which the result has too."""
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradients that autograd finds for the two operations, by the same kernels."""
        gate, up = ctx.saved_tensors
        of_gate: torch.Tensor = torch.ops.aten.silu_backward(gradient * up, gate)
        return of_gate, nn.functional.silu(gate).mul_(gradient)


def is_gated_silu(module: nn.Module) -> bool:
    """Whether a module computes what the MLP of Llama does, with SiLU.

    transformers repeats that MLP in the file of every family that has it, so the code tells, not the class.
    """
    from transformers.activations import SiLUActivation
    from transformers.models.llama.modeling_llama import LlamaMLP

    own, llama = (inspect.unwrap(kind.forward).__code__ for kind in (type(module), LlamaMLP))
    same = (own.co_code, own.co_names, own.co_consts) == (llama.co_code, llama.co_names, llama.co_consts)
    return same and isinstance(module.act_fn, nn.SiLU | SiLUActivation)


def _gated_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    gated = GatedSiLU.apply(self.gate_proj(x), self.up_proj(x))  # type: ignore[no-untyped-call]
    projected: torch.Tensor = self.down_proj(gated)
    return projected
