"""Lanes: trials that train in one pass over a frozen model, each on rows and with parameters of its own.

All rows of a batch go through the model of the first lane. Where that model has a module with trained parameters, the
modules of the other lanes at the same place lend theirs to the rows of their lanes.

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
    """Whose rows a forward pass has: as many for each active lane, lane by lane.

    While none is active, each model computes with its own parameters, as if there were no others.
    """

    active: tuple[int, ...] = ()

    @contextmanager
    def sharing(self, active: Sequence[int]) -> Iterator[None]:
        """Rows are of these lanes within the block, which holds a forward pass and the backward pass through it."""
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
    """Tell the modules of these classes in the first of several equally patched models about those of the others."""
    for name, module in models[0].named_modules():
        if isinstance(module, kinds):
            joined = LaneModules(tuple(model.get_submodule(name) for model in models), lanes)
            # Within a tuple the others are no parts of this module.
            object.__setattr__(module, "lane_modules", joined)


def lane_modules(module: Any) -> Sequence[Any]:
    """The modules of the active lanes at the place of ``module``; ``module`` itself where there are no lanes."""
    joined: LaneModules | None = vars(module).get("lane_modules")
    if joined is None or not joined.lanes.active:
        return (module,)
    return [joined.modules[lane] for lane in joined.lanes.active]


def of_lanes(module: Any, part: Callable[[Any], torch.Tensor]) -> torch.Tensor:
    """``(K, ...)``: what ``part`` is of the module of each active lane; ``(1, ...)`` where there are no lanes."""
    parts = [part(one) for one in lane_modules(module)]
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def for_rows(of_each_lane: torch.Tensor, rows: int) -> torch.Tensor:
    """``(B, ...)``: each lane's part of ``(K, ...)`` for each of its rows. Not copied where K is 1."""
    count = len(of_each_lane)
    return of_each_lane[:, None].expand(count, rows // count, *of_each_lane.shape[1:]).flatten(0, 1)
