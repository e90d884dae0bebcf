"""Checks on losses and gradients: the training loop computes those of the whole model.

N target tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench.conformance.subject import (
    LONG_PAIRS,
    PAIRS,
    ExactFloat64,
    Subject,
    batch_of,
    broken,
    gradient_tolerance,
    logits_of,
    require_close,
    seeded,
)
from bench.method import trained_parameters
from bench.models.architecture import Batch
from bench.train.loss import TargetLoss

# Step sizes of a finite difference in float64. A kink between its two points spoils the larger ones.
STEPS = (1e-5, 1e-6, 1e-7)
TENSORS_AT_ONCE = 6


def check_loop_loss(subject: Subject) -> None:
    """The loss of the training loop, which computes logits at targets only, is that of all logits; so are gradients."""
    method, model = subject.patched()
    in_loop = TargetLoss(model)
    for mode in ("training", "evaluation"):
        for pairs in (PAIRS, LONG_PAIRS[1:4]):
            batch = batch_of(model, pairs)
            model.train(mode == "training")
            actual = _loss_and_gradients(model, lambda batch=batch: in_loop.of(batch), method.trains)
            expected = _loss_and_gradients(model, lambda batch=batch: _plain_loss(model, batch), method.trains)
            model.eval()
            likely = (
                "logits are changed behind the output head in place, or with regard to other tokens; the loop gives "
                "the head the positions of targets only"
            )
            for name, wanted in expected.items():
                require_close(
                    actual[name],
                    wanted,
                    f"the loop's {name} is another than that of the whole logits (in {mode} mode)",
                    "the same",
                    likely,
                    gradient_tolerance(wanted),
                )


def _plain_loss(model: Any, batch: Batch) -> torch.Tensor:
    logits = logits_of(model, batch, use_cache=False).flatten(0, 1)[batch.predicting]
    return nn.functional.cross_entropy(logits, batch.target_ids, reduction="sum")


def _loss_and_gradients(model: Any, loss_of: Any, trains: bool) -> dict[str, torch.Tensor]:
    trained = dict(trained_parameters(model)) if trains else {}
    with seeded(3):
        loss = loss_of()
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True) if trained else ()
    named_gradients = {
        f"gradient of {name}": gradient
        for name, gradient in zip(trained, gradients, strict=True)
        if gradient is not None
    }
    return {**named_gradients, "loss": loss.detach()}


def check_every_tensor_gets_a_gradient(subject: Subject) -> None:
    """After one backward pass every trained tensor, moved from its start, has a gradient that is not all zero."""
    method, model = subject.patched()
    if not method.trains:
        return
    model.train()
    with seeded(3):
        TargetLoss(model).of(batch_of(model, [*PAIRS, *LONG_PAIRS[:3]])).backward()  # type: ignore[no-untyped-call]
    for name, parameter in trained_parameters(model):
        if parameter.grad is None or not parameter.grad.any():
            raise broken(
                f"{name} requires grad and gets {'none' if parameter.grad is None else 'one of zeros'}",
                "a gradient for every trained tensor",
                "a detach, .data, no_grad or item() on its way to the output, or it has no part in it",
            )


def check_trained_tensors_are_registered(subject: Subject) -> None:
    """Every tensor with a gradient is a parameter of the model: other tensors are neither stored nor moved."""
    method, model = subject.patched()
    if not method.trains:
        return
    known = {id(parameter) for parameter in model.parameters()}
    model.train()
    with seeded(3):
        loss = TargetLoss(model).of(batch_of(model))
    for leaf in _leaves(loss.grad_fn):
        if id(leaf) not in known:
            raise broken(
                f"a tensor of shape {tuple(leaf.shape)} takes part in training and is no parameter of the model",
                "every trained tensor among model.named_parameters()",
                "a Parameter in a list, a dict, a closure or the method itself; use nn.ParameterList or an attribute "
                "of a module",
            )


def _leaves(root: Any) -> Iterator[torch.Tensor]:
    """The tensors for which a graph of autograd accumulates gradients."""
    pending, seen = [root], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            yield leaf
        pending.extend(before for before, _ in node.next_functions)


def check_gradients_are_derivatives(subject: Subject) -> None:
    """Along one direction of every trained tensor the gradient agrees with a finite difference in float64."""
    if subject.dtype != torch.float64:
        return
    method, model = subject.patched()
    if not method.trains or method.estimates_gradients:
        return
    model.train()
    batch = batch_of(model)
    trained = list(trained_parameters(model))
    with ExactFloat64():
        loss = _loss(model, batch)
        gradients = torch.autograd.grad(loss, [parameter for _, parameter in trained], allow_unused=True)
        lines = [Line.along(name, parameter, of) for (name, parameter), of in zip(trained, gradients, strict=True)]
        for at in range(0, len(lines), TENSORS_AT_ONCE):
            if _wrong(model, batch, lines[at : at + TENSORS_AT_ONCE]) is None:
                continue
            for line in lines[at : at + TENSORS_AT_ONCE]:
                if (slope := _wrong(model, batch, [line])) is not None:
                    raise broken(
                        f"the gradient of {line.name} is not the derivative: along one direction {line.slope:.6g}, by "
                        f"finite difference {slope:.6g}",
                        "the same",
                        "a detach, .data or no_grad on one of the ways to the output, or a backward of your own",
                    )


@dataclass(frozen=True)
class Line:
    """A direction from the value of a trained tensor, and the slope of the loss along it by the tensor's gradient."""

    name: str
    parameter: nn.Parameter
    start: torch.Tensor
    direction: torch.Tensor
    slope: float

    @classmethod
    def along(cls, name: str, parameter: nn.Parameter, gradient: torch.Tensor | None) -> Line:
        """A random direction, plus that of the gradient."""
        along = torch.zeros_like(parameter) if gradient is None else gradient
        with seeded(7):
            direction = torch.randn_like(parameter)
        direction = direction / direction.norm() + along / along.norm().clamp(min=1e-12)
        return cls(name, parameter, parameter.detach().clone(), direction, float((along * direction).sum()))


def _wrong(model: Any, batch: Batch, lines: Sequence[Line]) -> float | None:
    """The finite difference along all these lines; None if it agrees with their slopes."""
    expected = sum(line.slope for line in lines)
    scale = max(abs(line.slope) for line in lines)
    for step in STEPS:
        slope = _slope(model, batch, lines, step)
        if abs(slope - expected) <= 1e-6 + 1e-5 * scale:
            return None
    return slope


def _loss(model: Any, batch: Batch) -> torch.Tensor:
    with seeded(3):
        return TargetLoss(model).of(batch)


def _slope(model: Any, batch: Batch, lines: Sequence[Line], step: float) -> float:
    losses = []
    with torch.no_grad():
        for distance in (step, -step):
            for line in lines:
                line.parameter.copy_(line.start + distance * line.direction)
            losses.append(float(_loss(model, batch)))
        for line in lines:
            line.parameter.copy_(line.start)
    return (losses[0] - losses[1]) / (2 * step)


def check_gradient_checkpointing(subject: Subject) -> None:
    """Recomputing activations changes neither loss nor gradients."""
    for pairs in (PAIRS, LONG_PAIRS):
        results: list[dict[str, torch.Tensor]] = []
        for checkpointing in (False, True):
            method, model = subject.patched(checkpointing=checkpointing)
            if not method.trains:
                return
            batch = batch_of(model.train(), pairs)
            results.append(_loss_and_gradients(model, lambda batch=batch, model=model: _plain_loss(model, batch), True))
        if results[0].keys() != results[1].keys():
            raise broken(
                "gradient checkpointing changed which tensors get a gradient",
                "the same ones",
                "a tensor reaches a layer by another way than its arguments or its parameters",
            )
        for name, expected in results[0].items():
            require_close(
                results[1][name],
                expected,
                f"gradient checkpointing changed the {name}",
                "the same",
                "a layer computes another thing the second time: it looks at gradient checkpointing, counts its calls "
                "or keeps a value",
                gradient_tolerance(expected),
            )
