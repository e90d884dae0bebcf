"""Compiles the layers of a model while it trains."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from bench.method import MethodError


class Compiler:
    """Knows in which steps of a training something was compiled."""

    def __init__(self) -> None:
        self._has_compiled = False

    def began(self, *_: Any) -> None:
        """A compilation has begun."""
        self._has_compiled = True

    def worked(self) -> bool:
        """Whether anything was compiled since the last call."""
        worked, self._has_compiled = self._has_compiled, False
        return worked


@contextmanager
def compiled_layers(models: Sequence[nn.Module]) -> Iterator[Compiler]:
    """Compile the repeated layers of patched models with ``torch.compile``, as long as the block lasts.

    Layers with equal code share the compiled code, which works for any number of rows and tokens. torch compiles again
    when a layer is called in a new way, say without gradients, or without a mask because no pair needs padding.

    Args:
        models: Patched models.

    Raises:
        MethodError: There is no C++ compiler, or no layer.
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
    """Require a C++ compiler: torch compiles to C++ for a CPU, and starts kernels of a GPU from C++."""
    name = os.environ.get("CXX") or "g++"
    if shutil.which(name) is None:
        raise MethodError(f"resources.compile needs a C++ compiler, and there is no {name!r}; install it or set CXX")
