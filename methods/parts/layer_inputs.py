"""What adapted layers read when training examples are sent through a model.

S tokens of an example, I input features of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bench.method import MethodError
from methods.parts.lora_layer import LoRALayer

MOST_NAMES = 3


def lora_layers(model: nn.Module) -> dict[str, LoRALayer]:
    """The adapted linear layers of a model by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALayer)}


@contextmanager
def watching_inputs(layers: dict[str, LoRALayer], see: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Inside the block ``see`` is shown the name of a layer and its inputs ``(S, I)``, in fp32 or more.

    It is not shown that an expert is called for no token.
    """

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def before(_: nn.Module, args: tuple[Any, ...]) -> None:
            x: torch.Tensor = args[0].detach().flatten(0, -2)
            if len(x):
                see(name, x.to(torch.promote_types(x.dtype, torch.float32)))

        return before

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def require_reached(layers: Iterable[str], reached: Collection[str], examples: int) -> None:
    """Check that examples have reached every adapted layer, of which nothing else says where it starts.

    Args:
        layers: Names of all adapted layers.
        reached: Names of those that the examples have reached.
        examples: How many there were.

    Raises:
        MethodError: They have not, as an expert that gets no token.
    """
    if missed := [name for name in layers if name not in reached]:
        listed = ", ".join(missed[:MOST_NAMES]) + (", ..." if len(missed) > MOST_NAMES else "")
        raise MethodError(
            f"examples: none of the {examples} has reached {len(missed)} of the adapted layers, so that nothing says "
            f"where they start: {listed}; look at more examples, or name other target_modules"
        )


def run(losses: Sequence[Callable[[], torch.Tensor]]) -> None:
    """Send all examples through the model."""
    for loss in losses:
        loss()
