"""Offloading, keys of DeepSpeed that are passed on, and activations computed twice under ZeRO change no loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from one_rank import CPU

from bench.conformance.subject import pairs_of
from bench.conformance.tiny_models import WordTokenizer, tiny_model
from bench.measure.phases import PhaseMeter
from bench.models.architecture import architecture_of
from bench.plugins.registry import load_method, targets
from bench.schema.trial import ResourceSpec, TrainSpec
from bench.train.lane import Lane
from bench.train.loop import Training

PAIRS = pairs_of([(6, 4)] * 12)


def losses(checkpointing: bool = False, **resources: Any) -> list[float]:
    """Of four steps of LoRA."""
    method_class = load_method(targets("method")["lora"])
    torch.manual_seed(0)
    method = method_class(method_class.Config(), WordTokenizer())
    model: Any = method.patch(tiny_model("llama", dtype=torch.float32))
    train = TrainSpec(learning_rate=1e-2, steps=4, batch_size=4, gradient_checkpointing=checkpointing)
    (trained,) = Training(
        lanes=[Lane(method, model, train, 0, lambda event: None)],
        architecture=architecture_of(model.config),
        resources=ResourceSpec.model_validate(resources),
        rank=0,
        device=CPU,
        pad_token_id=0,
        meter=PhaseMeter(CPU),
    ).run(PAIRS, PAIRS[:4])
    return [point.loss for point in (*trained.train_curve, *trained.dev_curve)]


@pytest.mark.usefixtures("one_rank")
def test_what_takes_less_memory_trains_the_same() -> None:
    plain = losses()
    for resources in (
        {"zero_stage": 1, "offload": {"optimizer": "cpu"}},
        {"zero_stage": 2, "offload": {"optimizer": "cpu"}},
        {"zero_stage": 3, "offload": {"optimizer": "cpu", "parameters": "cpu"}, "checkpointing": True},
        {"zero_stage": 2, "deepspeed": {"zero_optimization": {"overlap_comm": True}}},
    ):
        assert losses(**resources) == pytest.approx(plain, abs=1e-5), resources
