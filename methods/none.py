"""No tuning: the base model's own scores, with which methods are compared."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from bench.method import Method, SearchSpace


class NoTuning(Method):
    """The untouched base model."""

    trains: ClassVar[bool] = False
    search_space: ClassVar[SearchSpace] = {}

    def patch(self, model: Any) -> nn.Module:
        module: nn.Module = model
        return module
