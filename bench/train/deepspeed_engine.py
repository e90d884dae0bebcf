"""The DeepSpeed engine around a loss: its configuration, and the part of the model that it sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bench.method import trained_parameters
from bench.models.masters import Masters
from bench.schema.trial import JsonDict, Precision, ResourceSpec, TrainSpec
from bench.train.loss_scale import LossScale, fp16_config
from bench.train.zero3 import Regathering, hand_over_shards, largest_layer

# ZeRO 3 does not cut parameters with fewer elements, in any model: gathering 64 KiB costs time and saves no memory.
WHOLE_ANYWAY = 2**14


class EngineError(RuntimeError):
    """DeepSpeed would train another function than the one that it was given. The message says why."""


class TrainedOnly(nn.Module):
    """A loss whose frozen parameters and modules an engine does not see.

    DeepSpeed iterates over all modules three times in each step. It need not see frozen weights below ZeRO-3, which
    alone cuts them into shards.

    Args:
        whole: Any module.
        trained: The tensors that the optimiser steps: the trained parameters, or their masters.
    """

    def __init__(self, whole: nn.Module, trained: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(trained)
        self._whole = (whole,)  # in a tuple, so that it is no submodule

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._whole[0](*args, **kwargs)

    def train(self, mode: bool = True) -> TrainedOnly:
        self._whole[0].train(mode)
        return super().train(mode)


def make_engine(
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    train: TrainSpec,
    resources: ResourceSpec,
    micro_batch_size: int,
    device: torch.device,
) -> Any:
    """A DeepSpeed engine that trains the tensors of ``loss`` that require grad. It needs a process group.

    In bf16 and fp16 the optimiser steps fp32 masters, DeepSpeed's under ZeRO 1 to 3 and :class:`Masters` without.

    Raises:
        EngineError: Making the engine has stepped the optimiser, the engine would round frozen weights, or it cannot
            compute in fp16 on this device.
    """
    import deepspeed

    if resources.precision != "fp32" and resources.zero_stage == 3:
        require_nothing_to_round(loss, resources.precision)
    if resources.precision == "fp16" and resources.zero_stage:
        require_fp16(device)

    parameters = [parameter for _, parameter in trained_parameters(loss)]
    if has_own_masters(resources):
        parameters = Masters(optimizer).parameters
    if clips_before_step(train, resources):

        def clip(*_: Any) -> None:
            nn.utils.clip_grad_norm_(parameters, train.max_grad_norm)

        optimizer.register_step_pre_hook(clip)
    num_trained = sum(parameter.numel() for parameter in parameters)
    config = deepspeed_config(train, resources, micro_batch_size, num_trained)
    if resources.zero_stage and not isinstance(optimizer, torch.optim.AdamW):
        config["zero_allow_untested_optimizer"] = True  # bench.optimizers says which must not be cut up
    visible: nn.Module
    if resources.zero_stage == 3:
        by_size = zero3_settings(num_trained, largest_layer(loss), device)
        config["zero_optimization"] |= {**by_size, **passed_to_zero(resources)}
        hand_over_shards(loss, config, device)
        visible = Regathering(loss)
    else:
        visible = TrainedOnly(loss, parameters)
    engine, *_ = deepspeed.initialize(
        model=visible,
        model_parameters=parameters,
        optimizer=optimizer,
        lr_scheduler=scheduler,
        config=config,
    )
    if isinstance(visible, Regathering):
        visible.watch()
    for stepping in (optimizer, engine.basic_optimizer):
        require_no_state(stepping, f"DeepSpeed's engine for {resources.precision} and ZeRO {resources.zero_stage}")
    if resources.ranks == 1 and resources.zero_stage == 0:
        engine.enable_backward_allreduce = False  # with one rank gloo would take time for nothing
    if resources.precision == "fp16" and has_own_masters(resources):
        engine.torch_autocast_z0_gradscaler = LossScale(optimizer)
    return engine


def require_no_state(optimizer: torch.optim.Optimizer, engine: str) -> None:
    """Check that an optimiser has made no step before the first one.

    A step on gradients of zero would count as Adam's first, so that the correction of the moments would be wrong, and
    would decay weights once more.

    Raises:
        EngineError: The optimiser has a state.
    """
    if held := sorted({key for state in optimizer.state.values() for key in state}):
        raise EngineError(
            f"{engine} has left state in {type(optimizer).__name__} before the first step ({', '.join(held)}), so that "
            "the first updates would be wrong; install the versions of constraints.txt"
        )


def require_fp16(device: torch.device) -> None:
    """Check that DeepSpeed takes fp16 on a device. It requires units that multiply in fp16.

    Raises:
        EngineError: It does not.
    """
    from deepspeed.accelerator import get_accelerator

    if not get_accelerator().is_fp16_supported():
        raise EngineError(
            f"resources.precision: fp16 under ZeRO 1 to 3 needs a {device.type} that multiplies in fp16 (a CPU with "
            "AVX512-FP16), which this one does not; set precision: bf16 or fp32, or zero_stage: 0"
        )


def require_nothing_to_round(model: nn.Module, precision: Precision) -> None:
    """Check that no frozen weight is more exact than the precision to which ZeRO 3, unlike other stages, rounds it.

    Raises:
        EngineError: A weight is. The message names it. transformers keeps routers and gates of some families in fp32.
    """
    exact = [
        name
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and parameter.dtype in (torch.float32, torch.float64)
    ]
    if exact:
        raise EngineError(
            f"resources.zero_stage: 3 with {precision} would round {len(exact)} frozen weights that the model keeps in "
            f"fp32, among them {exact[0]}, so that it would train beside another model than is scored; set a stage "
            "below 3"
        )


def has_own_masters(resources: ResourceSpec) -> bool:
    """Whether :class:`Masters` keeps trained tensors in fp32, because DeepSpeed does not, or not well."""
    return resources.precision != "fp32" and resources.zero_stage == 0


def clips_before_step(train: TrainSpec, resources: ResourceSpec) -> bool:
    """Whether gradients are clipped by torch, all tensors at once.

    If every rank holds the whole gradient in fp32, the result equals DeepSpeed's clipping, which handles tensors one by
    one and reduces the norm over ranks although all ranks have it.
    """
    return train.max_grad_norm > 0 and resources.zero_stage == 0


def deepspeed_config(train: TrainSpec, resources: ResourceSpec, micro_batch_size: int, num_trained: int) -> JsonDict:
    """DeepSpeed's complete configuration, without any "auto".

    In bf16 and fp16 gradients are added up in fp32, over micro-batches and over ranks. Otherwise the number of either
    would change more than the order of a sum.

    The keys of ``resources.deepspeed`` are added. They cannot be keys that other settings decide.

    The size of buckets follows from the number of trained elements. DeepSpeed's default of 5e8 elements would reserve
    2 GB for an adapter of a few thousand.
    """
    bucket = min(max(num_trained, 2**16), 500_000_000)
    half = None if resources.precision == "fp32" or has_own_masters(resources) else resources.precision
    summed_in_fp32 = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"} if half else {}
    own: JsonDict = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": train.batch_size // (micro_batch_size * resources.ranks),
        "train_batch_size": train.batch_size,
        "gradient_clipping": 0.0 if clips_before_step(train, resources) else train.max_grad_norm,
        "bf16": {"enabled": half == "bf16"},
        "fp16": fp16_config(half == "fp16"),
        **summed_in_fp32,
        "zero_optimization": {
            "stage": resources.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            **_offloaded(resources),
        },
        # The same optimiser steps tensors with and without offloading, so that answers are the same.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    passed = {key: value for key, value in resources.deepspeed.items() if key != "zero_optimization"}
    return {**own, **passed, "zero_optimization": {**own["zero_optimization"], **passed_to_zero(resources)}}


def passed_to_zero(resources: ResourceSpec) -> JsonDict:
    """The sweep's keys of ZeRO, under the names that DeepSpeed reads first where it knows two.

    Under the other name a key would stand beside one of ours, and DeepSpeed would not heed it.
    """
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    first_names = {name: field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    own_keys = resources.deepspeed.get("zero_optimization", {})
    return {first_names.get(key, key): value for key, value in own_keys.items()}


def _offloaded(resources: ResourceSpec) -> JsonDict:
    """DeepSpeed's keys that put tensors into the host's memory."""
    offload = resources.offload
    if offload is None:
        return {}
    devices = {"offload_optimizer": offload.optimizer, "offload_param": offload.parameters}
    return {key: {"device": device} for key, device in devices.items() if device is not None}


def zero3_settings(num_trained: int, layer: int, device: torch.device) -> JsonDict:
    """DeepSpeed's keys for the number of elements that ZeRO 3 gathers at a time: about one layer.

    DeepSpeed's defaults of 1e9 elements gather a small model once and never cut it again. The optimiser steps the same
    number of elements at a time. Tensors of less than a hundredth of a layer (norms, adapters) stay whole.

    Args:
        num_trained: The number of trained elements.
        layer: The number of elements of the largest layer.
        device: On a GPU the next layer is gathered while one computes. On CPUs both would take the same cores.
    """
    overlaps = device.type == "cuda"
    return {
        "reduce_bucket_size": max(2**16, min(num_trained, layer)),
        "sub_group_size": layer,
        "overlap_comm": overlaps,
        "stage3_prefetch_bucket_size": layer if overlaps else 0,
        "stage3_max_live_parameters": layer,
        "stage3_max_reuse_distance": 0,
        "stage3_param_persistence_threshold": max(WHOLE_ANYWAY, min(100_000, layer // 100)),
        # It would replace torch.nn.functional.linear for the life of the process; Regathering does its work.
        "memory_efficient_linear": False,
    }
