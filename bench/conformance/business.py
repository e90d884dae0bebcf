"""Checks that a method does not touch seeds, shared code, the tokenizer or settings of the process."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy
import torch

from bench.conformance.rehearsal import LATE_STEPS, call_hooks
from bench.conformance.subject import PAIRS, ContractError, Subject, batch_of, broken, logits_of
from bench.conformance.surroundings import put_back
from bench.conformance.tiny_models import EOS, WordTokenizer
from bench.method import trained_parameters
from bench.models.architecture import accepted_inputs, architecture_of
from bench.train.loss import TargetLoss

DISTRIBUTED = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "batch_isend_irecv",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "gather_object",
    "init_process_group",
    "irecv",
    "isend",
    "monitored_barrier",
    "new_group",
    "recv",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
    "scatter_object_list",
    "send",
)


def use(subject: Subject, base: Any, tokenizer: Any) -> None:
    """Do once everything that a trial does with a method: patch, steps, evaluation, generation, storing, loading."""
    method = subject.method_class(subject.config, tokenizer)
    model = method.patch(base)
    batch = batch_of(model)
    model.train()
    loss = TargetLoss(model).of(batch) / len(batch.target_ids)
    if method.trains:
        optimizer = torch.optim.AdamW([parameter for _, parameter in trained_parameters(model)], lr=1e-3)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = {parameter: parameter.grad for _, parameter in trained_parameters(model)}
        method.before_step(model, 1)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(model, 1)
        call_hooks(method, model, gradients, range(2, LATE_STEPS))
    method.parameter_groups(model)
    model.eval()
    with torch.no_grad():
        logits_of(model, batch)
        inputs = architecture_of(model.config).generation_inputs([pair.source_ids for pair in PAIRS], pad_token_id=0)
        model.generate(  # type: ignore[operator]
            **accepted_inputs(model, inputs), do_sample=False, max_new_tokens=2, pad_token_id=0, eos_token_id=EOS
        )
    state = {name: tensor.detach().clone() for name, tensor in method.adapter_state(model).items()}
    method.load_adapter_state(model, state)


def check_minds_its_own_business(subject: Subject) -> None:
    """Sets no seed of torch, Python or numpy, makes no distributed call, leaves the model on its device."""
    states: dict[str, list[Any]] = {"torch": [], "random": [], "numpy": []}
    with put_back(subject.base_model()), _no_distributed_calls():
        for seed, drawn in ((3, 0), (4, 0), (3, 5)):
            torch.manual_seed(seed)
            random.seed(seed)
            numpy.random.seed(seed)
            for _ in range(drawn):
                torch.rand(1), random.random(), numpy.random.rand()
            base = subject.base_model()
            use(subject, base, WordTokenizer())
            states["torch"].append(torch.random.get_rng_state().tolist())
            states["random"].append(random.getstate())
            states["numpy"].append(numpy.random.get_state()[1].tolist())  # type: ignore[index]
    for library, (first, other_seed, drawn_before) in states.items():
        if first in (other_seed, drawn_before):
            raise broken(
                f"it sets a seed of {library}: after its use the random state does not depend on what the trial had"
                " seeded and drawn",
                "the random state of the trial to go on",
                f"a call of {library}'s seed function in patch, in a hook or in forward",
            )
    _, model = subject.patched()
    if devices := {parameter.device.type for parameter in model.parameters()} - {"cpu"}:
        raise ContractError(f"it moved parameters to {', '.join(sorted(devices))}")


@contextmanager
def _no_distributed_calls() -> Iterator[None]:
    def refuse(*_: Any, **__: Any) -> None:
        raise ContractError("it makes a distributed call")

    with ExitStack() as patches:
        for name in DISTRIBUTED:
            patches.enter_context(mock.patch.object(torch.distributed, name, refuse))
        yield


def check_leaves_shared_code(subject: Subject) -> None:
    """Classes and functions of torch, transformers and Tuneoff stay, and another base model computes as before."""
    bystander = subject.base_model()
    batch = batch_of(bystander)
    with put_back(bystander) as before:
        with torch.no_grad():
            expected = logits_of(bystander, batch)
        use(subject, subject.base_model(), WordTokenizer())
        what = before.changed_code()
        with torch.no_grad():
            same = torch.equal(logits_of(bystander, batch), expected)
    if what is not None or not same:
        raise broken(
            f"using it changes {what or 'what another base model computes'}",
            "code that all models of the process share to stay",
            "a function is put into a class or a module; put it into the instance: module.forward = ..., a hook, or a "
            "module in its place",
        )


def check_leaves_settings(subject: Subject) -> None:
    """The environment, default dtype, threads, warnings and the like are as they were."""
    with put_back(subject.base_model()):
        use(subject, subject.base_model(), WordTokenizer())  # modules that it imports may change settings
    with put_back(subject.base_model()) as before:
        use(subject, subject.base_model(), WordTokenizer())
        what = before.changed_setting()
    if what is not None:
        raise broken(
            f"using it changes {what}",
            "the settings of the process to stay",
            "a global setting made for the method's own sake; undo it, or do without",
        )


def check_leaves_tokenizer_and_configs(subject: Subject) -> None:
    """The tokenizer, the model's configuration and its generation settings are as they were."""
    tokenizer, base = WordTokenizer(), subject.base_model()
    before = _settings_of(tokenizer, base)
    with put_back(base):
        use(subject, base, tokenizer)
    for name, value in _settings_of(tokenizer, base).items():
        if value != before[name]:
            raise broken(
                f"using it changes the {name}: {_first_change(before[name], value)}",
                "it to stay: other code reads it, and the record tells what it was",
                "a setting made for the method's own sake; pass it where it is used",
            )


def _settings_of(tokenizer: WordTokenizer, base: Any) -> dict[str, dict[str, Any]]:
    return {
        "tokenizer": {
            **copy.deepcopy(vars(tokenizer)),
            "length": len(tokenizer),
            "ids of a text": tokenizer("one two three")["input_ids"],
        },
        "model's config": {**copy.deepcopy(base.config.to_dict()), "attention": base.config._attn_implementation},
        "model's generation_config": copy.deepcopy(base.generation_config.to_dict()),
    }


def _first_change(before: dict[str, Any], after: dict[str, Any]) -> str:
    name = min(name for name in {*before, *after} if before.get(name) != after.get(name))
    return f"{name} was {before.get(name)!r} and is {after.get(name)!r}"
