"""Frozen weights of which each rank holds a slice. A stand-in replaces each weight, and a call gathers it for a while.

A model whose weights lie in shards can be called. The weights of a layer, or of a block, are gathered while it
computes, so that memory holds the shards and the weights of one block. Every rank has to call the same modules in the
same order, because each call is a collective operation.

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

    The parameter itself has its shape, dtype and device, and reads as not a number. Its values are there only inside
    :func:`whole` and in the forward of the module that it belongs to.

    Args:
        values: The whole parameter. Only this rank's slice is read.
        device: The device of the slice, and of the gathered parameter.
    """

    def __init__(self, values: torch.Tensor, device: torch.device) -> None:
        self.shape = values.shape
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.own = torch.zeros(-(-values.numel() // self.ranks), dtype=values.dtype, device=device)
        self.keep(values)
        self._users = 0
        self._outside: Any = None

    def keep(self, values: torch.Tensor) -> None:
        """Copy this rank's slice of the whole parameter."""
        mine = values.detach().reshape(-1)[self.rank * len(self.own) :][: len(self.own)]
        self.own[: len(mine)] = mine

    def whole(self) -> torch.Tensor:
        """Gather the whole parameter. A collective operation."""
        if self.ranks == 1:
            flat = self.own
        else:
            flat = self.own.new_empty(self.ranks * len(self.own))
            dist.all_gather_into_tensor(flat, self.own)
        return flat[: self.shape.numel()].view(self.shape)

    def enter(self, parameter: nn.Parameter) -> None:
        """Gather the parameter's values, until :meth:`leave` was called as often as this."""
        self._users += 1
        if self._users == 1:
            # Decoding runs in inference mode, whose tensors could not be a parameter's.
            with torch.inference_mode(False), torch.no_grad():
                self._outside = parameter.data
                parameter.data = self.whole().to(parameter.device)

    def leave(self, parameter: nn.Parameter, changed: bool) -> None:
        """Undo :meth:`enter`; with ``changed`` this rank's slice is copied from the values first."""
        self._users -= 1
        with torch.inference_mode(False), torch.no_grad():
            if changed:
                self.keep(parameter)
            if not self._users:
                parameter.data, self._outside = self._outside, None


def shard_of(parameter: Any) -> Shard | None:
    """The shard of a parameter; None if the parameter is whole."""
    shard: Shard | None = getattr(parameter, "shard", None)
    return shard


def sharded(parameters: Iterable[Any]) -> list[Any]:
    """The parameters among these that lie in shards, each once."""
    return list({id(parameter): parameter for parameter in parameters if shard_of(parameter) is not None}.values())


def in_shards(values: torch.Tensor, device: torch.device) -> nn.Parameter:
    """A frozen parameter in shards, with shape and dtype of ``values``."""
    parameter = nn.Parameter(_stand_in(values.shape, values.dtype, torch.device("cpu")), requires_grad=False)
    parameter.shard = Shard(values, device)  # type: ignore[attr-defined]
    return parameter


@contextmanager
def whole(parameters: Iterable[Any], changed: bool = False) -> Iterator[None]:
    """Inside the block these parameters are whole. A collective operation if some lie in shards.

    Args:
        parameters: The parameters that the block reads; those that are not in shards may be among them.
        changed: Whether changes that the block makes are kept. All ranks have to make the same ones.
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
    """Make modules of a model with shards gather their weights during their forward.

    A block, and a module without blocks, gathers all weights inside it, so that it may read them in any way. A module
    that holds blocks (a decoder) gathers only its own. Call this again after a method has put modules into the model.
    """
    stop_gathering(model)
    _gather(model, within_block=False)


def _gather(module: nn.Module, within_block: bool) -> bool:
    """Returns whether the module has blocks: the members of its outermost lists of modules."""
    are_blocks = isinstance(module, nn.ModuleList)
    children_have_blocks = [_gather(child, within_block or are_blocks) for child in module.children()]
    has_blocks = not within_block and (any(children_have_blocks) or (are_blocks and bool(children_have_blocks)))
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
    """Move a model to a device. Parameters in shards get new stand-ins there; their slices are there already."""
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
    """The name of a tensor of a patched model that was made from a stand-in; None if there is none."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if shard_of(tensor) is None and bool(torch.isnan(tensor).any()):
            return name
        if shard_of(tensor) is not None and any(tensor.stride()):
            return name  # it has got other values, which its shard does not have
    return None


def _stand_in(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of this shape that is not a number everywhere and takes the memory of one element."""
    return torch.full((), float("nan"), dtype=dtype, device=device).expand(shape)


def _enter(recurse: bool, module: nn.Module, _: Any) -> None:
    for parameter in sharded(module.parameters(recurse)):
        parameter.shard.enter(parameter)


def _leave(recurse: bool, module: nn.Module, *_: Any) -> None:
    for parameter in sharded(module.parameters(recurse)):
        parameter.shard.leave(parameter, changed=False)
