"""Full fine-tuning: every weight of the base model is trained."""

from __future__ import annotations

from typing import Any

from torch import nn

from bench.method import Method


class FullFineTuning(Method):
    """Every weight of the base model is trained."""

    def patch(self, model: Any) -> nn.Module:
        module: nn.Module = model
        return module.requires_grad_(True)
