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
        (
            {"deepspeed": {"zero_optimization": {"cpu_offload": True}}, "zero_stage": 2},
            "zero_optimization.cpu_offload is decided by resources.offload.optimizer",
        ),
        (
            {"deepspeed": {"zero_optimization": {"zero_hpz_partition_size": 2}}, "zero_stage": 3},
            "zero_hpz_partition_size cannot be passed on, because weights are cut over all ranks",
        ),
        (
            {"deepspeed": {"zero_optimization": {"load_from_fp32_weights": False}}, "zero_stage": 2},
            "load_from_fp32_weights cannot be passed on, because a retry continues to the bit",
        ),
        (
            {"deepspeed": {"zero_optimization": {"elastic_checkpoint": True}}, "zero_stage": 1},
            "elastic_checkpoint cannot be passed on, because a retry continues to the bit",
        ),
        (
            {"deepspeed": {"zero_optimization": {"legacy_stage1": True}}, "zero_stage": 1},
            "legacy_stage1 cannot be passed on, because DeepSpeed has no such stage any more",
        ),
        (
            {"deepspeed": {"zero_optimization": {"pipeline_loading_checkpoint": True}}, "zero_stage": 3},
            "pipeline_loading_checkpoint cannot be passed on, because a retry loads the pieces of all ranks at once",
        ),
        (
            {"deepspeed": {"zero_optimization": {"zero_quantized_gradients": True}}, "zero_stage": 3},
            "zero_quantized_gradients cannot be passed on, because gradients are added up in fp32",
        ),
        (
            {"deepspeed": {"zero_optimization": {"compute_grad_norm": False}}, "zero_stage": 2},
            "zero_optimization.compute_grad_norm is decided by train.max_grad_norm",
        ),
        (
            {"deepspeed": {"zero_optimization": {"reduce_bucket_size": "auto"}}, "zero_stage": 2},
            "zero_optimization.reduce_bucket_size: auto is for transformers' Trainer",
        ),
        ({"deepspeed": {"flops_profiler": True}}, "flops_profiler is True; it is a mapping"),
        ({"deepspeed": {"dump_state": "yes"}}, "dump_state is 'yes'; it is true or false"),
        ({"deepspeed": {"gradient_predivide_factor": 0}}, "gradient_predivide_factor is 0; it is a number above 0"),
        (
            {"deepspeed": {"prescale_gradients": True}, "zero_stage": 2},
            "prescale_gradients cannot be had with zero_stage: 2",
        ),
        ({"offload": {"optimizer": "cpu"}}, r"offload.optimizer needs zero_stage: 1, 2 or 3 \(it is 0\)"),
        ({"offload": {"parameters": "cpu"}, "zero_stage": 2}, r"offload.parameters needs zero_stage: 3 \(it is 2\)"),
        ({"offload": {}, "zero_stage": 3}, "offload names nothing"),
        ({"offload": {"optimizer": "nvme"}, "zero_stage": 3}, "nvme is not offered: .* async_io, which needs libaio"),
    ],
)
def test_what_cannot_be_is_said(resources: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ResourceSpec.model_validate(resources)


@pytest.mark.parametrize(
    ("stage", "keys", "said"),
    [
        (2, {"zero_optimization": {"overlap_com": True}}, "no key 'overlap_com'; did you mean 'overlap_comm'?"),
        (
            2,
            {"zero_optimization": {"reduce_bucket_size": "many"}},
            r"zero_optimization.reduce_bucket_size: .*\(it is 'many'\)",
        ),
        (
            2,
            {"zero_optimization": {"stage3_prefetch_bucket_size": 9}},
            "stage3_prefetch_bucket_size has no effect with zero_stage: 2",
        ),
        (
            3,
            {"zero_optimization": {"prefetch_bucket_size": 9, "stage3_prefetch_bucket_size": 8}},
            "prefetch_bucket_size and stage3_prefetch_bucket_size are one key",
        ),
        (
            0,
            {"flops_profiler": {"enable": True}},
            "flops_profiler: DeepSpeed has no key 'enable'; did you mean 'enabled'",
        ),
        (0, {"comms_logger": {"verbose": "loud"}}, "comms_logger.verbose: .*'loud'"),
    ],
)
def test_keys_are_those_that_deepspeed_knows_and_heeds(stage: Any, keys: dict[str, Any], said: str) -> None:
    method = MethodSpec(name="lora", target="methods.lora:LoRA")
    with pytest.raises(ConfigError, match=said):
        RegistryResolver().check_together(
            method, TrainSpec(), ResourceSpec(zero_stage=stage, deepspeed=keys), "methods.0"
        )


def test_what_is_passed_on_stands_beside_what_is_ours() -> None:
    own_keys = {"wall_clock_breakdown": True, "zero_optimization": {"reduce_bucket_size": 7}}
    resources = ResourceSpec(zero_stage=3, offload={"optimizer": "cpu"}, deepspeed=own_keys)  # type: ignore[arg-type]
    config = deepspeed_config(TrainSpec(steps=1), resources, 8, 100)
    zero = config["zero_optimization"]
    assert config["wall_clock_breakdown"] is True and config["train_batch_size"] == 8
    assert (zero["stage"], zero["reduce_bucket_size"], zero["offload_optimizer"]) == (3, 7, {"device": "cpu"})
    assert "offload_param" not in zero
    other_name = {"zero_optimization": {"prefetch_bucket_size": 5}}
    config = deepspeed_config(TrainSpec(steps=1), ResourceSpec(zero_stage=3, deepspeed=other_name), 8, 100)
    zero = config["zero_optimization"]
    assert zero["stage3_prefetch_bucket_size"] == 5 and "prefetch_bucket_size" not in zero


def test_it_is_a_part_of_the_identity() -> None:
    settings = [{}, {"deepspeed": {"zero_optimization": {"overlap_comm": True}}}, {"offload": {"optimizer": "cpu"}}]
    assert len({trial(zero_stage=2, **resources).trial_id for resources in settings}) == 3  # type: ignore[arg-type]
