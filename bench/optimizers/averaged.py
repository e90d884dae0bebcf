"""Optimisers that evaluate an average of the weights that they train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from bench.optimizers.elementwise import adam_arguments
from bench.optimizers.optimizer import ADAM_SETTINGS, OWN_SETTINGS, Optimizer, OptimizerError, trained


class ScheduleFree(Optimizer):
    """Schedule-free AdamW: gradients at one point, scores at an average of steps, and no end to plan for.

    Source: Defazio et al. 2024, algorithm 1, by the authors' package. Dev losses, stored states and scores are those of
    the average x, gradients those of y. The warm-up is that of the sweep, which weighs steps by the square of the
    learning rate that they had, as the package does with its own.

    Deviations: none. ``train.schedule`` has to be ``constant``.
    """

    paper: ClassVar[str] = "Defazio et al. 2024, arXiv:2405.15682"
    package: ClassVar[str | None] = "schedulefree"
    extra: ClassVar[str | None] = "optimizers"
    scores_other_weights: ClassVar[bool] = True
    scales_rate: ClassVar[bool] = False
    own_settings: ClassVar[Mapping[str, str]] = {
        **OWN_SETTINGS,
        **ADAM_SETTINGS,
        "warmup_steps": "train.warmup_steps or train.warmup_fraction",
    }

    @classmethod
    def torch_class(cls) -> type[torch.optim.Optimizer]:
        from schedulefree import AdamWScheduleFree

        return AdamWScheduleFree  # type: ignore[no-any-return]

    def arguments(self) -> dict[str, Any]:
        return {**adam_arguments(self), **super().arguments()}

    def check(self) -> None:
        if not self.train.adam_beta1:
            raise OptimizerError("divides by adam_beta1 when it goes over to the average; set it above 0 (it is 0)")
        super().check()

    def make(self, groups: Sequence[dict[str, Any]], model: nn.Module) -> torch.optim.Optimizer:
        optimizer = super().make(groups, model)
        optimizer.train()  # type: ignore[attr-defined]
        return optimizer

    def state_bytes(self, model: nn.Module) -> float:
        return 8.0 * sum(parameter.numel() for parameter in trained(model))  # z and the squares
