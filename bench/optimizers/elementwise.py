"""Optimisers that step each element by itself, so that ZeRO may cut tensors wherever it likes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from bench.optimizers.optimizer import ADAM_SETTINGS, OWN_SETTINGS, Optimizer, trained

# bitsandbytes: of a tensor with fewer elements moments stay in fp32; of the others each block has a scale, and each
# moment a table of its 256 values.
SMALL, BLOCK, TABLE_BYTES = 4096, 256, 1024


class AdamW(Optimizer):
    """AdamW of torch, with all tensors in one kernel.

    Source: Loshchilov & Hutter 2019.
    """

    paper: ClassVar[str] = "Loshchilov & Hutter 2019, arXiv:1711.05101"
    own_settings: ClassVar[Mapping[str, str]] = OWN_SETTINGS | ADAM_SETTINGS

    @classmethod
    def torch_class(cls) -> type[torch.optim.Optimizer]:
        return torch.optim.AdamW

    def arguments(self) -> dict[str, Any]:
        # foreach and fused exclude each other, and so do fused and differentiable.
        others = {"foreach", "differentiable", "fused"} & self.train.optimizer_options.keys()
        return {**adam_arguments(self), **({} if others else {"fused": True}), **super().arguments()}

    def state_bytes(self, model: nn.Module) -> float:
        moments = 3 if self.train.optimizer_options.get("amsgrad") else 2
        return 4.0 * moments * sum(parameter.numel() for parameter in trained(model))


class AdamW8Bit(Optimizer):
    """AdamW of bitsandbytes, whose moments take a byte an element.

    Source: Dettmers et al. 2022, section 2. Tensors of fewer than 4096 elements keep moments in fp32
    (``min_8bit_size``). Blocks of 256 elements share a scale, so that ZeRO, which lays tensors out otherwise, changes
    roundings.
    """

    paper: ClassVar[str] = "Dettmers et al. 2022, arXiv:2110.02861"
    package: ClassVar[str | None] = "bitsandbytes"
    extra: ClassVar[str | None] = "quantization"
    own_settings: ClassVar[Mapping[str, str]] = OWN_SETTINGS | ADAM_SETTINGS

    @classmethod
    def torch_class(cls) -> type[torch.optim.Optimizer]:
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit  # type: ignore[no-any-return]

    def arguments(self) -> dict[str, Any]:
        return {**adam_arguments(self), **super().arguments()}

    def state_bytes(self, model: nn.Module) -> float:
        small = self.train.optimizer_options.get("min_8bit_size", SMALL)
        return sum(_quantized_bytes(parameter.numel(), 2, small) for parameter in trained(model))


class Lion(Optimizer):
    """Lion of bitsandbytes: the sign of a mean of gradients, of which it keeps one.

    Source: Chen et al. 2023, algorithm 2. ``betas`` are options (0.9 and 0.99 by default), and ``optim_bits: 8`` keeps
    the mean in a byte an element. It wants a learning rate 3 to 10 times smaller than AdamW's, and a weight decay as
    many times larger (section 5).
    """

    paper: ClassVar[str] = "Chen et al. 2023, arXiv:2302.06675"
    package: ClassVar[str | None] = "bitsandbytes"
    extra: ClassVar[str | None] = "quantization"

    @classmethod
    def torch_class(cls) -> type[torch.optim.Optimizer]:
        from bitsandbytes.optim import Lion as LionOfBitsandbytes

        return LionOfBitsandbytes  # type: ignore[no-any-return]

    def state_bytes(self, model: nn.Module) -> float:
        options = self.train.optimizer_options
        if options.get("optim_bits", 32) == 32:
            return 4.0 * sum(parameter.numel() for parameter in trained(model))
        small = options.get("min_8bit_size", SMALL)
        return sum(_quantized_bytes(parameter.numel(), 1, small) for parameter in trained(model))


def adam_arguments(of: Optimizer) -> dict[str, Any]:
    """What ``train.adam_…`` say, as optimisers of Adam's family call it."""
    return {"betas": (of.train.adam_beta1, of.train.adam_beta2), "eps": of.train.adam_epsilon}


def _quantized_bytes(elements: int, moments: int, small: int) -> float:
    if elements < small:
        return 4.0 * moments * elements
    return moments * (elements + 4.0 * -(-elements // BLOCK) + TABLE_BYTES)
