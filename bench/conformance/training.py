"""Checks on training: which tensors it changes, and what hooks and parameter groups may do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bench.conformance.rehearsal import LATE_STEPS, has_hooks, rehearse
from bench.conformance.subject import ContractError, Subject, batch_of, broken, logits_of, tensors_of
from bench.method import Method, trained_parameters
from bench.train.optimizer import GROUP_KEYS


def check_only_declared_is_trained(subject: Subject) -> None:
    """Training lowers the loss, moves every trained tensor and leaves the base weights bit-identical."""
    base = subject.base_model()
    weights = {name: (tensor, tensor.detach().clone()) for name, tensor in tensors_of(base)}
    method, model = subject.patched(disturbed=False, base=base)
    trained = dict(trained_parameters(model))
    _require_untouched(weights, model, "patch")
    if not method.trains:
        if trained:
            raise ContractError(f"it says that it trains nothing, and {len(trained)} tensors require grad")
        return
    if not trained:
        raise ContractError("nothing requires grad: it trains nothing")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    stepped: set[str] = set()

    @contextmanager
    def see_what_moved(hook: str, step: int) -> Iterator[None]:
        if hook == "after_step":  # which may move it back
            stepped.update(name for name in trained if not torch.equal(trained[name].detach(), before[name]))
        yield

    waiting = set.intersection(*({id(each) for each in method.idle(model, step)} for step in range(1, 6)))
    losses = rehearse(method, model, steps=5, watch=see_what_moved)
    if not losses[-1] < losses[0]:
        raise ContractError(f"five steps did not lower the loss: {losses[0]:.4f} to {losses[-1]:.4f}")
    for name, parameter in model.named_parameters():
        moved = name not in before or not torch.equal(parameter.detach(), before[name])
        if moved and name not in trained:
            raise ContractError(f"{name} moved, and it is not among what the method trains")
        if name in trained and name not in stepped and id(parameter) not in waiting:
            raise ContractError(
                f"{name} requires grad and did not move: it has no part in the output, or none of the parameter groups "
                "holds it"
            )
    if (now := set(dict(trained_parameters(model)))) != set(trained):
        changed = min(now ^ set(trained))
        raise broken(
            f"training changed whether {changed} requires grad",
            "the same trained tensors from patch to the end: the optimiser knows no others",
            "requires_grad_ in a hook, in forward or in adapter_state",
        )
    with torch.no_grad():
        logits_of(model, batch_of(model))
    _require_untouched(weights, model, "training")
    rehearse(method, model, steps=1, late_steps=LATE_STEPS)
    _require_untouched(weights, model, "a hook at a later step")


def _require_untouched(weights: dict[str, tuple[torch.Tensor, torch.Tensor]], model: nn.Module, when: str) -> None:
    """Check that the model still has all tensors of the base model, with their values unless they are trained."""
    present = {id(tensor) for _, tensor in tensors_of(model)}
    for name, (tensor, value) in weights.items():
        if id(tensor) not in present:
            raise ContractError(f"{when} took {name} out of the model, or put another tensor in its place")
        if not tensor.requires_grad and not torch.equal(tensor.detach(), value):
            raise ContractError(f"{when} changed {name}, which belongs to the base model and is not trained")


def check_parameter_groups(subject: Subject) -> None:
    """Parameter groups hold every trained tensor once and nothing else, with no other key than a positive rate."""
    method, model = subject.patched()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trained = {name for name, _ in trained_parameters(model)}
    values = {name: tensor.detach().clone() for name, tensor in tensors_of(model)}
    groups = [{**group, "params": list(group["params"])} for group in method.parameter_groups(model)]
    now = {name for name, _ in trained_parameters(model)}
    if now != trained:
        raise broken(
            f"parameter_groups changed whether {min(now ^ trained)} requires grad",
            "what is trained to be settled by patch",
            "it freezes or frees tensors",
        )
    for name, tensor in tensors_of(model):
        if not torch.equal(tensor.detach(), values[name]):
            raise broken(f"parameter_groups changed {name}", "values to stay", "it initialises or scales tensors")
    for group in groups:
        if unknown := sorted(group.keys() - GROUP_KEYS):
            raise broken(
                f"a parameter group has the key {unknown[0]!r}",
                f"{' and '.join(sorted(GROUP_KEYS))} only",
                "an option of torch's optimisers, which the loop does not read",
            )
        scale = group.get("lr_scale", 1.0)
        if not (isinstance(scale, int | float) and math.isfinite(scale) and scale > 0):
            raise broken(
                f"a parameter group has lr_scale {scale!r}",
                "a finite number above zero",
                "a group that should stay frozen, which patch has to say",
            )
    counts = Counter(id(parameter) for group in groups for parameter in group["params"])
    for identity, count in counts.items():
        name = names.get(identity, "a tensor that is none of the model's parameters")
        if name not in trained:
            raise broken(f"parameter_groups has {name}", "trained tensors only", "a list of all parameters of a module")
        if count > 1:
            raise broken(f"parameter_groups has {name} {count} times", "each tensor once", "two groups that overlap")
    for name, parameter in trained_parameters(model):
        if id(parameter) not in counts:
            raise broken(
                f"parameter_groups omits {name}, which requires grad",
                "every trained tensor in a group",
                "a filter by name or shape that matches too little",
            )


def check_hooks(subject: Subject) -> None:
    """Hooks do not change frozen tensors; a method whose hooks change trained ones sets ``adapts_in_training``."""
    method, model = subject.patched()
    if not has_hooks(method):
        return
    adapts = method.adapts_in_training

    @contextmanager
    def watch(hook: str, step: int) -> Iterator[None]:
        if step > 4 and step % 10:
            yield
            return
        before = _state_of(model)
        yield
        _require_allowed(hook, before, _state_of(model), adapts)

    rehearse(method, model, watch=watch, late_steps=LATE_STEPS)
    if not adapts:
        _require_no_gradients_read(subject)


def _state_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {
        "value": {name: (tensor.requires_grad, tensor.detach().clone()) for name, tensor in tensors_of(model)},
        "gradient": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "mode": {name: module.training for name, module in model.named_modules()},
    }


def _require_allowed(hook: str, before: dict[str, Any], after: dict[str, Any], adapts: bool) -> None:
    if before["value"].keys() != after["value"].keys():
        name = min(before["value"].keys() ^ after["value"].keys())
        raise broken(f"{hook} adds or takes away {name}", "the tensors that patch has made", "a layer made in training")
    for name, (trained, value) in before["value"].items():
        trained_now, value_now = after["value"][name]
        if trained != trained_now:
            raise broken(
                f"{hook} changes whether {name} requires grad",
                "what is trained to be settled by patch",
                "it freezes or frees tensors, which the optimiser does not follow",
            )
        if trained and not adapts and not torch.equal(value, value_now):
            raise broken(
                f"{hook} changes {name}, which is trained",
                "adapts_in_training to be true of such a method",
                "that property is missing: ZeRO and bf16 would undo the change silently",
            )
    for name, gradient in before["gradient"].items():
        same = gradient is after["gradient"][name] or (
            gradient is not None
            and after["gradient"][name] is not None
            and torch.equal(gradient, after["gradient"][name])
        )
        if not same and not adapts:
            raise broken(
                f"{hook} changes the gradient of {name}",
                "adapts_in_training to be true of such a method",
                "that property is missing: ZeRO keeps gradients elsewhere",
            )
    for name, training in before["mode"].items():
        if after["mode"].get(name) != training:
            raise broken(
                f"{hook} switches {name or 'the model'} between training and evaluation",
                "the mode that the loop has set",
                "a call of train() or eval() that is not undone",
            )


def _require_no_gradients_read(subject: Subject) -> None:
    """Check that hooks of a method without ``adapts_in_training`` do the same if gradients are hidden."""
    values = []
    for hide in (False, True):
        method, model = subject.patched()
        try:
            rehearse(method, model, hide_gradients=hide)
        except Exception as error:
            if not hide:
                raise
            raise broken(
                f"hooks fail where gradients are kept elsewhere ({type(error).__name__}: {error})",
                "adapts_in_training to be true of a method whose hooks read gradients",
                "that property is missing",
            ) from error
        values.append({name: tensor.detach().clone() for name, tensor in tensors_of(model)})
    for name, value in values[0].items():
        if not torch.equal(value, values[1][name]):
            raise broken(
                f"without gradients hooks change {name} otherwise",
                "adapts_in_training to be true of a method whose hooks read gradients",
                "that property is missing: ZeRO keeps gradients elsewhere",
            )


def check_turns(subject: Subject) -> None:
    """What a step leaves idle is trained in others, and is the same whenever it is asked for."""
    method, model = subject.patched()
    trained = {id(parameter): name for name, parameter in trained_parameters(model)}
    answers: dict[int, set[int]] = {}
    for step in (1, 2, LATE_STEPS, 2, 1):
        idle = {id(parameter) for parameter in method.idle(model, step)}
        if idle and not method.trains_in_turns:
            raise broken(
                f"step {step} leaves {len(idle)} tensors idle",
                "trains_in_turns to be true of such a method",
                "that property is missing: ZeRO would train them silently",
            )
        if idle - trained.keys():
            raise broken(f"step {step} leaves a tensor idle that is not trained", "trained tensors only", "a filter")
        if trained and idle == trained.keys():
            raise broken(f"step {step} leaves all tensors idle", "something to train in every step", "a draw of none")
        if answers.setdefault(step, idle) != idle:
            name = trained[min(answers[step] ^ idle)]
            raise broken(
                f"whether step {step} leaves {name} idle depends on when that is asked",
                "the same answer for the same step, since training may continue from a checkpoint",
                "random numbers or a counter in idle; draw once in patch, and compute from the step",
            )


def check_declares_itself(subject: Subject) -> None:
    """The properties that describe a method are booleans, the same before and after patch."""
    method = subject.method()
    before = _declared(method)
    method, _ = subject.patched()
    if _declared(method) != before:
        raise broken(
            f"{_declared(method)} after patch, {before} before",
            "the same answers, since sweeps are planned without a model",
            "a property that looks at what patch has found",
        )


def _declared(method: Method) -> dict[str, bool]:
    properties = ("adapts_in_training", "fusable", "mergeable", "trains", "trains_in_turns")
    answers = {name: getattr(method, name) for name in properties}
    for name, answer in answers.items():
        if not isinstance(answer, bool):
            raise broken(f"{name} is {answer!r}", "True or False", "a method where a property is meant")
    return answers
