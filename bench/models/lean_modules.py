"""Replaces modules of base models by equal ones that are faster or take less memory."""

from __future__ import annotations

import copy
import inspect
from collections import Counter, OrderedDict
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.autograd.function import once_differentiable

# Sizes of the small layers on which a candidate has to prove its formula.
PROBE_SIZE = 8
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def use_lean_modules(model: Any) -> None:
    """Replace modules of a base model by equal ones that keep fewer tensors for the backward pass.

    GPT-2's GELU, eight operations in Python, becomes one kernel of the same formula: ``gelu_new`` and the tanh
    approximation of torch are the same function (Hendrycks & Gimpel 2016, section 2), equal to rounding in value and
    gradient. The kernel keeps its input; the operations keep four tensors of that size.

    The gated MLPs of Llama, and of all families with the same function, keep two tensors instead of three, see
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

    The two separate operations also keep ``silu(gate)``, a third tensor of the MLP's width.
    """

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """``silu(gate) * up``, for gate and up of the same shape."""
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradients of autograd for the two operations, by the same kernels."""
        gate, up = ctx.saved_tensors
        of_gate: torch.Tensor = torch.ops.aten.silu_backward(gradient * up, gate)
        return of_gate, nn.functional.silu(gate).mul_(gradient)


def is_gated_silu(module: nn.Module) -> bool:
    """Whether a module computes the MLP of Llama with SiLU, ``down(silu(gate(x)) * up(x))``, and nothing else.

    transformers repeats that MLP in the file of every family that has it. A module with layers of these names, SiLU and
    nothing else is a candidate. A small copy with the module's own ``forward`` and settings then has to compute the
    formula on random rows, including large ones. Modules that clamp, scale, drop, or read a weight without calling its
    layer fail this test.
    """
    from transformers.activations import SiLUActivation

    children = dict(module.named_children())
    if children.keys() != {*PROJECTIONS, "act_fn"} or [*module.parameters(recurse=False)]:
        return False
    if not isinstance(children["act_fn"], nn.SiLU | SiLUActivation):
        return False
    return len(inspect.signature(type(module).forward).parameters) == 2 and _computes_the_formula(module)


def _computes_the_formula(module: nn.Module) -> bool:
    with unset_fake_temporarily(), torch.no_grad():
        small = _in_small(module)
        calls: Counter[str] = Counter()
        for name, child in small.named_children():
            child.register_forward_hook(lambda *_, name=name: calls.update([name]))
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(2, 6, PROBE_SIZE, generator=generator, dtype=torch.float64)
        rows[:, 3:] *= 50
        for training in (False, True):
            small.train(training)
            calls.clear()
            try:
                output = type(module).forward(small, rows)
            except Exception:  # noqa: BLE001 - the code of strangers, which may look at anything
                return False
            if set(calls.values()) != {1} or len(calls) != 4 or not isinstance(output, torch.Tensor):
                return False
            expected = small.down_proj(nn.functional.silu(small.gate_proj(rows)) * small.up_proj(rows))
            if output.shape != expected.shape or not torch.allclose(output, expected, rtol=1e-12, atol=1e-12):
                return False
    return True


def _in_small(module: nn.Module) -> Any:
    """A module of the same class, settings and activation, with small random layers in fp64 on the CPU."""
    small = copy.copy(module)
    small.__dict__ = {**module.__dict__, "_modules": dict(module._modules), "_forward_hooks": OrderedDict()}
    generator = torch.Generator().manual_seed(1)
    for name, child in module.named_children():
        if name not in PROJECTIONS:
            small._modules[name] = copy.deepcopy(child)
            continue
        has_bias = getattr(child, "bias", None) is not None
        shrunk = nn.Linear(PROBE_SIZE, PROBE_SIZE, has_bias, device="meta", dtype=torch.float64).to_empty(device="cpu")
        for parameter in shrunk.parameters():
            parameter.normal_(generator=generator)
        small._modules[name] = shrunk
    return small


def _gated_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    gated = GatedSiLU.apply(self.gate_proj(x), self.up_proj(x))  # type: ignore[no-untyped-call]
    projected: torch.Tensor = self.down_proj(gated)
    return projected
