"""Which trials of a sweep may share a launch and train in one pass, and how many of them it pays to."""

from __future__ import annotations

import json

from bench.driver.schedule import Fusion
from bench.models.base import has_dropout
from bench.plugins.registry import make_method
from bench.schema.trial import TrialSpec

# Fields of TrainSpec that fused trials have in common, because they shape the passes. The others may differ.
SHAPE = ("batch_size", "micro_batch_size", "dropout", "label_smoothing", "gradient_checkpointing")

# With this many rows in a pass, more rows gain next to nothing. On a CPU, a few sequences make matrix products as fast
# as they get; on a GPU, starting the kernels takes longer than computing until there are thousands of tokens.
ROWS_THAT_PAY_ON_CPU = 8
ROWS_THAT_PAY_ON_GPU = 128


def fusion_of(spec: TrialSpec, on_gpu: bool) -> Fusion | None:
    """Which trials may share a launch with this one; None if none may, or if it does not pay.

    Fused trials have base model, task, method with its settings, stage and the shape of a step in common. They may
    differ in seed, length, and the settings of optimiser and schedule.
    """
    most = _most(spec, on_gpu)
    if most < 2 or why_alone(spec) is not None:
        return None
    content = spec.identity_without("decode", "seed", "stop_after_steps")
    content["resources"] = spec.resources.model_dump(mode="json")
    content["train"] = {name: content["train"].get(name) for name in SHAPE}
    return Fusion(json.dumps(content, sort_keys=True), most)


def why_alone(spec: TrialSpec) -> str | None:
    """Why a trial cannot train in one pass with others; None if it can."""
    resources = spec.resources
    if spec.stage == "cost":
        return "a trial of the stage cost runs alone, because its time and memory are measured"
    if resources.ranks > 1 or resources.zero_stage or resources.precision != "fp32":
        return "fused trials have one rank, ZeRO stage 0 and fp32"
    if spec.checkpoint_every_steps is not None:
        return "a trial that makes checkpoints runs alone"
    method = make_method(spec.method)
    if not method.fusable or method.adapts_in_training:
        return f"{spec.name} with these settings trains tensors that all rows of a batch share"
    if has_dropout(spec.model, spec.train.dropout):
        return "dropout would be drawn for the rows of all members at once; set train.dropout: 0"
    return None


def _most(spec: TrialSpec, on_gpu: bool) -> int:
    if spec.resources.fuse == "off":
        return 1
    if spec.resources.fuse != "auto":
        return spec.resources.fuse
    rows = spec.train.micro_batch_size or spec.train.batch_size
    return (ROWS_THAT_PAY_ON_GPU if on_gpu else ROWS_THAT_PAY_ON_CPU) // rows
