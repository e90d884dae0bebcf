"""Checks the coverage of a method: layers that are equal in the base model are adapted alike.

B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bench.conformance.subject import ContractError, Subject, batch_of, broken, logits_in, seeded
from bench.method import trained_parameters

LAYERS = 4
# A setting with one of these words in its name chooses layers, so that a method may leave out others.
CHOICES = ("layer", "block")

Part = tuple[str, tuple[int, ...]]
"""Name of a tensor within its layer, and its shape."""


def check_equal_layers_are_adapted_alike(subject: Subject) -> None:
    """All equal layers are adapted in the same way, or none is, unless a setting chooses some."""
    if chooses_layers(subject.config):
        return
    base = subject.base_model(LAYERS)
    stacks = _stacks(base)
    original = {id(block): _shapes_below(block) for blocks in stacks.values() for block in blocks}
    parts = {id(block): _modules_below(block) for blocks in stacks.values() for block in blocks}
    kinds = {name: _equal_blocks(blocks) for name, blocks in stacks.items()}
    _, model = subject.patched(base=base)
    changed = _blocks_with_another_function(subject, model, stacks)
    for name, stack in stacks.items():
        for equal in kinds[name]:
            blocks = [stack[number] for number in equal]
            alike = set.intersection(*(original[id(block)] for block in blocks))
            shared = set.intersection(*(parts[id(block)] for block in blocks))
            adapted = [
                _what_is_trained(block, alike, original[id(block)], parts[id(block)] - shared) for block in blocks
            ]
            for of_block in adapted:
                if of_block != adapted[-1]:
                    part = min((of_block - adapted[-1]) + (adapted[-1] - of_block))
                    most = max(each[part] for each in adapted)
                    having = [str(number) for number, each in zip(equal, adapted, strict=True) if each[part] == most]
                    raise _unalike(name, len(blocks), having, f"train {part[0]}")
            flags = [changed.get(id(block)) for block in blocks]
            if None not in flags and len(set(flags)) > 1:
                having = [str(number) for number, flag in zip(equal, flags, strict=True) if flag]
                raise _unalike(name, len(blocks), having, "compute other than in the base model")


def _unalike(stack: str, count: int, having: Sequence[str], what: str) -> ContractError:
    return broken(
        f"of {count} equal layers in {stack} only {', '.join(having)} {what}",
        "all of them adapted alike, or a setting with 'layer' in its name that chooses some",
        "a match by name, class or shape that not all layers meet, or a loop that ends early",
    )


def chooses_layers(config: Any) -> bool:
    """Whether a method's settings say which layers it adapts."""
    names = {*type(config).model_fields, *(config.model_extra or ())}
    return any(choice in name for name in names for choice in CHOICES)


def _stacks(base: nn.Module) -> dict[str, list[nn.Module]]:
    """The outermost lists of layers, by name."""
    stacks: dict[str, list[nn.Module]] = {}
    for name, module in base.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in stacks)
        if isinstance(module, nn.ModuleList) and not inside and len(module) == LAYERS:
            stacks[name] = list(module)
    return stacks


def _equal_blocks(blocks: Sequence[nn.Module]) -> list[list[int]]:
    """The numbers of the blocks of each kind: with attention or without, or with heads of one or another size.

    Blocks are of one kind if they have modules of the same classes, and the same shapes in what all of them have.
    """
    kinds: list[tuple[Any, dict[str, tuple[int, ...]], list[int]]] = []
    for number, block in enumerate(blocks):
        classes = (type(block), [(name, type(part)) for name, part in block.named_children()])
        shapes = dict(_shapes_below(block))
        for of_kind, known, numbers in kinds:
            if of_kind == classes and all(known.get(name, shape) == shape for name, shape in shapes.items()):
                known |= shapes
                numbers.append(number)
                break
        else:
            kinds.append((classes, shapes, [number]))
    return [numbers for _, _, numbers in kinds]


def _shapes_below(block: nn.Module) -> set[Part]:
    return {(name, tuple(parameter.shape)) for name, parameter in block.named_parameters()}


def _modules_below(block: nn.Module) -> set[str]:
    return {name for name, _ in block.named_modules()}


def _what_is_trained(block: nn.Module, alike: set[Part], original: set[Part], own: set[str]) -> Counter[Part]:
    """Names and shapes of a layer's trained tensors, without those that only some layers of the base model have.

    Args:
        block: The patched layer.
        alike: The tensors that all layers of its kind have in the base model.
        original: Those that this one has.
        own: The modules of this one that not all layers of its kind have. What was put into them does not count.
    """
    trained = [(name, tuple(parameter.shape)) for name, parameter in trained_parameters(block)]
    return Counter(
        part
        for part in trained
        if part in alike or (part not in original and not any(part[0].startswith(f"{name}.") for name in own))
    )


def _blocks_with_another_function(subject: Subject, model: Any, stacks: dict[str, list[nn.Module]]) -> dict[int, bool]:
    """Whether each layer's output differs from the base model's for the same input; absent if that is unknown."""
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any], Any]] = {}
    blocks = [block for blocks in stacks.values() for block in blocks]

    def take(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[id(block)] = (args, kwargs, output)

    hooks = [block.register_forward_hook(take, with_kwargs=True) for block in blocks]
    try:
        logits_in("evaluation", model, batch_of(model))
    finally:
        for hook in hooks:
            hook.remove()
    untouched = [block for blocks in _stacks(subject.base_model(LAYERS)).values() for block in blocks]
    changed: dict[int, bool] = {}
    for block, plain in zip(blocks, untouched, strict=True):
        if id(block) not in calls:
            continue
        args, kwargs, output = calls[id(block)]
        try:
            with torch.no_grad(), seeded(5):
                expected = plain(*args, **kwargs)
            changed[id(block)] = not torch.equal(_hidden(output), _hidden(expected))
        except Exception:  # noqa: BLE001
            continue  # the base model's layer may not take the arguments of this one
    return changed


def _hidden(output: Any) -> torch.Tensor:
    """Hidden states ``(B, T, D)`` of a layer's output."""
    hidden: torch.Tensor = output[0] if isinstance(output, Sequence) else output
    return hidden
