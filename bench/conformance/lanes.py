"""Checks that a trial in a fused pass computes and trains the same as alone.

K lanes, B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bench.conformance.rehearsal import optimizer_of, rehearse
from bench.conformance.subject import (
    Subject,
    batch_of,
    broken,
    disturb,
    gradient_tolerance,
    pairs_of,
    require_close,
    seeded,
)
from bench.method import Lanes, Method, MethodError, trained_parameters
from bench.models.architecture import Pair
from bench.train.fused_engine import copies_sharing_weights
from bench.train.lane import num_targets
from bench.train.loss import TargetLoss

LANES = 3
ROWS_OF_LANES = tuple(pairs_of([(4, 3), (2, 6)], seed=30 + lane) for lane in range(LANES))
LIKELY = (
    "in fuse or in a forward that asks lane_modules or of_lanes: rows get the parameters of another lane, an average "
    "of them, or the first lane's"
)


def check_lanes_do_not_meet(subject: Subject) -> None:
    """In one pass with others, each trial has the losses and gradients that it has alone."""
    if not subject.method().fusable:
        return
    methods, models = _lanes(subject)
    lanes = Lanes()
    alone = [_losses_and_gradients([models[lane]], [ROWS_OF_LANES[lane]])[0] for lane in range(LANES)]
    names = [method.adapter_state(model).keys() for method, model in zip(methods, models, strict=True)]
    try:
        methods[0].fuse(models, lanes)
    except MethodError:
        return  # the method refuses these models, which the contract allows
    for active in ((0, 1, 2), (0, 2), (1,), (2, 1)):
        with lanes.sharing(active):
            fused = _losses_and_gradients(
                [models[lane] for lane in active], [ROWS_OF_LANES[a] for a in active], models[0]
            )
        for at, lane in enumerate(active):
            _require_same(fused[at], alone[lane], f"with lanes {', '.join(map(str, active))} in one pass")
    for lane in range(LANES):
        (by_itself,) = _losses_and_gradients([models[lane]], [ROWS_OF_LANES[lane]])
        _require_same(by_itself, alone[lane], "fused, and then run by itself,")
    for lane, (method, model) in enumerate(zip(methods, models, strict=True)):
        if method.adapter_state(model).keys() != names[lane]:
            raise broken("fuse changes the names of what is stored", "the same names", "modules moved to other places")
    _require_trained_alike(subject)


def _lanes(subject: Subject) -> tuple[list[Method], list[Any]]:
    methods, models = [], []
    for lane, base in enumerate(copies_sharing_weights(subject.base_model(), LANES)):
        method, model = subject.patched(disturbed=False, base=base, seed=40 + lane)
        with seeded(50 + lane):
            disturb(model)
        methods.append(method)
        models.append(model)
    return methods, models


LossAndGradients = tuple[torch.Tensor, dict[str, torch.Tensor]]


def _losses_and_gradients(
    models: Sequence[Any], rows: Sequence[Sequence[Pair]], first: Any = None
) -> list[LossAndGradients]:
    """The loss of each model's rows, and its gradients. All rows go through ``first``."""
    first = models[0] if first is None else first
    together = [pair for of_lane in rows for pair in of_lane]
    first.train()
    with seeded(3):
        losses = TargetLoss(first)(**vars(batch_of(first, together)), shares=[num_targets(each) for each in rows])
    trained = [dict(trained_parameters(model)) for model in models]
    every = [parameter for of_model in trained for parameter in of_model.values()]
    gradients = iter(torch.autograd.grad(losses.sum(), every, allow_unused=True, materialize_grads=True))
    first.eval()
    return [
        (loss.detach(), {name: next(gradients) for name in of_model})
        for loss, of_model in zip(losses, trained, strict=True)
    ]


def _require_same(fused: LossAndGradients, alone: LossAndGradients, when: str) -> None:
    require_close(fused[0], alone[0], f"{when} a trial has another loss", "the loss that it has alone", LIKELY)
    for name, gradient in alone[1].items():
        require_close(
            fused[1][name],
            gradient,
            f"{when} {name} has another gradient",
            "the gradient that it has alone",
            LIKELY,
            gradient_tolerance(gradient),
        )


def _require_trained_alike(subject: Subject) -> None:
    """Steps of both lanes in one pass, hooks included, leave each with the state that it trains to alone."""
    expected = []
    for lane in range(2):
        method, model = subject.patched(seed=40 + lane)
        rehearse(method, model, steps=2, pairs=ROWS_OF_LANES[lane])
        expected.append({name: tensor.clone() for name, tensor in method.adapter_state(model).items()})
    lanes = Lanes()
    pairs = [
        subject.patched(base=b, seed=40 + at) for at, b in enumerate(copies_sharing_weights(subject.base_model(), 2))
    ]
    pairs[0][0].fuse([model for _, model in pairs], lanes)
    optimizers = [optimizer_of(method, model) for method, model in pairs]
    rows = ROWS_OF_LANES[:2]
    batch = batch_of(pairs[0][1], [pair for of_lane in rows for pair in of_lane])
    for step in (1, 2):
        pairs[0][1].train()
        with lanes.sharing((0, 1)), seeded(4):
            shares = [num_targets(of_lane) for of_lane in rows]
            losses = TargetLoss(pairs[0][1])(**vars(batch), shares=shares)
            (losses / torch.tensor(shares)).sum().backward()
        for (method, model), optimizer in zip(pairs, optimizers, strict=True):
            method.before_step(model, step)
            optimizer.step()
            optimizer.zero_grad()
            method.after_step(model, step)
    for (method, model), wanted in zip(pairs, expected, strict=True):
        for name, tensor in method.adapter_state(model).items():
            require_close(
                tensor,
                wanted[name],
                f"two steps in one pass with another trial train {name} to another value",
                "what the trial trains to alone",
                LIKELY,
            )
