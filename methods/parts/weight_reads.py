"""Which modules a model really calls, and which weights of linear layers it reads past them.

Mamba, for instance, multiplies with ``dt_proj.weight`` itself: what stands in the place of ``dt_proj`` then has no part
in the output. A forward pass over tensors without data shows it, whatever the code of the model looks like.
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

# More than the kernel of any convolution over tokens, so that no branch for short inputs is taken.
NUM_TOKENS = 8

# What models ask of values: of masks and positions, to take a shorter way where nothing is masked.
QUESTIONS = (torch.Tensor.__bool__, torch.Tensor.__contains__, torch.Tensor.item, torch.equal, torch.allclose)

# Passes of the last models are remembered: the same structure is patched again and again.
MOST_REMEMBERED = 64
_remembered: OrderedDict[int, Uses] = OrderedDict()


@dataclass(frozen=True)
class Uses:
    """What forward passes in training and in evaluation mode did with a model."""

    called: frozenset[str]
    """Names of the modules that were called."""
    used: frozenset[str]
    """Names of the parameters that went into a computation."""
    readers: Mapping[str, str]
    """Linear layers whose weight went into a computation outside of their own forward, to the class that did it."""
    odd: frozenset[str]
    """Linear layers that put out something else than one tensor: routers, in the main."""
    skipped: tuple[str, ...]
    """Beginnings of the names of modules that were not observed: what lies within experts."""
    complete: bool
    """Whether the passes reached the end: only then is a module that was not called known to have no part in them."""

    def why_without_part(self, name: str) -> str | None:
        """Why what stands in this linear layer's place would have no part, or a wrong one; None if it has its part."""
        if name in self.readers:
            return f"{self.readers[name]} reads its weight itself, past the layer"
        if name in self.odd:
            return "it puts out more than the one tensor of a linear layer"
        called = name in self.called or not self.complete or name.startswith(self.skipped)
        return None if called else "the model never calls it"

    def has_part(self, parameter: str) -> bool:
        """Whether a parameter goes into a computation, as far as is known.

        What a module that is called does with its parameters out of sight (in a kernel) is not known.
        """
        seen = parameter in self.used or parameter.rpartition(".")[0] in self.called
        return seen or not self.complete or parameter.startswith(self.skipped)


def uses_of(model: Any) -> Uses:
    """Run the model on a copy without data, once in training and once in evaluation mode.

    Takes no memory worth the name, and some milliseconds a layer. A model whose course depends on values (which of its
    experts are hit) cannot be run to the end so; what it did until then is told, see :attr:`Uses.complete`.
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
        except Exception:  # noqa: BLE001 - its course depends on values; what it did so far counts
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
    """Let experts give zeros: which of them are hit depends on values. Returns their names."""
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
    """Whether a module keeps the matrices of experts as tensors of its own, not in linear layers."""
    matrices = any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    return matrices and _is_called_expert(module) and not isinstance(module, nn.Linear | Conv1D)


def _inputs(model: Any) -> dict[str, Any]:
    ids = torch.zeros(1, NUM_TOKENS, dtype=torch.long, device="meta")
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    return inputs


class _Watch(TorchFunctionMode):
    """Sees every operation, and knows in which module it happens."""

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
        if func in QUESTIONS:  # there are no values to answer from: nothing is padded, nothing packed, all alike
            return True
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):  # a dtype or a shape is no part of the computation
            for value in _tensors([*args, *(kwargs or {}).values()]):
                self.used.update(self._parameters.get(id(value), ()))
                if id(value) in self._weights and not self._inside_its_owner(value):
                    reader = type(self._stack[-1]).__name__ if self._stack else "the model"
                    self.readers.update(dict.fromkeys(self._weights[id(value)], reader))
        return found

    def _inside_its_owner(self, weight: torch.Tensor) -> bool:
        return bool(self._stack) and any(weight is own for own in self._stack[-1].parameters(recurse=False))


def _tensors(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
