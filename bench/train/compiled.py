"""Layers of a model that are compiled while it trains."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from bench.method import MethodError


class Compiler:
    """Tells a training loop in which of its steps something was compiled."""

    def __init__(self) -> None:
        self._has_compiled = False

    def began(self, *_: Any) -> None:
        """To be called when a compilation begins."""
        self._has_compiled = True

    def worked(self) -> bool:
        """Whether anything was compiled since this was asked last."""
        worked, self._has_compiled = self._has_compiled, False
        return worked


@contextmanager
def compiled_layers(models: Sequence[nn.Module]) -> Iterator[Compiler]:
    """Compile the repeated layers of patched models, with ``torch.compile``, for the time of the block.

    Layers of equal code share what is compiled, for any number of rows and tokens. Another one is made when a layer is
    called in a new way: without gradients, without a mask because no pair needs padding.

    Args:
        models: Patched models.

    Raises:
        MethodError: There is no compiler, or no layer.
    """
    from torch._dynamo.callback import callback_handler
    from torch._inductor import config
    from transformers.modeling_layers import GradientCheckpointingLayer

    _require_cpp()
    layers = [part for model in models for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not layers:
        raise MethodError(f"resources.compile: {type(models[0]).__name__} has no layers that transformers repeats")
    compiler = Compiler()
    callback_handler.register_start_callback(compiler.began)
    config.compile_threads = 1  # No pool of processes, which could outlive a rank.
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        yield compiler
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
        callback_handler.remove_start_callback(compiler.began)


def _require_cpp() -> None:
    """What torch makes for a CPU is C++, and what it makes for a GPU is launched from C++."""
    name = os.environ.get("CXX") or "g++"
    if shutil.which(name) is None:
        raise MethodError(f"resources.compile needs a C++ compiler, and there is no {name!r}; install it or set CXX")
