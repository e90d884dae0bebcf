"""Counts the parameters that a method trains and stores, and those of the whole model."""

from __future__ import annotations

from typing import Any

from bench.method import Method, trained_parameters
from bench.quantized.linear import num_elements
from bench.schema.record import ParameterCounts


def count_parameters(method: Method, model: Any) -> ParameterCounts:
    """Count elements that are trained, stored and in total. Call it before an engine shards the model."""
    return ParameterCounts(
        trained=sum(parameter.numel() for _, parameter in trained_parameters(model)),
        stored=sum(tensor.numel() for tensor in method.adapter_state(model).values()),
        total=num_elements(model),
    )
