"""Checks by the first gradients that every tensor that counts as trained is trained, on every engine."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.hooks import RemovableHandle

from bench.method import Method, MethodError, trained_parameters
from bench.schema.trial import JsonDict

# The name of a tensor of one expert. Experts in one tensor have no such name: it is trained as soon as one of them is.
EXPERT = re.compile(r"(.*\bexperts\.(?:expert_)?)\d+(\..*)")
MOST_NAMES = 3


class GradientWatch:
    """Watches the gradients of a trial's first steps, until every trained tensor has had one that is not all zero.

    A trial fails if a tensor gets no gradient in the first step, because it then takes no part in the loss, or if its
    gradients stay zero. Some tensors have zero gradients at first: those of LoRA's A as long as B is zero, those of a
    prompt behind a closed gate. So zeros count only after a step with a learning rate above zero, and only if that step
    has not brought gradients to other tensors.

    Chance decides in two cases. If no token has reached an expert of a mixture, it may stay without a gradient as long
    as another expert of its layer has one (:attr:`unreached`). A model that skips layers at random (LayerDrop) may take
    the whole training. Tensors that a method leaves idle are judged from the first step that trains them.

    Hooks on the tensors see the gradients, because ZeRO leaves no ``grad``. A gradient on one rank counts for all.

    Args:
        method: Named in messages.
        model: Patched, after its engine was made, which may change the dtype of trained tensors.
        device: Of the model.
    """

    def __init__(self, method: Method, model: nn.Module, device: torch.device) -> None:
        self._method = type(method).__name__
        self._patient = _skips_layers(model)
        self._moved = self._had_moved = False  # by the last step too, and before it
        parameters = dict(trained_parameters(model))
        self._names = list(parameters)
        # Rows: whether there was a gradient, and whether one was not all zero.
        self._seen = torch.zeros(2, len(parameters), dtype=torch.bool, device=device)
        self._alive: set[str] = set()
        self._name_of = {parameter: name for name, parameter in parameters.items()}
        self._asked: set[str] = set()  # trained in some step so far
        self.unreached: list[str] = []  # of those the ones without a gradient that is not all zero
        self._hooks: list[RemovableHandle] = [
            parameter.register_hook(partial(self._see, index))  # type: ignore[no-untyped-call]
            for index, parameter in enumerate(parameters.values())
        ]

    def facts(self) -> JsonDict:
        """What has been seen so far, on all ranks, for :meth:`take_up` of a watch that goes on from here."""
        with_gradient, alive = (self._named(row) for row in self._seen.tolist())
        return {
            "asked": sorted(self._asked),
            "with_gradient": sorted(with_gradient),
            "alive": sorted(alive),
            "moved": self._moved,
        }

    def take_up(self, facts: JsonDict) -> None:
        """Go on where another watch of the same training was, which has these :meth:`facts`."""
        self._asked, self._alive = set(facts["asked"]), set(facts["alive"])
        self._moved = self._had_moved = facts["moved"]
        for row, names in zip(self._seen, (set(facts["with_gradient"]), self._alive), strict=True):
            row.copy_(torch.tensor([name in names for name in self._names]))
        self._settle(last=False)

    def require_graph(self, loss: torch.Tensor) -> None:
        """Check that a loss depends on a trained tensor.

        Raises:
            MethodError: It depends on none.
        """
        if not loss.requires_grad:
            raise MethodError(self._complaint(self._names, "get no gradient: the loss does not depend on any"))

    def after_backward(self, learning_rate: float, last: bool, idle: Collection[nn.Parameter] = ()) -> None:
        """Judge the gradients of a step. A collective operation, until every tensor has had a gradient.

        Args:
            learning_rate: Of this step.
            last: Whether this is the last step.
            idle: The trained tensors that this step leaves as they are.

        Raises:
            MethodError: Tensors get no gradient, or only zeros. The message names them.
        """
        if not self._hooks:
            return
        self._asked.update(set(self._names) - {self._name_of[parameter] for parameter in idle})
        seen = self._seen.int()
        dist.all_reduce(seen, op=dist.ReduceOp.MAX)
        self._seen.copy_(seen)
        with_gradient, alive = (self._named(row) for row in seen.tolist())
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
        self._had_moved, self._moved = self._moved, self._moved or learning_rate > 0
        self._alive = alive
        self._settle(last)

    def _settle(self, last: bool) -> None:
        """Say what is unreached, and stop watching if nothing is left to be seen."""
        self.unreached = [name for name in self._names if name in self._asked and name not in self._alive]
        if last or len(self._alive) == len(self._names):
            for hook in self._hooks:
                hook.remove()
            self._hooks, self._name_of = [], {}

    def step_was_skipped(self) -> None:
        """The engine has left the trained tensors where they were, so that the next step says nothing new of them."""
        self._moved = self._had_moved

    def _see(self, index: int, gradient: torch.Tensor) -> None:
        self._seen[0, index] = True
        self._seen[1, index].logical_or_(gradient.any())

    def _named(self, row: Sequence[int]) -> set[str]:
        """The names of the tensors that have a mark in a row."""
        return {name for name, is_seen in zip(self._names, row, strict=True) if is_seen}

    def _without(self, those: set[str]) -> list[str]:
        """The names that are not among those, without experts of a layer that another expert has reached."""
        reached = {_layer_of_expert(name) for name in those} - {None}
        return [
            name
            for name in self._names
            if name in self._asked and name not in those and _layer_of_expert(name) not in reached
        ]

    def _complaint(self, names: Sequence[str], what: str) -> str:
        listed = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
        return f"{self._method}: {len(names)} of {len(self._names)} trained tensors {what}: {listed}"


def _layer_of_expert(name: str) -> str | None:
    """The name of an expert's tensor without the expert's number; None if it belongs to no expert."""
    match = EXPERT.fullmatch(name)
    return None if match is None else match[1] + match[2]


def _skips_layers(model: nn.Module) -> bool:
    config: Any = getattr(model, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    return any(name.endswith("layerdrop") and value for name, value in settings.items())
