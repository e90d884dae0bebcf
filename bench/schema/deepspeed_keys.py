"""Which keys of DeepSpeed's configuration a sweep may set, and what decides the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    "zero_optimization.offload_optimizer": "resources.offload.optimizer",
    "zero_optimization.offload_param": "resources.offload.parameters",
    "zero_optimization.stage": "resources.zero_stage",
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


def refuse_own_keys(settings: Mapping[str, Any]) -> None:
    """Check the keys of ``resources.deepspeed``.

    Raises:
        ValueError: One is decided by another setting, or unknown.
    """
    inner = settings.get("zero_optimization", {})
    if not isinstance(inner, Mapping):
        raise ValueError(f"deepspeed.zero_optimization is {inner!r}; it is a mapping")  # noqa: TRY004 - a bad value
    for key in (*settings, *(f"zero_optimization.{name}" for name in inner)):
        if key in OWN:
            raise ValueError(f"deepspeed.{key} is decided by {OWN[key]}; set that, and leave this out")
    for key in settings:
        if key not in PASSED:
            raise ValueError(f"deepspeed.{key} is no key that can be passed on; these can: {', '.join(PASSED)}")
