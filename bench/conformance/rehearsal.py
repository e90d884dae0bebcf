"""A short training like that of the loop: its loss, the method's parameter groups and hooks, and evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from bench.conformance.subject import PAIRS, batch_of, seeded
from bench.method import Method, trained_parameters
from bench.models.architecture import Batch, Pair
from bench.train.loss import TargetLoss

# Some hooks act only every ten or hundred steps.
LATE_STEPS = 110

Watch = Callable[[str, int], AbstractContextManager[None]]


def unwatched(hook: str, step: int) -> AbstractContextManager[None]:
    """A watch that does nothing."""
    return nullcontext()


def has_hooks(method: Method) -> bool:
    """Whether a method does anything before or after a step."""
    return any(getattr(type(method), name) is not getattr(Method, name) for name in ("before_step", "after_step"))


def rehearse(
    method: Method,
    model: Any,
    steps: int = 4,
    watch: Watch = unwatched,
    pairs: Sequence[Pair] = PAIRS,
    late_steps: int = 0,
    hide_gradients: bool = False,
) -> list[float]:
    """Train for a few steps of AdamW, and return the loss of each.

    Args:
        method: The method whose parameter groups and hooks are used.
        model: Patched by the method. It is in evaluation mode afterwards.
        steps: The number of steps.
        watch: A context manager that is entered around every hook.
        pairs: The batch of every step.
        late_steps: After the steps, only hooks are called up to this step, with the last gradients.
        hide_gradients: Whether hooks see no gradients, as under ZeRO.
    """
    optimizer = optimizer_of(method, model)
    loss_of = TargetLoss(model)
    batch = batch_of(model, pairs)
    losses: list[float] = []
    gradients: dict[torch.nn.Parameter, torch.Tensor | None] = {}
    for step in range(1, steps + 1):
        model.train()
        losses.append(_backward(loss_of, batch))
        for parameter in method.idle(model, step):
            parameter.grad = None
            optimizer.state.pop(parameter, None)
        gradients = {parameter: parameter.grad for _, parameter in trained_parameters(model)}
        if hide_gradients:
            _set_gradients(dict.fromkeys(gradients))
        with watch("before_step", step):
            method.before_step(model, step)
        if hide_gradients:
            _set_gradients(gradients)
        optimizer.step()
        optimizer.zero_grad()
        with watch("after_step", step):
            method.after_step(model, step)
        if step % 2 == 0:
            model.eval()
            with torch.no_grad():
                loss_of.of(batch)
            method.adapter_state(model)
    call_hooks(method, model, gradients, range(steps + 1, late_steps + 1), watch)
    model.eval()
    return losses


def optimizer_of(method: Method, model: Any) -> torch.optim.Optimizer:
    """An optimiser of what a method trains, with the method's own rates."""
    groups = [
        {"params": list(group["params"]), "lr": 1e-2 * group.get("lr_scale", 1.0)}
        for group in method.parameter_groups(model)
    ]
    return torch.optim.AdamW(groups, weight_decay=0.0)


def call_hooks(
    method: Method,
    model: Any,
    gradients: dict[torch.nn.Parameter, torch.Tensor | None],
    steps: Sequence[int],
    watch: Watch = unwatched,
) -> None:
    """Call the hooks of these steps, with the same gradients at each and no step of an optimiser between them."""
    for step in steps if has_hooks(method) else ():
        model.train()
        _set_gradients({parameter: _copied(gradient) for parameter, gradient in gradients.items()})
        with watch("before_step", step):
            method.before_step(model, step)
        _set_gradients(dict.fromkeys(gradients))
        with watch("after_step", step):
            method.after_step(model, step)


def _backward(loss_of: TargetLoss, batch: Batch) -> float:
    with seeded(4):  # the same dropout at every step, so that losses compare
        loss = loss_of.of(batch) / len(batch.target_ids)
        loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def _copied(gradient: torch.Tensor | None) -> torch.Tensor | None:
    return None if gradient is None else gradient.clone()


def _set_gradients(gradients: dict[torch.nn.Parameter, Any]) -> None:
    for parameter, gradient in gradients.items():
        parameter.grad = gradient
