"""Whether everything that counts as trained is trained: the first gradients of every tensor, on every engine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.hooks import RemovableHandle

from bench.method import Method, MethodError, trained_parameters

# An expert of a layer, one module each; where experts are one tensor, it is trained as soon as one of them is.
EXPERT = re.compile(r"(.*\bexperts\.(?:expert_)?)\d+(\..*)")
NAMES_TOLD = 3


class GradientWatch:
    """Sees the gradients of a trial's first steps, until every trained tensor has had one that is not all zero.

    A tensor that gets no gradient in the first step takes no part in the loss, and one whose gradients stay zero is not
    trained either: such a trial fails. What starts at zero may hold up others (LoRA's A has no gradient while B is
    zero, a prompt none behind a closed gate), so that zeros count after two steps, the learning rate of the first of
    which is not zero, and not while each step sets others free.

    Two things are left to chance. An expert of a mixture that no token has reached is waited for as long as another
    expert of its layer is trained, to the end if need be (:attr:`unreached`). A model that skips layers at random
    (LayerDrop) is given the whole training.

    Hooks on the tensors tell, because ZeRO leaves no ``grad`` to look at; what one rank sees counts for all.

    Args:
        method: For messages.
        model: Patched, and already with its engine, which may change the dtype of what is trained.
        device: Of the model.
    """

    def __init__(self, method: Method, model: nn.Module, device: torch.device) -> None:
        self._method = type(method).__name__
        self._patient = _skips_layers(model)
        self._moved = False
        parameters = dict(trained_parameters(model))
        self._names = list(parameters)
        # Rows: whether there was a gradient, and whether one was not all zero.
        self._seen = torch.zeros(2, len(parameters), dtype=torch.bool, device=device)
        self._alive: set[str] = set()
        self._hooks: list[RemovableHandle] = [
            parameter.register_hook(partial(self._see, index))  # type: ignore[no-untyped-call]
            for index, parameter in enumerate(parameters.values())
        ]
        self.unreached: list[str] = []

    def require_graph(self, loss: torch.Tensor) -> None:
        """See that a loss depends on anything that is trained.

        Raises:
            MethodError: It does not.
        """
        if not loss.requires_grad:
            raise MethodError(self._complaint(self._names, "get no gradient: the loss does not depend on any"))

    def after_backward(self, learning_rate: float, last: bool) -> None:
        """The gradients of a step are there. A collective operation until all is well, and nothing from then on.

        Args:
            learning_rate: Of this step.
            last: Whether no other step follows.

        Raises:
            MethodError: Naming tensors without a gradient.
        """
        if not self._hooks:
            return
        seen = self._seen.int()
        dist.all_reduce(seen, op=dist.ReduceOp.MAX)
        with_gradient, alive = (
            {name for name, found in zip(self._names, row, strict=True) if found} for row in seen.tolist()
        )
        missing = self._without(with_gradient)
        if missing and (last or not self._patient):
            raise MethodError(
                self._complaint(missing, "get no gradient in the first step: what the model computes does not use them")
            )
        zero = [name for name in self._without(alive) if name not in missing]
        if zero and self._moved and (last or alive == self._alive):
            raise MethodError(
                self._complaint(zero, "get gradients that are all zero, so that training leaves them as they are")
            )
        self._moved = self._moved or learning_rate > 0
        self._alive = alive
        self.unreached = [name for name in self._names if name not in alive]
        if not self.unreached or last:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []

    def _see(self, index: int, gradient: torch.Tensor) -> None:
        self._seen[0, index] = True
        self._seen[1, index].logical_or_(gradient.any())

    def _without(self, those: set[str]) -> list[str]:
        """What is not among those, but for experts with others of their layer among them."""
        reached = {_layer_of_expert(name) for name in those} - {None}
        return [name for name in self._names if name not in those and _layer_of_expert(name) not in reached]

    def _complaint(self, names: Sequence[str], what: str) -> str:
        told = ", ".join(names[:NAMES_TOLD]) + (", ..." if len(names) > NAMES_TOLD else "")
        return f"{self._method}: {len(names)} of {len(self._names)} trained tensors {what}: {told}"


def _layer_of_expert(name: str) -> str | None:
    """A name that the same tensor has in all experts of a layer; None for what is no expert's."""
    found = EXPERT.fullmatch(name)
    return None if found is None else found[1] + found[2]


def _skips_layers(model: nn.Module) -> bool:
    config: Any = getattr(model, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    return any(name.endswith("layerdrop") and value for name, value in settings.items())
