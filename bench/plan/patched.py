"""What a method makes of a model, from the model's configuration alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from bench.decode.batched import unsupported
from bench.models import base
from bench.models.architecture import takes_source_lengths
from bench.models.coverage import patch_and_count
from bench.plugins.registry import make_method
from bench.schema.record import ParameterCounts
from bench.schema.trial import MethodSpec, ModelSpec


@dataclass(frozen=True)
class PatchedModel:
    """What is known of a patched model."""

    counts: ParameterCounts
    takes_source_lengths: bool  # it has to be told where the source of each row ends
    decoded_in_batches: bool  # `generate` of transformers decodes it, a batch after the other


def patched_without_weights(method: MethodSpec, model: ModelSpec, dtype: torch.dtype = torch.float32) -> PatchedModel:
    """What a method makes of a model, found once.

    Args:
        method: What is trained.
        model: What is patched.
        dtype: Of the weights.

    Raises:
        MethodError: The method refuses the model.
        ModelError: The model cannot be had.
    """
    return _patched(method.model_dump_json(), model, dtype)


@functools.cache
def _patched(method_json: str, model: ModelSpec, dtype: torch.dtype) -> PatchedModel:
    method = make_method(MethodSpec.model_validate_json(method_json))
    patched, counts = patch_and_count(method, base.empty_model(model, dtype))
    return PatchedModel(counts, takes_source_lengths(patched), unsupported(patched) is not None)
