"""Finds the modules that a model calls, and weights of linear layers that it reads without calling the layer.

Mamba, for instance, multiplies with ``dt_proj.weight`` itself, so that a module in the place of ``dt_proj`` would not
change the output. A forward pass with tensors without data shows this for any model.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

# It is more than the kernel of any convolution over tokens, so that models take no branch for short inputs.
NUM_TOKENS = 8

# Models ask these of the values of masks and positions, to take a shorter way if nothing is masked.
QUESTIONS = (torch.Tensor.__bool__, torch.Tensor.__contains__, torch.Tensor.item, torch.equal, torch.allclose)

# The results for so many structures are kept, because models of the same structure are patched again and again.
MOST_REMEMBERED = 64
_remembered: OrderedDict[int, Uses] = OrderedDict()


@dataclass(frozen=True)
class Uses:
    """The modules and parameters that forward passes in training and in evaluation mode have used."""

    called: frozenset[str]
    """Names of the modules that were called."""
    used: frozenset[str]
    """Names of the parameters that a computation has used."""
    readers: Mapping[str, str]
    """Linear layers whose weight was used outside of their own forward, to the class of the module that used it."""
    odd: frozenset[str]
    """Linear layers whose output is not one tensor: mostly routers."""
    skipped: tuple[str, ...]
    """Beginnings of the names of modules that were not observed: those inside experts."""
    complete: bool
    """Whether the passes reached the end. Only then does a module that was not called have no effect for certain."""

    def why_without_part(self, name: str) -> str | None:
        """Why a module in the place of this linear layer would have no effect, or a wrong one; None if it has one."""
        if name in self.readers:
            return f"{self.readers[name]} reads its weight itself, past the layer"
        if name in self.odd:
            return "it puts out more than the one tensor of a linear layer"
        called = name in self.called or not self.complete or name.startswith(self.skipped)
        return None if called else "the model never calls it"

    def has_part(self, parameter: str) -> bool:
        """Whether a computation uses a parameter, or may use it.

        The passes do not show whether a called module uses its parameters in a kernel.
        """
        seen = parameter in self.used or parameter.rpartition(".")[0] in self.called
        return seen or not self.complete or parameter.startswith(self.skipped)


def uses_of(model: Any) -> Uses:
    """Run a copy of the model without data, once in training and once in evaluation mode.

    It takes nearly no memory, and some milliseconds for each layer. A model whose computation depends on values (which
    experts get tokens) does not run to the end; the result then covers the part that ran, see :attr:`Uses.complete`.
    """
    structure = [(name, type(module)) for name, module in model.named_modules()]
    key = hash((str(model.config.to_dict()), tuple(structure)))
    if key not in _remembered:
        _remembered[key] = _observed(model)
        if len(_remembered) > MOST_REMEMBERED:
            _remembered.popitem(last=False)
    return _remembered[key]


def _observed(model: Any) -> Uses:
    empty = _without_data(model)
    skipped = _skip_experts(empty)
    watch = _Watch(empty)
    complete = True
    for training in (True, False):
        empty.train(training)
        try:
            with watch, torch.no_grad():
                empty(**_inputs(empty))
        except Exception:  # noqa: BLE001 - the computation depends on values; the part that ran counts
            complete = False
    return Uses(
        called=frozenset(watch.called),
        used=frozenset(watch.used),
        readers=dict(watch.readers),
        odd=frozenset(watch.odd),
        skipped=tuple(f"{name}." for name in skipped),
        complete=complete,
    )


def _without_data(model: Any) -> Any:
    """The same modules with tensors on the meta device."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _skip_experts(model: nn.Module) -> list[str]:
    """Make experts return zeros, because values route tokens to them. Returns their names."""
    skipped = []
    for name, module in model.named_modules():
        if _is_called_expert(module) and any(True for _ in module.parameters()):
            module.forward = _zeros
            skipped.append(name)
    return skipped


def _zeros(states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return torch.zeros_like(states)


def _is_called_expert(module: nn.Module) -> bool:
    return "expert" in type(module).__name__.lower()


def holds_expert_tensors(module: nn.Module) -> bool:
    """Whether a module keeps the matrices of experts as its own tensors, not in linear layers."""
    matrices = any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    return matrices and _is_called_expert(module) and not isinstance(module, nn.Linear | Conv1D)


def _inputs(model: Any) -> dict[str, Any]:
    ids = torch.zeros(1, NUM_TOKENS, dtype=torch.long, device="meta")
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    return inputs


class _Watch(TorchFunctionMode):
    """Records every operation with the module in which it happens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.called: set[str] = set()
        self.used: set[str] = set()
        self.readers: dict[str, str] = {}
        self.odd: set[str] = set()
        self._stack: list[nn.Module] = []
        self._names: dict[int, list[str]] = {}
        self._weights: dict[int, list[str]] = {}
        self._parameters: dict[int, list[str]] = {}
        # A module may have several names, and a weight several layers.
        for name, module in model.named_modules(remove_duplicate=False):
            self._names.setdefault(id(module), []).append(name)
            if isinstance(module, nn.Linear | Conv1D):
                self._weights.setdefault(id(module.weight), []).append(name)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._parameters.setdefault(id(parameter), []).append(name)
        for module in model.modules():
            module.register_forward_pre_hook(self._enter, prepend=True)
            module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._stack.append(module)
        self.called.update(self._names[id(module)])

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, nn.Linear | Conv1D) and isinstance(output, tuple):
            self.odd.update(self._names[id(module)])
        while self._stack and self._stack.pop() is not module:
            pass

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in QUESTIONS:  # there are no values; the answer means that nothing is padded or packed
            return True
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):  # reading a dtype or a shape does not count
            for value in _tensors([*args, *(kwargs or {}).values()]):
                self.used.update(self._parameters.get(id(value), ()))
                if id(value) in self._weights and not self._inside_its_owner(value):
                    reader = type(self._stack[-1]).__name__ if self._stack else "the model"
                    self.readers.update(dict.fromkeys(self._weights[id(value)], reader))
        return result

    def _inside_its_owner(self, weight: torch.Tensor) -> bool:
        return bool(self._stack) and any(weight is own for own in self._stack[-1].parameters(recurse=False))


def _tensors(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
