"""Reading a base model so that each rank keeps its slices of the weights and never holds the model.

transformers reads files, renames and converts tensors and puts them into a model one after the other. What it puts
there is cut as it comes. Its own way for ZeRO 3 (``HfDeepSpeedConfig``) merges all files on rank 0 first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bench.models.model_files import ModelError
from bench.shards import in_shards, shard_of

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

    def put_slice(model: Any, name: str, value: torch.Tensor, *others: Any) -> None:
        module, _, attribute = name.rpartition(".")
        is_parameter = attribute in model.get_submodule(module)._parameters
        cut = is_parameter and value.is_floating_point()
        put(model, name, in_shards(value, device) if cut else value, *others)

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
