"""The only training loop: a DeepSpeed engine on every rank. It names no method."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bench.architecture import Architecture, Pair
from bench.data import micro_batches, num_steps, training_order
from bench.engine import make_engine
from bench.loss import TargetLoss
from bench.measure import PhaseMeter, StepClock, percentile, steady_start
from bench.method import Method
from bench.optimize import learning_rate_factor, make_optimizer
from bench.record import DevPoint, TrainCost, TrainPoint
from bench.spec import JsonDict, ResourceSpec, TrainSpec

# Losses are reduced over ranks, checked and reported every so many steps: a host that waits for the device at every
# step would slow a GPU down.
REPORT_EVERY_STEPS = 5


class Diverged(ArithmeticError):
    """A loss or a gradient became infinite or not a number."""


@dataclass
class Trained:
    """What training leaves behind."""

    state: dict[str, torch.Tensor]
    best: DevPoint
    train_curve: list[TrainPoint]
    dev_curve: list[DevPoint]
    cost: TrainCost


@dataclass
class Training:
    """One trial's training on one rank.

    The loss of a step is the mean over all target tokens of the global batch, whatever ranks and micro-batches it is
    cut into, so that the numbers of ranks change nothing but rounding. ``loss_reduction`` may ask for another gradient
    scale, the sum over a sequence's target tokens averaged over sequences; what is reported stays the mean over tokens.
    """

    method: Method
    model: nn.Module
    architecture: Architecture
    train: TrainSpec
    resources: ResourceSpec
    seed: int
    rank: int
    device: torch.device
    pad_token_id: int
    meter: PhaseMeter
    progress: Callable[[JsonDict], None]
    stop_after_steps: int | None = None  # end here, on the schedule and in the order of the full length
    train_curve: list[TrainPoint] = field(default_factory=list, init=False)
    dev_curve: list[DevPoint] = field(default_factory=list, init=False)

    def run(self, pairs: Sequence[Pair], dev_pairs: Sequence[Pair]) -> Trained:
        """Train, and return the state with the lowest dev loss.

        Raises:
            Diverged: The loss is not finite.
        """
        with self.meter.phase("initialise"):
            steps = num_steps(self.train, len(pairs))
            engine, micro_batch_size = self._engine(steps)
            order = training_order([pair.num_tokens for pair in pairs], self.train.batch_size, steps, self.seed)
            order = order[: self.stop_after_steps]
            steps = len(order)
            clock = StepClock(self.device)
        best: DevPoint | None = None
        state: dict[str, torch.Tensor] = {}
        pending: list[tuple[int, torch.Tensor, float]] = []
        with self.meter.phase("train"):
            engine.train()
            clock.resume()
            for step, batch in enumerate(order, start=1):
                learning_rate = float(engine.get_lr()[0])
                loss = self._step(engine, step, pairs, batch, micro_batch_size)
                self.method.after_step(self.model, step)
                clock.tick()
                pending.append((step, loss, learning_rate))
                evaluating = step == steps or step % (self.train.evaluate_every_steps or steps) == 0
                if evaluating or step % REPORT_EVERY_STEPS == 0:
                    self._report(pending, steps, clock, pairs, order)
                if evaluating:
                    with self.meter.phase("validate"):
                        point = DevPoint(step=step, loss=self._dev_loss(engine, dev_pairs))
                        if not math.isfinite(point.loss):
                            raise Diverged(f"the dev loss after step {step} is {point.loss}")
                        self.dev_curve.append(point)
                        if best is None or point.loss < best.loss:
                            best, state = point, gathered_state(self.method, self.model)
                    engine.train()
                    clock.resume()
        if best is None:
            raise RuntimeError("training ended without an evaluation")
        cost = self._cost(clock.durations(), pairs, order, int(engine.skipped_steps))
        engine.destroy()
        return Trained(state, best, self.train_curve, self.dev_curve, cost)

    def _engine(self, steps: int) -> tuple[Any, int]:
        loss = TargetLoss(self.model, self.train.label_smoothing).to(self.device)
        micro_batch_size = self.train.micro_batch_size or self.train.batch_size // self.resources.ranks
        if self.train.gradient_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        optimizer = make_optimizer(self.train, self.method.parameter_groups(self.model))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(self.train, steps))
        return make_engine(loss, optimizer, scheduler, self.train, self.resources, micro_batch_size), micro_batch_size

    def _step(
        self, engine: Any, step: int, pairs: Sequence[Pair], batch: Sequence[int], micro_batch_size: int
    ) -> torch.Tensor:
        """One optimiser step. Returns this rank's part of the batch's mean loss."""
        num_targets = sum(len(pairs[index].target_ids) for index in batch)
        divisor = num_targets if self.train.loss_reduction == "token_mean" else len(batch)
        micros = micro_batches(batch, self.rank, self.resources.ranks, micro_batch_size)
        total = torch.zeros((), device=self.device)
        for number, micro in enumerate(micros, start=1):
            chosen = [pairs[index] for index in micro]
            inputs = self.architecture.batch(chosen, self.pad_token_id).to(self.device)
            loss = engine(**vars(inputs))
            # The engine divides by the accumulation steps and averages gradients over ranks: undo both.
            engine.backward(loss / divisor * (len(micros) * self.resources.ranks))
            if number == len(micros):
                self.method.before_step(self.model, step)
            engine.step()
            total += loss.detach() / num_targets
        return total

    def _report(
        self,
        pending: list[tuple[int, torch.Tensor, float]],
        steps: int,
        clock: StepClock,
        pairs: Sequence[Pair],
        order: Sequence[Sequence[int]],
    ) -> None:
        losses = torch.stack([loss for _, loss, _ in pending])
        dist.all_reduce(losses)
        for (step, _, learning_rate), loss in zip(pending, losses.tolist(), strict=True):
            if not math.isfinite(loss):
                raise Diverged(f"the loss of step {step} is {loss} (learning rate {learning_rate:g})")
            self.train_curve.append(TrainPoint(step=step, loss=loss, learning_rate=learning_rate))
        seconds = sum(clock.durations()[-len(pending) :])
        last = self.train_curve[-1]
        tokens = sum(pairs[index].num_tokens for step, _, _ in pending for index in order[step - 1])
        self.progress(
            {
                "step": last.step,
                "steps": steps,
                "loss": last.loss,
                "tokens_per_second": tokens / seconds,
                "remaining_seconds": (steps - last.step) * seconds / len(pending),
            }
        )
        pending.clear()

    def _dev_loss(self, engine: Any, pairs: Sequence[Pair]) -> float:
        engine.eval()
        return mean_loss(engine, pairs, self.architecture, self.train.batch_size, self.pad_token_id, self.device)

    def _cost(
        self, durations: list[float], pairs: Sequence[Pair], order: Sequence[Sequence[int]], skipped_steps: int
    ) -> TrainCost:
        steady = steady_start(len(durations))
        window = torch.tensor([sum(durations[steady:])], dtype=torch.float64, device=self.device)
        dist.all_reduce(window, op=dist.ReduceOp.MAX)
        seconds = float(window)
        batches = [[pairs[index] for index in batch] for batch in order[steady:]]
        tokens = sum(pair.num_tokens for batch in batches for pair in batch)
        targets = sum(len(pair.target_ids) for batch in batches for pair in batch)
        padded = sum(
            self.architecture.padded_tokens([pairs[index] for index in micro])
            for batch in order[steady:]
            for rank in range(self.resources.ranks)
            for micro in micro_batches(
                batch, rank, self.resources.ranks, self.train.micro_batch_size or len(batch) // self.resources.ranks
            )
        )
        return TrainCost(
            steps=len(durations),
            steady_steps=len(durations) - steady,
            tokens_per_second=tokens / seconds if seconds else None,
            target_tokens_per_second=targets / seconds if seconds else None,
            useful_token_fraction=tokens / padded,
            step_seconds_p50=percentile(durations[steady:], 0.5),
            step_seconds_p90=percentile(durations[steady:], 0.9),
            step_seconds_p99=percentile(durations[steady:], 0.99),
            skipped_steps=skipped_steps,
        )


def mean_loss(
    loss_of: Any,
    pairs: Sequence[Pair],
    architecture: Architecture,
    batch_size: int,
    pad_token_id: int,
    device: torch.device,
) -> float:
    """Mean loss per target token over ``pairs``, shared by all ranks of the process group.

    Every rank makes the same number of forward passes, as ZeRO-3 needs; a rank without a batch of its own repeats one
    that does not count.

    Args:
        loss_of: A :class:`TargetLoss` or an engine around one, in evaluation mode.
        pairs: All pairs; they are shared out here.
        architecture: Of the model.
        batch_size: Pairs per forward pass.
        pad_token_id: For padding.
        device: Of the model.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    by_length = sorted(range(len(pairs)), key=lambda index: pairs[index].num_tokens)
    batches = [by_length[at : at + batch_size] for at in range(0, len(by_length), batch_size)]
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    with torch.no_grad():
        for first in range(0, len(batches), ranks):
            counts = first + rank < len(batches)
            chosen = batches[first + rank] if counts else batches[0]
            batch = architecture.batch([pairs[index] for index in chosen], pad_token_id).to(device)
            loss = loss_of(**vars(batch))
            if counts:
                totals += torch.stack(
                    [loss.double(), torch.tensor(float(len(batch.target_ids)), device=device).double()]
                )
    dist.all_reduce(totals)
    return float(totals[0] / totals[1])


@contextlib.contextmanager
def gathered(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Whole parameters inside the block, also where ZeRO-3 has cut them into shards."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters)):
        yield


def gathered_state(method: Method, model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy on the CPU of what the method stores. A collective operation under ZeRO-3."""
    stored = method.adapter_state(model).keys()
    with gathered([found for name, found in model.named_parameters() if found.requires_grad or name in stored]):
        return {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in method.adapter_state(model).items()
        }
