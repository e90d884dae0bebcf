"""Checks on the stored state of a method, and on merging it into the base weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from bench.conformance.rehearsal import LATE_STEPS, rehearse
from bench.conformance.subject import (
    LONG_PAIRS,
    PAIRS,
    ContractError,
    Subject,
    broken,
    require_close,
    target_logits,
    tensors_of,
)
from bench.conformance.tiny_models import FAMILIES
from bench.method import Method, MethodError, trained_parameters
from bench.models.quantization import Storage, quantize

STORED_TOO_LITTLE = (
    "something that the method draws or changes is not stored: a plain attribute, a buffer, a scale that a hook changes"
)


def check_state_reloads(subject: Subject) -> None:
    """A freshly patched model with a loaded state gives the same logits, whatever its start and its earlier calls."""
    states, expected = [], []
    for seed in (1, 3):
        method, model = subject.patched(disturbed=False, seed=seed)
        with torch.no_grad():
            target_logits(model)  # values computed before training must not be used after it
        if method.trains:
            rehearse(method, model, steps=3, late_steps=LATE_STEPS)
        else:
            method.adapter_state(model)
        states.append(on_disk_and_back(method, model))
        with torch.no_grad():
            expected.append([target_logits(model, pairs) for pairs in (PAIRS, LONG_PAIRS)])
    fresh_method, fresh = subject.patched(disturbed=False, seed=2)  # another start, which loading has to replace
    with torch.no_grad():
        target_logits(fresh)
    for state, wanted in zip([states[0], states[1], states[0]], [expected[0], expected[1], expected[0]], strict=True):
        fresh_method.load_adapter_state(fresh, state)
        for pairs, logits in zip((PAIRS, LONG_PAIRS), wanted, strict=True):
            with torch.no_grad():
                reloaded = target_logits(fresh, pairs)
            require_close(
                reloaded,
                logits,
                "a reloaded state gives other logits than the model it was taken from",
                "the same: what is scored is the stored state in a fresh base model",
                STORED_TOO_LITTLE,
            )
    again = on_disk_and_back(fresh_method, fresh)
    if name := _first_difference(again, states[0]):
        raise broken(
            f"{name} is stored with another value than was loaded",
            "load_adapter_state and adapter_state to be each other's reverse",
            "loading ignores this name, or storing computes a value anew",
        )


def on_disk_and_back(method: Method, model: nn.Module) -> dict[str, torch.Tensor]:
    """The stored state, written in the format of its file and read again."""
    state = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in method.adapter_state(model).items()
    }
    return load(save(state)) if state else {}


def _first_difference(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str | None:
    if state.keys() != expected.keys():
        return min(state.keys() ^ expected.keys())
    return next((name for name, tensor in expected.items() if not torch.equal(state[name], tensor)), None)


def check_state_is_the_methods_own(subject: Subject) -> None:
    """The stored state has trained tensors, no frozen base tensors, and always the same names."""
    base = subject.base_model()
    frozen = [(name, tensor, tensor.detach().clone()) for name, tensor in tensors_of(base)]
    method, model = subject.patched(disturbed=False, base=base)
    before = {name: tuple(tensor.shape) for name, tensor in method.adapter_state(model).items()}
    if method.trains:
        rehearse(method, model)
    with torch.no_grad():
        expected = target_logits(model)
    state = method.adapter_state(model)
    with torch.no_grad():
        logits = target_logits(model)
    require_close(
        logits, expected, "adapter_state changed the logits", "it to look and not to touch", "it edits tensors"
    )
    after = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if before != after:
        changed = min(name for name in {*before, *after} if before.get(name) != after.get(name))
        raise broken(
            f"the name or shape of what is stored as {changed} changes in training",
            "the same names and shapes from patch to the end",
            "names or shapes follow from a counter or from what was learned",
        )
    places: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        if (other := places.setdefault(_place(tensor), name)) != name and tensor.numel():
            raise broken(f"{name} and {other} are one tensor", "each tensor stored once", "a tied tensor has two names")
        for base_name, base_tensor, value in frozen:
            if base_tensor.requires_grad or base_tensor.numel() < 2:
                continue
            alias = tensor.untyped_storage().data_ptr() == base_tensor.untyped_storage().data_ptr()
            if alias or (tensor.shape == value.shape and torch.equal(tensor, value)):
                raise broken(
                    f"the stored state has {name}, which is the base model's {base_name}",
                    "what the method trains and needs, and nothing that every copy of the base model has",
                    "adapter_state goes over all tensors of a module instead of the trained ones",
                )
    if method.trains and not state:
        raise broken("nothing is stored", "what is trained", "adapter_state gives an empty dict")


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


def check_loading_is_strict(subject: Subject) -> None:
    """Loading refuses other names or shapes, and copies tensors into the model's own, whose dtypes stay."""
    base = subject.base_model()
    frozen = [(name, tensor, tensor.detach().clone()) for name, tensor in tensors_of(base)]
    method, model = subject.patched(base=base)
    state = on_disk_and_back(method, model)
    if not state:
        return
    dtypes = {name: tensor.dtype for name, tensor in tensors_of(model)}
    names = list(state)
    for name in dict.fromkeys([*names[:2], *names[-2:]]):
        rest = {other: kept for other, kept in state.items() if other != name}
        _require_refusal(subject, rest, f"a state without {name}")
    for name in dict.fromkeys([names[0], names[-1]]):
        other_shape = torch.zeros(*state[name].shape, 2, dtype=state[name].dtype)
        _require_refusal(subject, {**state, name: other_shape}, f"a state whose {name} has another shape")
    unknown = {**state, "unknown.tensor": torch.zeros(3)}
    _require_refusal(subject, unknown, "a state with the unknown name unknown.tensor")
    rounded = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    method.load_adapter_state(model, rounded)
    for name, tensor in tensors_of(model):
        if tensor.dtype != dtypes.get(name, subject.dtype):
            raise broken(
                f"loading a state in float32 made {name} {tensor.dtype}",
                f"it to stay {dtypes.get(name, subject.dtype)}",
                "the loaded tensor is taken itself, instead of copied into the one that is there",
            )
    method.load_adapter_state(model, state)
    for name, tensor, value in frozen:
        if not tensor.requires_grad and not torch.equal(tensor.detach(), value):
            raise broken(
                f"loading changed {name}, which belongs to the base model and is not trained",
                "the base weights as they were",
                "what was stored is folded into the base model, or is put where the base model's tensors are",
            )
    held = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    for name, tensor in tensors_of(model):
        if tensor.untyped_storage().data_ptr() in held:
            raise broken(
                f"{name} shares its memory with the state that was loaded",
                "a copy: training would change the caller's state",
                "parameter.data = tensor instead of copy_",
            )


def _require_refusal(subject: Subject, state: Mapping[str, torch.Tensor], what: str) -> None:
    method, model = subject.patched()
    try:
        method.load_adapter_state(model, dict(state))
    except Exception:  # noqa: BLE001
        return  # any error is a refusal
    raise broken(
        f"{what} is loaded without an error",
        "MethodError that names the tensor",
        "a loop over the names that are there; bench.method.copy_state is strict",
    )


def check_merging_changes_nothing(subject: Subject) -> None:
    """A mergeable method keeps the logits when it merges, and restores every bit when it unmerges.

    It may refuse to merge into weights in four or eight bits.
    """
    base = subject.base_model()
    tensors = [tensor for _, tensor in tensors_of(base)]
    method, model = subject.patched(base=base)
    if not method.mergeable:
        return
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    stored = on_disk_and_back(method, model)
    trained = {name for name, _ in trained_parameters(model)}
    with torch.no_grad():
        expected = [target_logits(model, pairs) for pairs in (PAIRS, LONG_PAIRS)]
    for _ in range(2):
        with torch.no_grad():
            try:
                method.merge(model)
            except MethodError:
                if subject.quantization is None:
                    raise
                return
            for pairs, wanted in zip((PAIRS, LONG_PAIRS), expected, strict=True):
                require_close(
                    target_logits(model, pairs),
                    wanted,
                    "merging changed the logits",
                    "the same function",
                    "a scale, a transposed weight or a bias is missing, or the method depends on its input and cannot "
                    "be merged",
                )
            method.unmerge(model)
        _require_unmerged(model, before)
    if {name for name, _ in trained_parameters(model)} != trained:
        raise ContractError("unmerging does not put back which tensors require grad")
    if name := _first_difference(on_disk_and_back(method, model), stored):
        raise ContractError(f"unmerging does not put {name} back as it was in the stored state")
    present = {id(tensor) for _, tensor in tensors_of(model)}
    if any(id(tensor) not in present for tensor in tensors):
        raise broken(
            "unmerging leaves another tensor in the place of a base weight",
            "the base model's own tensors back",
            "a copy of the weight is kept instead of the weight",
        )
    with torch.no_grad():
        require_close(
            target_logits(model), expected[0], "unmerging changed the logits", "the same as before", "a flag stays set"
        )


def _require_unmerged(model: nn.Module, before: Mapping[str, torch.Tensor]) -> None:
    after = model.state_dict()
    for name, tensor in before.items():
        if name not in after or not torch.equal(after[name], tensor):
            raise broken(
                f"unmerging does not put {name} back as it was",
                "every bit as before",
                "what was added is subtracted again, which rounds; keep the weight",
            )


def check_counts(subject: Subject) -> None:
    """Trained and stored tensors have the same names and shapes on a model without weights."""
    method, model = subject.patched()
    with torch.device("meta"):
        empty = FAMILIES[subject.family]().requires_grad_(False).eval()
    if subject.quantization is not None:
        quantize(empty, Storage(subject.quantization))
    empty_method = subject.method_class(subject.config)
    patched: nn.Module = empty_method.patch(empty)
    for what, real, counted in (
        ("trained", _sizes(dict(trained_parameters(model))), _sizes(dict(trained_parameters(patched)))),
        ("stored", _sizes(method.adapter_state(model)), _sizes(empty_method.adapter_state(patched))),
    ):
        if real != counted:
            raise ContractError(f"on a model without weights it counts other {what} tensors")


def _sizes(tensors: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
