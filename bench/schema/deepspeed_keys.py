"""Which keys of DeepSpeed's configuration a sweep may set, and what decides the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench.schema.printable import in_brief

# Decided by other settings, which say more than DeepSpeed hears of.
OWN = {
    "activation_checkpointing": "train.gradient_checkpointing",
    "amp": "resources.precision",
    "bf16": "resources.precision",
    "communication_data_type": "resources.precision, with sums in fp32",
    "compile": "resources.compile",
    "data_types": "resources.precision, with sums in fp32",
    "fp16": "resources.precision",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "gradient_clipping": "train.max_grad_norm",
    "optimizer": "train.optimizer",
    "scheduler": "train.schedule",
    "steps_per_print": "the display of the sweep",
    "torch_autocast": "resources.precision",
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "zero_optimization.compute_grad_norm": "train.max_grad_norm",
    # The older names of the keys of offloading, which DeepSpeed still takes for them.
    "zero_optimization.cpu_offload": "resources.offload.optimizer",
    "zero_optimization.cpu_offload_param": "resources.offload.parameters",
    "zero_optimization.cpu_offload_use_pin_memory": "resources.offload",
    "zero_optimization.offload_optimizer": "resources.offload.optimizer",
    "zero_optimization.offload_param": "resources.offload.parameters",
    "zero_optimization.stage": "resources.zero_stage",
}
# What would undo something that Tuneoff does for every trial, and what that is.
LEFT_ALONE = {
    "zero_optimization.elastic_checkpoint": "a retry continues to the bit, on as many ranks as before",
    "zero_optimization.legacy_stage1": "DeepSpeed has no such stage any more, so that every trial would fail",
    "zero_optimization.load_from_fp32_weights": "a retry continues to the bit, from the exact fp32 weights",
    "zero_optimization.memory_efficient_linear": "weights are gathered again for every operation, not for linear alone",
    "zero_optimization.pipeline_loading_checkpoint": "a retry loads the pieces of all ranks at once, on all nodes",
    "zero_optimization.zenflow": "the optimiser is that of train.optimizer, with its moments in fp32",
    "zero_optimization.zero_hpz_partition_size": "weights are cut over all ranks before DeepSpeed sees them",
    "zero_optimization.zero_quantized_gradients": "gradients are added up in fp32, over ranks too",
    "zero_optimization.zero_quantized_nontrainable_weights": "model.quantization says how frozen weights are stored",
    "zero_optimization.zero_quantized_weights": "ranks train the weights that are scored, to the bit",
}
# What is left for a sweep to set; DeepSpeed ignores keys that it does not know.
PASSED = (
    "comms_logger",
    "dump_state",
    "flops_profiler",
    "gradient_predivide_factor",
    "memory_breakdown",
    "prescale_gradients",
    "wall_clock_breakdown",
    "zero_optimization",
)
MAPPINGS = ("comms_logger", "flops_profiler", "zero_optimization")
TRUTH_VALUES = ("dump_state", "memory_breakdown", "prescale_gradients", "wall_clock_breakdown")
# How transformers' Trainer is asked to fill in a value. DeepSpeed would take it for its own default.
AUTO = "auto"


def refuse_own_keys(settings: Mapping[str, Any], zero_stage: int) -> None:
    """Check the keys of ``resources.deepspeed``, and the kinds of their values.

    Args:
        settings: What is passed on.
        zero_stage: Of the trial.

    Raises:
        ValueError: One is decided by another setting, unknown, without effect, or has an impossible value.
    """
    for key, value in settings.items():
        if key in MAPPINGS and not isinstance(value, Mapping):
            raise ValueError(f"deepspeed.{key} is {in_brief(value)}; it is a mapping")
        if key in TRUTH_VALUES and not isinstance(value, bool):
            raise ValueError(f"deepspeed.{key} is {in_brief(value)}; it is true or false")
    inner = settings.get("zero_optimization", {})
    for key in (*settings, *(f"zero_optimization.{name}" for name in inner)):
        if key in OWN:
            raise ValueError(f"deepspeed.{key} is decided by {OWN[key]}; set that, and leave this out")
        if key in LEFT_ALONE:
            raise ValueError(f"deepspeed.{key} cannot be passed on, because {LEFT_ALONE[key]}; leave it out")
    for key in settings:
        if key not in PASSED:
            raise ValueError(f"deepspeed.{key} is no key that can be passed on; these can: {', '.join(PASSED)}")
    for key in _filled_in(settings):
        raise ValueError(
            f"deepspeed.{key}: {AUTO} is for transformers' Trainer, which would fill in a number; leave the key out, "
            "and it follows from the size of what is trained"
        )
    _check_scaling(settings, zero_stage)


def _filled_in(settings: Mapping[str, Any], inside: str = "") -> Iterator[str]:
    """The keys that somebody else is to fill in."""
    for key, value in settings.items():
        if value == AUTO:
            yield f"{inside}{key}"
        elif isinstance(value, Mapping):
            yield from _filled_in(value, f"{inside}{key}.")


def _check_scaling(settings: Mapping[str, Any], zero_stage: int) -> None:
    """Gradients are not divided before they are added up where DeepSpeed cannot do it.

    Raises:
        ValueError: They would be.
    """
    factor = settings.get("gradient_predivide_factor", 1.0)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
        raise ValueError(f"deepspeed.gradient_predivide_factor is {in_brief(factor)}; it is a number above 0")
    scattered = settings.get("zero_optimization", {}).get("reduce_scatter", True)
    for key, differs in (
        ("prescale_gradients", settings.get("prescale_gradients", False)),
        ("gradient_predivide_factor", factor != 1),
    ):
        if differs and zero_stage >= 2 and scattered:
            raise ValueError(
                f"deepspeed.{key} cannot be had with zero_stage: {zero_stage}, where DeepSpeed scatters gradients as "
                "it adds them up; leave it out, or set zero_optimization.reduce_scatter: false"
            )
