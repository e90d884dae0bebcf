"""Reading a base model so that each rank keeps its slices of the weights and never holds the model.

transformers reads files, renames and converts tensors and puts them into a model one after the other. What it puts
there is cut as it comes. Its own way for ZeRO 3 (``HfDeepSpeedConfig``) merges all files on rank 0 first.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.models.model_files import ModelError
from bench.shards.slices import in_shards, shard_of

# By which transformers is told to convert no tensor before its turn: otherwise threads run ahead.
ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"


@contextmanager
def keeping_slices(device: torch.device) -> Iterator[None]:
    """Inside the block ``from_pretrained`` puts parameters in shards into the models that it makes.

    ``transformers.core_model_loading.set_param_for_module`` is no public name; a test notices if it goes.

    Args:
        device: Where slices lie.
    """
    from transformers import core_model_loading

    put = core_model_loading.set_param_for_module
    mapped = MappedFiles()

    def put_slice(model: Any, name: str, value: torch.Tensor, *others: Any) -> None:
        module, _, attribute = name.rpartition(".")
        if attribute in model.get_submodule(module)._parameters and value.is_floating_point():
            whole, value = value, in_shards(value, device)
            mapped.forget(whole)
        put(model, name, value, *others)

    before = os.environ.get(ONE_BY_ONE)
    os.environ[ONE_BY_ONE] = "1"
    core_model_loading.set_param_for_module = put_slice
    try:
        yield
    finally:
        core_model_loading.set_param_for_module = put
        del os.environ[ONE_BY_ONE]
        if before is not None:
            os.environ[ONE_BY_ONE] = before


class MappedFiles:
    """The files that this process has mapped into its memory when it asks for the first time.

    What was read of them stays in its memory until they are unmapped, after the last tensor: as much again as the
    slices. Linux lets go of it before. Elsewhere nothing happens.
    """

    @functools.cached_property
    def _ranges(self) -> list[tuple[int, int]]:
        maps = Path("/proc/self/maps")
        lines = maps.read_text().splitlines() if maps.is_file() else []
        mappings = (line.split() for line in lines)  # place, rights, offset, device, inode and name of the file
        places = (mapping[0].split("-") for mapping in mappings if mapping[4] != "0")
        return [(int(start, 16), int(end, 16)) for start, end in places]

    def forget(self, tensor: torch.Tensor) -> None:
        """Let go of the pages of a tensor that lies in a file and will not be read again, nor was ever changed."""
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
        if any(first <= start and end <= last for first, last in self._ranges):
            start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
            if start < end:
                libc = ctypes.CDLL(None)
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def require_all_in_shards(model: nn.Module, missing: Sequence[str], path: str) -> None:
    """See that every weight came from the files.

    transformers draws at random what files lack, each rank for itself, and a model of slices of different models would
    be none of them.

    Raises:
        ModelError: Naming a weight that did not come.
    """
    whole = [
        name
        for name, parameter in model.named_parameters()
        if shard_of(parameter) is None and parameter.is_floating_point()
    ]
    if lacking := sorted({*missing, *whole}):
        raise ModelError(
            f"model.path: the files of {path!r} lack {len(lacking)} weights, among them {lacking[0]!r}, which "
            "resources.zero_stage: 3 cannot draw at random; save the model with all of its weights"
        )
