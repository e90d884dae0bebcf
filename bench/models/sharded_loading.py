"""Reads a base model so that each rank keeps its slices of the weights and never holds the whole model.

transformers reads files, renames and converts tensors, and puts them into a model one after the other. Each tensor is
cut when it is put there. transformers' own way for ZeRO 3 (``HfDeepSpeedConfig``) first merges all files on rank 0.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bench.models.model_files import ModelError
from bench.shards.slices import in_shards, shard_of

# The variable that makes transformers convert one tensor at a time. Otherwise threads convert many in advance.
ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"


@contextmanager
def keeping_slices(device: torch.device) -> Iterator[None]:
    """Inside the block ``from_pretrained`` makes models whose parameters are in shards.

    ``transformers.core_model_loading.set_param_for_module`` is no public name. A test notices if it disappears.

    Tied weights of which the files have two copies are tied if all slices of both are equal. transformers compares the
    weights themselves, whose stand-ins are never equal.

    Args:
        device: The device of the slices.
    """
    from transformers import PreTrainedModel, core_model_loading

    put, tie_weights = core_model_loading.set_param_for_module, PreTrainedModel.tie_weights
    mapped = MappedFiles()

    def put_slice(model: Any, name: str, value: torch.Tensor, *others: Any) -> None:
        module, _, attribute = name.rpartition(".")
        if attribute in model.get_submodule(module)._parameters and value.is_floating_point():
            whole, value = value, in_shards(value, device)
            mapped.forget(whole)
        put(model, name, value, *others)

    def tie(model: Any, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        if missing_keys is not None:  # Of an equal copy it is as if the files lacked it.
            missing_keys.update(list(_second_copies(model, missing_keys)))
        tie_weights(model, missing_keys, recompute_mapping)

    before = os.environ.get(ONE_BY_ONE)
    os.environ[ONE_BY_ONE] = "1"
    core_model_loading.set_param_for_module, PreTrainedModel.tie_weights = put_slice, tie
    try:
        yield
    finally:
        core_model_loading.set_param_for_module, PreTrainedModel.tie_weights = put, tie_weights
        del os.environ[ONE_BY_ONE]
        if before is not None:
            os.environ[ONE_BY_ONE] = before


def _second_copies(model: Any, missing: Collection[str]) -> Iterator[str]:
    """Names of tied weights that the files have beside an equal one that they are tied to. A collective operation."""
    first_copies: dict[str, str] = {}
    for target, source in model.all_tied_weights_keys.items():
        for name in (source, target):
            if name in missing:
                continue
            first = first_copies.setdefault(source, name)
            if name != first and _equal_slices(model.get_parameter(first), model.get_parameter(name)):
                yield name


def _equal_slices(one: nn.Parameter, other: nn.Parameter) -> bool:
    """Whether the slices of two parameters are equal on all ranks."""
    shard, other_shard = shard_of(one), shard_of(other)
    if shard is None or other_shard is None or shard.shape != other_shard.shape:
        return False
    equal = torch.tensor([torch.equal(shard.own, other_shard.own)], device=shard.own.device).int()
    dist.all_reduce(equal, op=dist.ReduceOp.MIN)
    return bool(equal)


class MappedFiles:
    """The files that this process has mapped into its memory at the first call.

    The parts that were read stay in memory until the files are unmapped after the last tensor, which takes as much
    memory as the slices. Linux can release them earlier. On other systems nothing happens.
    """

    @functools.cached_property
    def _ranges(self) -> list[tuple[int, int]]:
        maps = Path("/proc/self/maps")
        lines = maps.read_text().splitlines() if maps.is_file() else []
        mappings = (line.split() for line in lines)  # place, rights, offset, device, inode and name of the file
        places = (mapping[0].split("-") for mapping in mappings if mapping[4] != "0")
        return [(int(start, 16), int(end, 16)) for start, end in places]

    def forget(self, tensor: torch.Tensor) -> None:
        """Release the memory of a tensor in a mapped file that was not changed and will not be read again."""
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
        if any(first <= start and end <= last for first, last in self._ranges):
            start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
            if start < end:
                libc = ctypes.CDLL(None)
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def require_all_in_shards(model: nn.Module, path: str) -> None:
    """Check that every weight was cut as it was read.

    Raises:
        ModelError: This rank has a weight as a whole. The message names it.
    """
    whole = [
        name
        for name, parameter in model.named_parameters()
        if shard_of(parameter) is None and parameter.is_floating_point()
    ]
    if whole:
        raise ModelError(
            f"model.path: {len(whole)} weights of {path!r}, among them {whole[0]!r}, are not read from its files one "
            "by one, as resources.zero_stage: 3 needs; set a stage below 3"
        )
