"""A sweep may set keys of DeepSpeed that no other setting decides; those are passed on."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import trial

from bench.config.resolver import RegistryResolver
from bench.schema.trial import MethodSpec, ResourceSpec, TrainSpec
from bench.schema.validation import ConfigError
from bench.train.deepspeed_engine import deepspeed_config


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"deepspeed": {"bf16": {}}}, "deepspeed.bf16 is decided by resources.precision"),
        ({"deepspeed": {"train_batch_size": 8}}, "deepspeed.train_batch_size is decided by train.batch_size"),
        (
            {"deepspeed": {"zero_optimization": {"stage": 2}}},
            "stage is decided by resources.zero_stage",
        ),
        ({"deepspeed": {"zero_optimisation": {}}}, "deepspeed.zero_optimisation is no key that can be passed on"),
        ({"deepspeed": {"zero_optimization": 3}}, "deepspeed.zero_optimization is 3; it is a mapping"),
        ({"deepspeed": {"zero_optimization": {"overlap_comm": True}}}, "has no effect with zero_stage: 0"),
        ({"offload": {"optimizer": "cpu"}}, r"offload.optimizer needs zero_stage: 1, 2 or 3 \(it is 0\)"),
        ({"offload": {"parameters": "cpu"}, "zero_stage": 2}, r"offload.parameters needs zero_stage: 3 \(it is 2\)"),
        ({"offload": {}, "zero_stage": 3}, "offload names nothing"),
        ({"offload": {"optimizer": "nvme"}, "zero_stage": 3}, "nvme is not offered: .* async_io, which needs libaio"),
    ],
)
def test_what_cannot_be_is_said(resources: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ResourceSpec.model_validate(resources)


def test_keys_of_zero_are_those_of_deepspeed() -> None:
    method = MethodSpec(name="lora", target="methods.lora:LoRA")
    for zero_keys, said in (
        ({"overlap_com": True}, "DeepSpeed has no key 'overlap_com'; did you mean 'overlap_comm'?"),
        ({"reduce_bucket_size": "many"}, r"zero_optimization.reduce_bucket_size: .*\(it is 'many'\)"),
    ):
        resources = ResourceSpec(zero_stage=2, deepspeed={"zero_optimization": zero_keys})
        with pytest.raises(ConfigError, match=said):
            RegistryResolver().check_together(method, TrainSpec(), resources, "methods.0")


def test_what_is_passed_on_stands_beside_what_is_ours() -> None:
    own_keys = {"wall_clock_breakdown": True, "zero_optimization": {"reduce_bucket_size": 7}}
    resources = ResourceSpec(zero_stage=3, offload={"optimizer": "cpu"}, deepspeed=own_keys)  # type: ignore[arg-type]
    config = deepspeed_config(TrainSpec(steps=1), resources, 8, 100)
    zero = config["zero_optimization"]
    assert config["wall_clock_breakdown"] is True and config["train_batch_size"] == 8
    assert (zero["stage"], zero["reduce_bucket_size"], zero["offload_optimizer"]) == (3, 7, {"device": "cpu"})
    assert "offload_param" not in zero


def test_it_is_a_part_of_the_identity() -> None:
    settings = [{}, {"deepspeed": {"zero_optimization": {"overlap_comm": True}}}, {"offload": {"optimizer": "cpu"}}]
    assert len({trial(zero_stage=2, **resources).trial_id for resources in settings}) == 3  # type: ignore[arg-type]
