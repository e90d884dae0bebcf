"""What ZeRO 3 needs besides its engine: shards handed over, layers measured, weights gathered once more, memory freed.

The names of DeepSpeed that are used here are no public ones; tests/rank/test_in_shards.py notices if they go.
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bench.schema.trial import JsonDict
from bench.shards.slices import Shard, sharded, stop_gathering

Packed = torch.Tensor | Callable[[], torch.Tensor]
# From this many bytes on glibc maps a block by itself, and unmaps it once it is freed. (M_MMAP_THRESHOLD and
# M_TRIM_THRESHOLD of malloc.h.) Otherwise a rank keeps every layer that it has gathered and let go.
MAPPED_BYTES, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = 2**18, -3, -1


def give_freed_memory_back() -> None:
    """Have glibc return to the system what is freed from now on, in this process. Elsewhere nothing happens."""
    if (set_option := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        set_option(M_MMAP_THRESHOLD, MAPPED_BYTES)
        set_option(M_TRIM_THRESHOLD, MAPPED_BYTES)


def largest_layer(model: nn.Module) -> int:
    """Elements of the largest of what is gathered at one time: a layer of a list of layers, or a weight outside."""
    layers = [member for module in model.modules() if isinstance(module, nn.ModuleList) for member in module]
    of_layers = (sum(_numel(parameter) for parameter in layer.parameters()) for layer in layers)
    return max([*of_layers, *map(_numel, model.parameters())])


def _numel(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def hand_over_shards(model: nn.Module, config: JsonDict, device: torch.device) -> None:
    """Make parameters that lie in shards DeepSpeed's, as if it had cut them itself. No weight is gathered.

    Args:
        model: Patched, on its device; modules gather by themselves no longer.
        config: DeepSpeed's, for which it will make an engine.
        device: Where shards lie.
    """
    stop_gathering(model)
    held = sharded(model.parameters())
    if not held:
        return
    import deepspeed
    from deepspeed.runtime.zero.partition_parameters import PartitionedParamStatus, ZeroParamStatus

    deepspeed.init_distributed()  # takes over the process group that is there
    cutter = deepspeed.zero.Init(config_dict_or_path=config)
    for parameter in held:
        shard: Shard = parameter.shard
        del parameter.shard
        cutter._convert_to_deepspeed_param(parameter)
        own: Any = shard.own.to(
            str(getattr(cutter.remote_device, "value", cutter.remote_device))
        )  # offloaded: the host
        own.ds_numel, own.status, own.final_location = len(own), PartitionedParamStatus.AVAILABLE, None
        parameter.ds_tensor = own
        parameter.ds_numel_aligned = shard.ranks * len(own)
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=device)
        parameter.ds_status = ZeroParamStatus.NOT_AVAILABLE


class Regathering(nn.Module):
    """A loss of a model whose weights ZeRO 3 gathers, which keeps none of them for its backward pass.

    Autograd would keep what a layer has multiplied with, and so the whole model, until it is needed again. By then the
    engine has gathered it once more. DeepSpeed's own remedy replaces ``torch.nn.functional.linear`` in the process, and
    leaves all other operations (those of GPT-2, of experts) as they are.

    Args:
        loss: With its engine's hooks yet to come; :meth:`watch` is to be called once they are there.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self._gathered: dict[int, Any] = {}

    def watch(self) -> None:
        """Learn from now on which parameter lies where, once the engine has gathered it for a module."""
        for module in self.loss.modules():
            if any(True for _ in module.parameters(recurse=False)):
                module.register_forward_pre_hook(self._note)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.loss(*args, **kwargs)
        with torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack):
            output = self.loss(*args, **kwargs)
        self._gathered.clear()
        return output

    def _note(self, module: nn.Module, _: Any) -> None:
        for each in module.parameters(recurse=False):
            parameter: Any = each
            storage = parameter.untyped_storage()
            # Alone in its storage, but for what fills it up to a multiple of the ranks.
            if 0 < storage.nbytes() <= parameter.ds_numel_aligned * parameter.element_size():
                self._gathered[storage.data_ptr()] = parameter

    def _pack(self, tensor: torch.Tensor) -> Packed:
        parameter = self._gathered.get(tensor.untyped_storage().data_ptr())
        if parameter is None or parameter.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():
            return tensor
        size, stride, offset = tensor.size(), tensor.stride(), tensor.storage_offset() - parameter.storage_offset()

        def again() -> torch.Tensor:
            whole = _whole_again(parameter)
            return whole.as_strided(size, stride, offset + whole.storage_offset())

        return again


def _unpack(packed: Packed) -> torch.Tensor:
    return packed if isinstance(packed, torch.Tensor) else packed()


def _whole_again(parameter: Any) -> torch.Tensor:
    """Whole, for a backward pass: as its engine has gathered it, or gathered here where it has let it go already."""
    if parameter.numel():
        data: torch.Tensor = parameter.data
        return data
    parameter.all_gather()
    data = parameter.data
    parameter.partition()
    return data


def free(engine: Any) -> None:
    """Give back what an engine holds; ``destroy`` alone returns next to nothing.

    Two things of DeepSpeed outlive it: a cache of a method, for the whole class, and a list of all models.
    """
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    engine.destroy()
    to_release: Any = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    inspect.getclosurevars(to_release).nonlocals["func"].cache_clear()
    FWD_MODULE_STACK.clear()
