"""Records, compares and restores the parts of a process that a method could change besides its model."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy
import torch
from torch import nn

from bench import method
from bench.conformance.process_settings import PROCESS_SETTINGS, Settings
from bench.conformance.tiny_models import WordTokenizer
from bench.models import architecture
from bench.train import loss

# The settings of a process, with the functions that read and restore each.
SETTINGS: Settings = {
    **PROCESS_SETTINGS,
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (torch.get_default_device, torch.set_default_device),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "whether gradients are enabled": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch.use_deterministic_algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "torch's precision of float32 products": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "torch's detection of anomalies": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "torch.backends.cudnn": (
        lambda: (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.enabled),
        lambda value: _set_cudnn(*value),
    ),
    "torch's kernels of attention": (
        lambda: (
            torch.backends.cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
            torch.backends.cuda.mem_efficient_sdp_enabled(),  # type: ignore[no-untyped-call]
            torch.backends.cuda.math_sdp_enabled(),  # type: ignore[no-untyped-call]
        ),
        lambda value: _set_attention(*value),
    ),
}


def _set_cudnn(benchmark: bool, deterministic: bool, enabled: bool) -> None:
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.enabled = enabled


def _set_attention(flash: bool, efficient: bool, plain: bool) -> None:
    torch.backends.cuda.enable_flash_sdp(flash)
    torch.backends.cuda.enable_mem_efficient_sdp(efficient)
    torch.backends.cuda.enable_math_sdp(plain)


@dataclass(frozen=True)
class Surroundings:
    """Settings of the process, and the contents of classes and modules that models share."""

    settings: dict[str, Any]
    classes: dict[type, dict[str, Any]]
    functions: dict[str, tuple[dict[Any, Any], dict[Any, Any]]]
    """Name of a module, or of a table in it, to the live mapping and its recorded functions, classes and hooks."""

    def changed_code(self) -> str | None:
        """The name of shared code that has been replaced since; None if there is none."""
        for owner, before in self.classes.items():
            now = vars(owner)
            for name in (*before, *(name for name in now if name not in before)):
                if before.get(name, _ABSENT) is not now.get(name, _ABSENT) and name not in _PYTHONS_OWN:
                    return f"{owner.__module__}.{owner.__qualname__}.{name}"
        for where, (live, before) in self.functions.items():
            for name, value in before.items():
                if live.get(name, _ABSENT) is not value:
                    return f"{where}.{name}"
            if _is_hooks(where) and len(live) > len(before):
                return where
        return None

    def changed_setting(self) -> str | None:
        """The name of a setting that has another value now; None if there is none."""
        return next((name for name, value in self.settings.items() if SETTINGS[name][0]() != value), None)

    def restore(self) -> None:
        """Put everything back as it was."""
        for name, value in self.settings.items():
            if SETTINGS[name][0]() != value:
                SETTINGS[name][1](value)
        for owner, before in self.classes.items():
            for name in [name for name in vars(owner) if name not in before and name not in _PYTHONS_OWN]:
                delattr(owner, name)
            for name, value in before.items():
                if vars(owner).get(name, _ABSENT) is not value and name not in _PYTHONS_OWN:
                    setattr(owner, name, value)
        for where, (live, before) in self.functions.items():
            if _is_hooks(where):
                live.clear()
            live.update({name: value for name, value in before.items() if live.get(name, _ABSENT) is not value})


_ABSENT = object()
# Attributes that Python itself writes into a class, some of them when an object is first copied.
_PYTHONS_OWN = frozenset(
    {
        "__slotnames__",
        "__abstractmethods__",
        "_abc_impl",
        "__annotations__",
        "__annotations_cache__",
        "__doc__",
        "__weakref__",
        "__dict__",
    }
)


def _is_hooks(where: str) -> bool:
    return where.rpartition(".")[2].startswith("_global_")


def surroundings_of(model: nn.Module) -> Surroundings:
    """The surroundings of a base model as they are now."""
    for kind in (torch.optim.AdamW, torch.optim.SGD):
        kind([nn.Parameter(torch.zeros(1))])  # torch wraps the class's step when the first one is made
    from transformers import (
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
        cache_utils,
        masking_utils,
        modeling_utils,
        pytorch_utils,
    )
    from transformers.activations import ACT2FN
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    kinds: set[type] = {type(module) for module in model.modules()}
    kinds |= {type(model.config), type(model.generation_config)}
    kinds |= {nn.Linear, nn.Embedding, nn.LayerNorm, nn.Dropout, nn.Parameter, nn.ModuleList, torch.optim.AdamW}
    kinds |= {cache_utils.DynamicCache, cache_utils.DynamicLayer, loss.TargetLoss, method.Method, method.MethodConfig}
    kinds |= {WordTokenizer, torch.Tensor, torch.optim.SGD, PreTrainedTokenizerBase, PreTrainedTokenizerFast}
    owners = {owner for kind in kinds for owner in kind.__mro__ if owner is not object}
    modules: list[ModuleType] = [sys.modules[owner.__module__] for owner in owners if owner.__module__ in sys.modules]
    modules += [
        torch,
        nn.functional,
        nn.init,
        nn.utils,
        nn.modules.module,
        torch.random,
        torch.utils.checkpoint,
        torch.distributed,
    ]
    modules += [cache_utils, masking_utils, modeling_utils, pytorch_utils, random, math, numpy.random]
    modules += [architecture, loss, method]
    functions: dict[str, tuple[dict[Any, Any], dict[Any, Any]]] = {}
    for module in {id(module): module for module in modules}.values():
        if module.__name__ in ("builtins", "typing", "abc"):
            continue
        functions[module.__name__] = _code_in(vars(module))
        for name, table in list(vars(module).items()):
            if issubclass(type(table), dict) and not name.startswith("__"):
                functions[f"{module.__name__}.{name}"] = _code_in(table)
    functions["ACT2FN"] = _code_in(ACT2FN)
    functions["ALL_ATTENTION_FUNCTIONS"] = _code_in(ALL_ATTENTION_FUNCTIONS._global_mapping)
    return Surroundings(
        {name: read() for name, (read, _) in SETTINGS.items()},
        {owner: dict(vars(owner)) for owner in owners},
        functions,
    )


def _code_in(live: dict[Any, Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    return live, {name: value for name, value in list(live.items()) if callable(value)}


@contextmanager
def put_back(model: nn.Module) -> Iterator[Surroundings]:
    """Yield the present surroundings, and restore them and the random states after the block."""
    before = surroundings_of(model)
    torch_state, python, of_numpy = torch.random.get_rng_state(), random.getstate(), numpy.random.get_state()
    try:
        yield before
    finally:
        before.restore()
        torch.random.set_rng_state(torch_state)
        random.setstate(python)
        numpy.random.set_state(of_numpy)
