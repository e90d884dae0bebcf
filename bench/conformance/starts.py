"""A check of the contract on methods that choose their start by training examples."""

from __future__ import annotations

import torch

from bench.conformance.state import on_disk_and_back
from bench.conformance.subject import (
    LONG_PAIRS,
    PAIRS,
    ContractError,
    Subject,
    broken,
    require_close,
    seeded,
    target_logits,
    tensors_of,
)
from bench.method import MethodError
from bench.models.architecture import architecture_of
from bench.train.data_start import start_from_examples


def check_start_from_examples(subject: Subject) -> None:
    """A start from examples leaves base weights and what is trained as they are, is the same twice, and is stored."""
    states, expected = [], torch.empty(0)
    for seed in (1, 1):
        base = subject.base_model()
        weights = {name: (tensor, tensor.detach().clone()) for name, tensor in tensors_of(base)}
        method, model = subject.patched(disturbed=False, base=base, seed=seed)
        if not method.start_examples:
            return
        names = method.adapter_state(model).keys()
        with seeded(seed):
            try:
                pairs = [*PAIRS, *LONG_PAIRS]
                start_from_examples(method, model, pairs, 0, architecture_of(model.config), torch.device("cpu"))
            except MethodError as error:
                raise ContractError(str(error)) from error
        for name, (tensor, before) in weights.items():
            if tensor.requires_grad or not torch.equal(tensor.detach(), before):
                raise broken(
                    f"start_from changed {name}, or whether it requires grad",
                    "frozen tensors as they were",
                    "a start that is subtracted from the weight; take it off the output, and store it",
                )
        if names != method.adapter_state(model).keys():
            raise broken(
                f"start_from changed what is stored: {min(names ^ method.adapter_state(model).keys())}",
                "the same names from patch to the end",
                "a tensor that is made in start_from; make it in patch",
            )
        states.append(on_disk_and_back(method, model))
        with torch.no_grad():
            expected = target_logits(model)
    for name, tensor in states[0].items():
        require_close(states[1][name], tensor, f"a second start has another {name}", "the same", "random numbers")
    fresh_method, fresh = subject.patched(disturbed=False, seed=2)
    fresh_method.load_adapter_state(fresh, states[0])
    with torch.no_grad():
        require_close(
            target_logits(fresh),
            expected,
            "a reloaded start gives other logits than the model it was taken from",
            "the same: what is scored is the stored state in a fresh base model",
            "something that start_from changes is not stored",
        )
