"""Has base models call their layers in training, where a kernel of transformers would read weights past them."""

from __future__ import annotations

import inspect
import sys
from typing import Any

# Functions of transformers that compute a state-space layer with its projections in one kernel of mamba-ssm. Without
# that package they put out None, and the layer goes on by smaller functions and calls its projections.
FUSED_WITH_PROJECTIONS = ("mamba2_split_conv1d_scan_combined", "mamba_inner_fn")


def call_projections(model: Any) -> None:
    """Let state-space layers of a model call their projections in training, as they do in evaluation.

    A kernel that reads their weights makes nothing of modules in their places (adapters get no gradient), nor of packed
    weights. It also leaves out the mask behind the convolution. The smaller kernels of mamba-ssm are used as before.

    The functions are replaced in the modules of transformers, so for all models of a process.

    Args:
        model: A base model of transformers. Models with code of their own are left alone.
    """
    for name in {type(module).__module__ for module in model.modules()}:
        if name.startswith("transformers.models."):
            _replace_in(name)


def _replace_in(module_name: str) -> None:
    module = sys.modules[module_name]
    for name in FUSED_WITH_PROJECTIONS:
        if (fused := getattr(module, name, None)) is not None:
            # Around the function without the package there is one that chooses, if transformers is as we know it.
            setattr(module, name, inspect.unwrap(fused))
