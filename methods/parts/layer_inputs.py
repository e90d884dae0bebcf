"""What adapted layers read when training examples are sent through a model.

S tokens of an example, I input features of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from methods.parts.lora_layer import LoRALayer


def lora_layers(model: nn.Module) -> dict[str, LoRALayer]:
    """The adapted linear layers of a model by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALayer)}


@contextmanager
def watching_inputs(layers: dict[str, LoRALayer], see: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Inside the block ``see`` is shown the name of a layer and its inputs ``(S, I)``, in fp32 or more."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def before(_: nn.Module, args: tuple[Any, ...]) -> None:
            x: torch.Tensor = args[0].detach().flatten(0, -2)
            see(name, x.to(torch.promote_types(x.dtype, torch.float32)))

        return before

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(losses: Sequence[Callable[[], torch.Tensor]]) -> None:
    """Send all examples through the model."""
    for loss in losses:
        loss()
