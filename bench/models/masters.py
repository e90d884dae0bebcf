"""Masters: fp32 copies of what is trained in half precision. The optimiser steps them, and an adapter stores them.

Half precision is bf16 or fp16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from bench.method import trained_parameters

HALF = (torch.bfloat16, torch.float16)


class Masters:
    """Fp32 copies of the trained tensors, which the optimiser steps in their place.

    The model still computes with its own tensors. As soon as one of them has a gradient, it is added to that of the
    master in fp32, so that micro-batches and ranks are summed in fp32. After each step of the optimiser the tensors are
    set to the rounded masters.

    DeepSpeed does the same under ZeRO 1 to 3. Without ZeRO its optimiser for bf16 makes a step on gradients of zero
    when it is created, and both that and the one for fp16 add up gradients in half precision.

    Args:
        optimizer: The optimiser of the trained tensors, before its first step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._copies: list[tuple[nn.Parameter, nn.Parameter]] = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if optimizer.state.get(parameter) == {}:  # as schedulefree leaves it, and no checkpoint can name it
                    del optimizer.state[parameter]
            group["params"] = [self._master(parameter) for parameter in group["params"]]
        optimizer.register_step_post_hook(self._round)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The masters, in the optimiser's order."""
        return [master for _, master in self._copies]

    def _master(self, parameter: nn.Parameter) -> nn.Parameter:
        master = nn.Parameter(parameter.detach().float())
        parameter.fp32_master = master  # type: ignore[attr-defined]
        parameter.register_post_accumulate_grad_hook(_hand_on)  # type: ignore[no-untyped-call]
        self._copies.append((parameter, master))
        return master

    @torch.no_grad()
    def _round(self, *_: Any) -> None:
        for parameter, master in self._copies:
            parameter.copy_(master)


def _hand_on(parameter: torch.Tensor) -> None:
    master: nn.Parameter = parameter.fp32_master  # type: ignore[attr-defined]
    gradient, parameter.grad = parameter.grad, None
    if gradient is None:
        return
    if master.grad is None:
        master.grad = gradient.to(master.dtype)
    else:
        master.grad += gradient


def stepped_for(parameter: nn.Parameter) -> nn.Parameter:
    """What an optimiser without ZeRO steps for a trained tensor: its master, or the tensor itself."""
    return getattr(parameter, "fp32_master", parameter)


@torch.no_grad()
def round_masters(model: nn.Module) -> None:
    """Have a model compute with its masters as they are now, if :class:`Masters` keeps any."""
    for _, parameter in trained_parameters(model):
        if (master := getattr(parameter, "fp32_master", None)) is not None:
            parameter.copy_(master)


@contextmanager
def exact(model: nn.Module) -> Iterator[None]:
    """Inside the block tensors that a model trains in half precision are their fp32 masters.

    A collective operation under ZeRO. Under ZeRO 3 the caller has to gather the parameters. Nothing changes in a model
    that trains in fp32.
    """
    rounded = [(parameter, parameter.data) for _, parameter in trained_parameters(model)]
    try:
        for parameter, data in rounded:
            if data.dtype in HALF:
                _replace(parameter, exact_value(parameter))
        yield
    finally:
        for parameter, data in rounded:
            if parameter.dtype != data.dtype:
                _replace(parameter, data)


def exact_value(parameter: nn.Parameter) -> torch.Tensor:
    """The fp32 master of a trained tensor, or the tensor itself if it is trained in fp32. Collective under ZeRO."""
    return _master_of(parameter) if parameter.dtype in HALF else parameter.detach()


def _replace(parameter: nn.Parameter, data: torch.Tensor) -> None:
    parameter.data = data
    torch.autograd.graph.increment_version(parameter)  # modules compute their cached values anew


def _master_of(parameter: nn.Parameter) -> torch.Tensor:
    if (master := getattr(parameter, "fp32_master", None)) is not None:
        return cast(nn.Parameter, master).detach()
    from deepspeed.utils import safe_get_full_fp32_param

    whole: torch.Tensor | None = safe_get_full_fp32_param(parameter)
    if whole is None:
        raise RuntimeError(
            f"a trained tensor of shape {tuple(parameter.shape)} in {parameter.dtype} has no fp32 master"
        )
    return whole.detach()


def compute_in(dtype: torch.dtype, model: nn.Module) -> None:
    """Convert the trained tensors of a model to the dtype of its base weights."""
    for _, parameter in trained_parameters(model):
        if parameter.dtype != dtype and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
