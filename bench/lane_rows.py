"""Lanes: trials that train in one pass over a frozen model. Each has its own rows and parameters.

All rows of a batch go through the model of the first lane. A module of that model with trained parameters applies to
the rows of each other lane the parameters of that lane's module at the same place.

K active lanes, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class Lanes:
    """The lanes whose rows are in a forward pass: equally many rows for each active lane, lane by lane.

    While no lane is active, each model computes with its own parameters only.
    """

    active: tuple[int, ...] = ()

    @contextmanager
    def sharing(self, active: Sequence[int]) -> Iterator[None]:
        """Inside the block rows belong to these lanes. It has to contain a forward pass and its backward pass."""
        self.active = tuple(active)
        try:
            yield
        finally:
            self.active = ()


@dataclass(frozen=True)
class LaneModules:
    """The modules of all lanes at one place of the model."""

    modules: tuple[Any, ...]
    lanes: Lanes


def join_lanes(models: Sequence[nn.Module], lanes: Lanes, *kinds: type[nn.Module]) -> None:
    """Give modules of these classes in the first of several equally patched models those of the other models."""
    for name, module in models[0].named_modules():
        if isinstance(module, kinds):
            joined = LaneModules(tuple(model.get_submodule(name) for model in models), lanes)
            # In a tuple the modules of other models are not submodules of this one.
            object.__setattr__(module, "lane_modules", joined)


def lane_modules(module: Any) -> Sequence[Any]:
    """The modules of the active lanes at the place of ``module``; ``module`` itself where there are no lanes."""
    joined: LaneModules | None = vars(module).get("lane_modules")
    if joined is None or not joined.lanes.active:
        return (module,)
    return [joined.modules[lane] for lane in joined.lanes.active]


def of_lanes(module: Any, part: Callable[[Any], torch.Tensor]) -> torch.Tensor:
    """``(K, ...)``: the result of ``part`` for the module of each active lane; ``(1, ...)`` without lanes."""
    parts = [part(one) for one in lane_modules(module)]
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def for_rows(of_each_lane: torch.Tensor, rows: int) -> torch.Tensor:
    """Repeat each lane's part of ``(K, ...)`` for each of its rows: ``(B, ...)``. Nothing is copied if K is 1."""
    count = len(of_each_lane)
    return of_each_lane[:, None].expand(count, rows // count, *of_each_lane.shape[1:]).flatten(0, 1)
