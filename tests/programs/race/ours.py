"""Tuneoff in the race: the training loop of a trial, and how each of its levers is switched off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from one_rank import join_alone, training_alone
from safetensors.torch import load_file
from torch import nn

import bench.models.base
import bench.train.deepspeed_engine
import bench.train.lane
import bench.train.loop
from bench.models.architecture import Pair
from bench.models.base import load_model, load_tokenizer, weights_dtype
from bench.models.masters import compute_in
from bench.plugins.registry import load_method, targets
from bench.rank.trial import seed_everything
from bench.schema.trial import ModelSpec, Precision, TrainSpec
from bench.train.lane import Lane
from bench.train.loss import TargetLoss

if TYPE_CHECKING:
    from race.contender import Job
    from race.pacer import Pacer


class AllLogitsOfTargets(TargetLoss):
    """A loss that computes the logits of all targets at once."""

    def __init__(self, model: Any, label_smoothing: float = 0.0) -> None:
        super().__init__(model, label_smoothing, chunked=False)


class AllLogits(AllLogitsOfTargets):
    """A loss that computes the logits of all positions and then chooses those that predict a target."""

    def _behind(self, head: nn.Module, inputs: dict[str, torch.Tensor], predicting: torch.Tensor) -> torch.Tensor:
        return self._logits(inputs).flatten(0, 1)[predicting]


# Name of a lever to what replaces it: module, attribute, value. Batches by length are a lever too: order "random".
LEVERS: dict[str, tuple[Any, str, Any]] = {
    "logits at targets only": (bench.train.loop, "TargetLoss", AllLogits),
    "logits a chunk at a time": (bench.train.loop, "TargetLoss", AllLogitsOfTargets),
    "an engine that sees what is trained": (bench.train.deepspeed_engine, "TrainedOnly", lambda loss, _: loss),
    "lean modules": (bench.models.base, "use_lean_modules", lambda model: None),
    "heads that share keys": (bench.train.loop, "sharing_heads", lambda *models: nullcontext()),
}


def start_of(name: str, config: dict[str, Any], model: str, precision: Precision = "fp32") -> tuple[Any, Any]:
    """A method and the model that it has patched, from seed 0, with weights as ranks have them in this precision."""
    spec = ModelSpec(path=model)
    method_class = load_method(targets("method")[name])
    method = method_class(method_class.Config(**config), load_tokenizer(spec))
    base = load_model(spec, weights_dtype(precision))
    seed_everything(0)
    patched = method.patch(base)
    compute_in(weights_dtype(precision), patched)
    return method, patched


def train(job: Job, pairs: Sequence[Sequence[list[int]]], order: Sequence[Sequence[int]], pacer: Pacer) -> list[float]:
    """What one rank of a trial does, from the loaded model to the last step."""
    if job.lever_off is not None:
        module, attribute, value = LEVERS[job.lever_off]
        setattr(module, attribute, value)
    if not dist.is_initialized():  # DeepSpeed can be used with one process group in the life of a process.
        join_alone(Path())
    method, model = start_of(job.method, job.config, job.model, job.precision)
    if job.adapter is not None:
        method.load_adapter_state(model, load_file(Path(job.adapter) / "tuneoff.safetensors"))
    pacer.loaded(model)
    method.after_step = _after(method.after_step, pacer.tick)
    batches = [[Pair(*pairs[index]) for index in batch] for batch in order]
    spec = TrainSpec(learning_rate=job.learning_rate, steps=pacer.steps, batch_size=job.batch_size)
    lane = Lane(method, model, spec, 0, lambda event: None)
    training = training_alone(
        [lane], pad_token_id=method.tokenizer.pad_token_id, compile=job.compile, precision=job.precision
    )
    bench.train.lane.training_order = _given_order(job.batch_size)
    flat = [pair for batch in batches for pair in batch]
    training.run(flat, flat[:1])
    return [point.loss for point in lane.train_curve]


def _after(hook: Callable[[Any, int], None], tick: Callable[[], None]) -> Callable[[Any, int], None]:
    def both(model: Any, step: int) -> None:
        hook(model, step)
        tick()

    return both


def _given_order(batch_size: int) -> Callable[..., list[list[int]]]:
    """Pairs come in the order of the precomputed batches, which every contender is given."""

    def order(lengths: Sequence[int], *_: Any) -> list[list[int]]:
        return [list(range(at, at + batch_size)) for at in range(0, len(lengths), batch_size)]

    return order
