"""Weights of a base model as they were before they were quantised in loading, read from its files one by one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.models.model_files import ModelError, weights_files
from bench.quantized.linear import QuantizedLinear, quantized_layers

# Four bits lose about a tenth of a weight. What is farther off is another weight.
MOST_LOST = 0.5


def remember_originals(model: Any, folder: Callable[[], Path], empty: Callable[[], Any]) -> None:
    """Let each quantised layer of a model read the weight that it had in the model's files. Reads nothing yet.

    Args:
        model: Quantised in loading.
        folder: Where its files are.
        empty: The model without weights, not quantised.
    """
    files = OriginalWeights(folder, empty)
    for name, layer in quantized_layers(model):
        layer.original = functools.partial(files.read, name, layer)


class OriginalWeights:
    """The safetensors files of a model.

    Args:
        folder: Where they are.
        empty: The model without weights, whose layers say how weights lie in the files.
    """

    def __init__(self, folder: Callable[[], Path], empty: Callable[[], Any]) -> None:
        self._folder, self._make_empty = folder, empty

    def read(self, layer: str, quantized: QuantizedLinear) -> torch.Tensor:
        """The weight ``(O, I)`` of a linear layer.

        Args:
            layer: The name of the layer.
            quantized: What has become of it.

        Raises:
            ModelError: No file has a tensor of its name, or that tensor is not what was quantised.
        """
        import safetensors
        from transformers.pytorch_utils import Conv1D

        prefix = f"{self._empty.base_model_prefix}."
        names = (f"{layer}.weight", f"{layer}.weight".removeprefix(prefix), f"{prefix}{layer}.weight")
        name = next((each for each in names if each in self._places), None)
        if name is None:
            raise ModelError(
                f"model.path: no file in {self._folder()} has a tensor {names[0]!r}, so that what quantising took away "
                "is not known; choose lora instead of loftq"
            )
        with safetensors.safe_open(self._places[name], framework="pt") as file:
            weight: torch.Tensor = file.get_tensor(name)
        weight = weight.T if isinstance(self._empty.get_submodule(layer), Conv1D) else weight
        known = quantized.dequantized(torch.float32).to(weight.device)
        whole = weight.float()
        if known.shape != whole.shape or not float((whole - known).norm()) <= MOST_LOST * float(whole.norm()):
            raise ModelError(
                f"model.path: {name!r} in {self._places[name]} is not the weight of {layer} that was quantised, so "
                "that what quantising took away is not known; choose lora instead of loftq"
            )
        return weight

    @functools.cached_property
    def _empty(self) -> Any:
        return self._make_empty()

    @functools.cached_property
    def _places(self) -> dict[str, Path]:
        """The file of each tensor."""
        import safetensors

        places: dict[str, Path] = {}
        for path in weights_files(self._folder()):
            with safetensors.safe_open(path, framework="pt") as file:
                places |= dict.fromkeys(file.keys(), path)
        return places
