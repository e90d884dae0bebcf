"""The DeepSpeed engine around a loss: its configuration, and what it is shown of the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.method import trained_parameters
from bench.spec import JsonDict, ResourceSpec, TrainSpec


class TrainedOnly(nn.Module):
    """A loss whose frozen parameters and modules an engine does not see.

    DeepSpeed walks all modules of what it trains three times a step. Frozen weights need nothing from it below ZeRO-3,
    which alone cuts them into shards.

    Args:
        whole: Any module; its trained parameters are this module's.
    """

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.trained = nn.ParameterList([parameter for _, parameter in trained_parameters(whole)])
        self._whole = (whole,)  # A tuple hides it from the walk.

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
) -> Any:
    """A DeepSpeed engine that trains what requires grad in ``loss``. The process group has to be there."""
    import deepspeed

    parameters = [parameter for _, parameter in trained_parameters(loss)]
    if clips_before_step(train, resources):

        def clip(*_: Any) -> None:
            nn.utils.clip_grad_norm_(parameters, train.max_grad_norm)

        optimizer.register_step_pre_hook(clip)
    num_trained = sum(parameter.numel() for parameter in parameters)
    engine, *_ = deepspeed.initialize(
        model=loss if resources.zero_stage == 3 else TrainedOnly(loss),
        model_parameters=parameters,
        optimizer=optimizer,
        lr_scheduler=scheduler,
        config=deepspeed_config(train, resources, micro_batch_size, num_trained),
    )
    if resources.ranks == 1 and resources.zero_stage == 0:
        engine.enable_backward_allreduce = False  # There is nobody to reduce with; gloo takes its time all the same.
    return engine


def clips_before_step(train: TrainSpec, resources: ResourceSpec) -> bool:
    """Whether gradients are clipped by torch, all tensors at once.

    Where every rank holds the whole gradient in fp32 that is the same as DeepSpeed's clipping, which takes tensors one
    by one and then reduces the norm over ranks that all have it.
    """
    return train.max_grad_norm > 0 and resources.zero_stage == 0 and resources.precision == "fp32"


def deepspeed_config(train: TrainSpec, resources: ResourceSpec, micro_batch_size: int, num_trained: int) -> JsonDict:
    """DeepSpeed's configuration, complete: nothing is left to "auto".

    Buckets are sized by what is trained. DeepSpeed's default of 5e8 elements would reserve 2 GB for an adapter of a few
    thousand.
    """
    bucket = min(max(num_trained, 2**16), 500_000_000)
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": train.batch_size // (micro_batch_size * resources.ranks),
        "train_batch_size": train.batch_size,
        "gradient_clipping": 0.0 if clips_before_step(train, resources) else train.max_grad_norm,
        "bf16": {"enabled": resources.precision == "bf16"},
        "zero_optimization": {
            "stage": resources.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
        },
        "steps_per_print": 2**31,
    }
