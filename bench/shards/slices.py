"""Frozen weights of which each rank holds a slice: what stands in their place, and how they become whole for a while.

A model whose weights lie in shards can be called. A layer's weights are whole while it computes, those of a block while
that does, and memory holds no more than this beside the shards. Every rank has to call the same modules in the same
order, since each call gathers.

N elements of a parameter, R ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class Shard:
    """This rank's slice of a parameter, which is flattened, padded to a multiple of R and cut into R parts.

    The parameter itself shows its shape, dtype and device; its values are not there (they read as not a number) but
    within :func:`whole` and in the forward of the module that it belongs to.

    Args:
        values: The whole parameter, of which this rank's slice is read and nothing else.
        device: Where the slice lies and is gathered.
    """

    def __init__(self, values: torch.Tensor, device: torch.device) -> None:
        self.shape = values.shape
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.own = torch.zeros(-(-values.numel() // self.ranks), dtype=values.dtype, device=device)
        self.keep(values)
        self._users = 0
        self._outside: Any = None

    def keep(self, values: torch.Tensor) -> None:
        """Take this rank's slice of the whole."""
        mine = values.detach().reshape(-1)[self.rank * len(self.own) :][: len(self.own)]
        self.own[: len(mine)] = mine

    def whole(self) -> torch.Tensor:
        """The parameter. A collective operation."""
        if self.ranks == 1:
            flat = self.own
        else:
            flat = self.own.new_empty(self.ranks * len(self.own))
            dist.all_gather_into_tensor(flat, self.own)
        return flat[: self.shape.numel()].view(self.shape)

    def enter(self, parameter: nn.Parameter) -> None:
        """Make the parameter whole, until it was left as often as it was entered."""
        self._users += 1
        if self._users == 1:
            # Decoding runs in inference mode, whose tensors could not be a parameter's.
            with torch.inference_mode(False), torch.no_grad():
                self._outside = parameter.data
                parameter.data = self.whole().to(parameter.device)

    def leave(self, parameter: nn.Parameter, changed: bool) -> None:
        """Undo :meth:`enter`; ``changed`` says that this rank's slice is to be taken anew."""
        self._users -= 1
        with torch.inference_mode(False), torch.no_grad():
            if changed:
                self.keep(parameter)
            if not self._users:
                parameter.data, self._outside = self._outside, None


def shard_of(parameter: Any) -> Shard | None:
    """The shard of a parameter; None of one that is whole."""
    found: Shard | None = getattr(parameter, "shard", None)
    return found


def sharded(parameters: Iterable[Any]) -> list[Any]:
    """Those of some parameters that lie in shards, each once."""
    return list({id(parameter): parameter for parameter in parameters if shard_of(parameter) is not None}.values())


def in_shards(values: torch.Tensor, device: torch.device) -> nn.Parameter:
    """A frozen parameter that lies in shards. It looks like ``values`` and holds none of them."""
    parameter = nn.Parameter(_stand_in(values.shape, values.dtype, torch.device("cpu")), requires_grad=False)
    parameter.shard = Shard(values, device)  # type: ignore[attr-defined]
    return parameter


@contextmanager
def whole(parameters: Iterable[Any], changed: bool = False) -> Iterator[None]:
    """Whole parameters inside the block, also where they lie in shards. A collective operation there.

    Args:
        parameters: All that are read; those that are whole anyway are left alone.
        changed: What the block changes in them stays. All ranks have to change them alike.
    """
    held = sharded(parameters)
    for parameter in held:
        parameter.shard.enter(parameter)
    try:
        yield
    finally:
        for parameter in held:
            parameter.shard.leave(parameter, changed)


def gather_in_forward(model: nn.Module) -> None:
    """Let the modules of a model with shards gather what they compute with, for the time of their forward.

    A module that holds no blocks, and a block itself, may read every weight within it, in whatever way it does; what
    holds blocks (a decoder) reads its own. To be called again once a method has put modules of its own into the model.
    """
    stop_gathering(model)
    _gather(model, within_block=False)


def _gather(module: nn.Module, within_block: bool) -> bool:
    """Returns whether there are blocks in the module: the members of lists of modules, and not what lies in these."""
    are_blocks = isinstance(module, nn.ModuleList)
    found = [_gather(child, within_block or are_blocks) for child in module.children()]
    has_blocks = not within_block and (any(found) or (are_blocks and bool(found)))
    if sharded(module.parameters(recurse=not has_blocks)):
        hooks = (
            module.register_forward_pre_hook(partial(_enter, not has_blocks)),
            module.register_forward_hook(partial(_leave, not has_blocks), always_call=True),
        )
        module.gathering = hooks  # type: ignore[assignment]
    return has_blocks


def stop_gathering(model: nn.Module) -> None:
    """Undo :func:`gather_in_forward`."""
    for module in model.modules():
        for hook in vars(module).pop("gathering", ()):
            hook.remove()


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """Bring a model to a device; of what lies in shards, what stands for it. The shards are there already."""
    held = sharded(model.parameters())
    if not held:
        return model.to(device)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    for parameter in model.parameters():
        if (shard := shard_of(parameter)) is None:
            parameter.data = parameter.data.to(device)
        else:
            parameter.data = _stand_in(shard.shape, parameter.dtype, device)
    return model


def misread(model: nn.Module) -> str | None:
    """The first tensor of a patched model that was made of weights which were not there; None if all is well."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if shard_of(tensor) is None and bool(torch.isnan(tensor).any()):
            return name
        if shard_of(tensor) is not None and any(tensor.stride()):
            return name  # given other values, of which the shards do not know
    return None


def _stand_in(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of this shape in the memory of one element, which is not a number."""
    return torch.full((), float("nan"), dtype=dtype, device=device).expand(shape)


def _enter(recurse: bool, module: nn.Module, _: Any) -> None:
    for parameter in sharded(module.parameters(recurse)):
        parameter.shard.enter(parameter)


def _leave(recurse: bool, module: nn.Module, *_: Any) -> None:
    for parameter in sharded(module.parameters(recurse)):
        parameter.shard.leave(parameter, changed=False)
