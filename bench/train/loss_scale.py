"""The scale of fp16 losses, without which small gradients would become zero. Steps that overflow are skipped.

Under ZeRO 1 to 3 DeepSpeed scales. Without ZeRO its optimiser for fp16 would add up micro-batches and ranks in fp16, so
that :class:`LossScale` stands where its engine has a place for torch's ``GradScaler``. It moves the scale as DeepSpeed
does everywhere else.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.schema.trial import JsonDict

# Halved at each overflow, doubled after so many steps without one: as Micikevicius et al. 2018 (section 3.2), with the
# first scale and the window of DeepSpeed.
FIRST_POWER, WINDOW, LOWEST = 16, 1000, 1
_KEPT = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def fp16_config(in_fp16: bool) -> JsonDict:
    """DeepSpeed's configuration of its own loss scaling."""
    return {
        "enabled": in_fp16,
        "loss_scale": 0,
        "initial_scale_power": FIRST_POWER,
        "loss_scale_window": WINDOW,
        "hysteresis": 1,
        "min_loss_scale": LOWEST,
    }


class LossScale:
    """Scales losses and skips steps, in place of torch's ``GradScaler`` in DeepSpeed's engine.

    The engine counts a step as skipped, and leaves the schedule where it is, if its optimiser says ``overflow``.

    Args:
        optimizer: Over fp32 masters, whose gradients are those of all ranks when it steps.
    """

    def __init__(self, optimizer: Any) -> None:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

        self._optimizer = optimizer
        optimizer.overflow = False
        self._scaler: Any = DynamicLossScaler(
            2.0**FIRST_POWER, WINDOW, LOWEST, 1, False, raise_error_at_min_scale=False
        )

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """A loss as its gradient is taken."""
        scaled: torch.Tensor = self._scaler.scale_loss(loss)
        return scaled

    @torch.no_grad()
    def step(self, optimizer: Any) -> None:
        """Step on gradients without the scale, or not at all where one is not finite."""
        groups = optimizer.param_groups
        gradients = [each.grad for group in groups for each in group["params"] if each.grad is not None]
        optimizer.overflow = not all(bool(gradient.isfinite().all()) for gradient in gradients)
        if not optimizer.overflow:
            for gradient in gradients:
                gradient.mul_(1 / self._scaler.loss_scale)
            optimizer.step()

    def update(self) -> None:
        """Move the scale after a step."""
        self._scaler.update_scale(self._optimizer.overflow)

    @property
    def loss_scale(self) -> float:
        """Of the next pass."""
        return float(self._scaler.loss_scale)

    def state_dict(self) -> JsonDict:
        """What a checkpoint keeps."""
        return {name: getattr(self._scaler, name) for name in _KEPT}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take up what a checkpoint has kept."""
        for name in _KEPT:
            setattr(self._scaler, name, state[name])


def own_scale(engine: Any) -> LossScale | None:
    """The scale of an engine that does not scale itself; None where it does, or there is none."""
    found = getattr(engine, "torch_autocast_z0_gradscaler", None)
    return found if isinstance(found, LossScale) else None


def is_exhausted(engine: Any) -> bool:
    """Whether gradients have overflowed until no scale is left."""
    return float((own_scale(engine) or engine.optimizer).loss_scale) <= LOWEST
