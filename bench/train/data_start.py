"""Lets a method choose its start by training examples, before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from bench.method import Method, MethodError, trained_parameters
from bench.models.architecture import Architecture, Pair
from bench.train.loss import TargetLoss


def start_from_examples(
    method: Method,
    model: nn.Module,
    pairs: Sequence[Pair],
    seed: int,
    architecture: Architecture,
    device: torch.device,
) -> None:
    """Have a method choose the start of a patched model, if it wants to. All ranks then start as rank 0 does.

    Args:
        method: That has patched the model.
        model: On its device, before an engine has it.
        pairs: Of the training split.
        seed: Draws the examples, whatever the length of the training.
        architecture: Of the model.
        device: Of the model.

    Raises:
        MethodError: The method has changed what is trained, or a frozen tensor requires grad now.
    """
    if not method.start_examples:
        return
    loss = TargetLoss(model)

    def of_example(pair: Pair) -> torch.Tensor:
        batch = architecture.batch([pair], 0).to(device)  # without padding
        mean: torch.Tensor = loss.of(batch).sum() / len(pair.target_ids)
        return mean

    drawn = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[: method.start_examples]
    losses: list[Callable[[], torch.Tensor]] = [partial(of_example, pairs[index]) for index in drawn.tolist()]
    trained, training = [name for name, _ in trained_parameters(model)], model.training
    model.eval()
    with torch.no_grad():
        method.start_from(model, losses)
    model.train(training)
    if trained != [name for name, _ in trained_parameters(model)]:
        raise MethodError(f"{type(method).__name__}.start_from has changed which tensors are trained")
    for tensor in method.adapter_state(model).values():
        if dist.is_initialized():
            dist.broadcast(tensor, 0)
