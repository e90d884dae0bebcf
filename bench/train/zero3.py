"""Prepares a model for ZeRO 3: passes shards to DeepSpeed, measures layers, gathers weights again, frees memory.

The names of DeepSpeed in this module are not public. tests/rank/test_in_shards.py notices if they disappear.
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
# glibc maps each block of at least so many bytes separately, and unmaps it when it is freed (M_MMAP_THRESHOLD and
# M_TRIM_THRESHOLD of malloc.h). Otherwise a rank would keep the memory of every layer that it has gathered.
MAPPED_BYTES, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = 2**18, -3, -1


def give_freed_memory_back() -> None:
    """Make glibc return freed memory of this process to the system from now on. Other C libraries are left alone."""
    if (set_option := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        set_option(M_MMAP_THRESHOLD, MAPPED_BYTES)
        set_option(M_TRIM_THRESHOLD, MAPPED_BYTES)


def largest_layer(model: nn.Module) -> int:
    """The largest number of elements that is gathered at a time: of a layer in a list of layers, or another weight."""
    layers = [member for module in model.modules() if isinstance(module, nn.ModuleList) for member in module]
    of_layers = (sum(_numel(parameter) for parameter in layer.parameters()) for layer in layers)
    return max([*of_layers, *map(_numel, model.parameters())])


def _numel(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def hand_over_shards(model: nn.Module, config: JsonDict, device: torch.device) -> None:
    """Pass parameters in shards to DeepSpeed, as if it had cut them itself. No weight is gathered.

    Args:
        model: The patched model, on its device. Its modules do not gather weights themselves any more.
        config: DeepSpeed's configuration of the engine.
        device: The device of the shards.
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
    """A loss of a model whose weights ZeRO 3 gathers. It keeps none of them for the backward pass.

    Autograd would keep every gathered weight, and thereby the whole model, until the backward pass needs it. By then
    the engine has gathered it again. DeepSpeed's own remedy (``memory_efficient_linear``, which is off here) replaces
    ``torch.nn.functional.linear`` in the process, and does not cover other operations (those of GPT-2, of experts).

    Args:
        loss: The loss, before the engine has registered its hooks. Call :meth:`watch` after it has.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self._gathered: dict[int, Any] = {}

    def watch(self) -> None:
        """From now on record the place in memory of each parameter that the engine gathers for a module."""
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
            # The parameter is alone in its storage, except for padding to a multiple of the ranks.
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
    """The whole parameter for a backward pass: gathered by its engine, or here if the engine has released it."""
    if parameter.numel():
        data: torch.Tensor = parameter.data
        return data
    parameter.all_gather()
    data = parameter.data
    parameter.partition()
    return data


def free(engine: Any) -> None:
    """Free the memory of an engine, of which ``destroy`` alone frees hardly any.

    Two objects of DeepSpeed keep it alive: the cache of a method, for the whole class, and a list of all models.
    """
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    engine.destroy()
    to_release: Any = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    inspect.getclosurevars(to_release).nonlocals["func"].cache_clear()
    FWD_MODULE_STACK.clear()
