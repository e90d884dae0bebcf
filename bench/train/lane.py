"""One trial's part in a training loop: its trained tensors, order of data, progress and results."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from bench.method import Method, copy_state, trained_parameters
from bench.models.adapter_files import BYTES, StreamedState
from bench.models.architecture import Pair
from bench.models.masters import exact, exact_value, round_masters, stepped_for
from bench.optimizers.optimizer import scored_weights
from bench.schema.record import DevPoint, TrainCost, TrainPoint
from bench.schema.trial import JsonDict, TrainSpec
from bench.shards.slices import place
from bench.train.checkpoint import Checkpoint, copy_on_cpu, restore_training_state, training_state
from bench.train.gradient_watch import GradientWatch
from bench.train.optimizer import learning_rate_factor, make_optimizer, sound_groups
from bench.train.order import num_steps, training_order

# A state that ZeRO 3 has cut into slices is gathered as a whole up to so many bytes, and else tensor by tensor.
LARGE_BYTES = 2**26


class Diverged(ArithmeticError):
    """A loss or a gradient became infinite or not a number."""


@dataclass
class Trained:
    """The result of training."""

    state: Mapping[str, torch.Tensor]
    best: DevPoint
    train_curve: list[TrainPoint]
    dev_curve: list[DevPoint]
    cost: TrainCost


@dataclass(eq=False)
class Lane:
    """A trial with its optimiser, schedule, order of data, curves and best state.

    It ends after ``stop_after_steps``, with the schedule and the order of the full length.
    """

    method: Method
    model: nn.Module
    train: TrainSpec
    seed: int
    progress: Callable[[JsonDict], None]
    stop_after_steps: int | None = None
    state_folder: Path | None = None  # where rank 0 keeps a state that is too large for memory
    sealed_state: str | None = field(default=None, init=False)  # the folder of the state that a checkpoint names
    order: list[list[int]] = field(default_factory=list, init=False)  # indices of the pairs of each step
    best: DevPoint | None = field(default=None, init=False)
    state: Mapping[str, torch.Tensor] = field(default_factory=dict, init=False)
    train_curve: list[TrainPoint] = field(default_factory=list, init=False)
    dev_curve: list[DevPoint] = field(default_factory=list, init=False)
    diverged: Diverged | None = field(default=None, init=False)
    continued_after_steps: list[int] = field(default_factory=list, init=False)  # where attempts took over from others
    optimizer: torch.optim.Optimizer = field(init=False)
    scheduler: torch.optim.lr_scheduler.LRScheduler = field(init=False)
    device: torch.device = field(init=False)
    watch: GradientWatch | None = field(default=None, init=False)
    _pending: list[tuple[torch.Tensor, float]] = field(default_factory=list, init=False)
    _idle: Collection[nn.Parameter] = field(default=(), init=False)  # trained tensors that this step leaves alone

    def begin(self, pairs: Sequence[Pair], device: torch.device) -> None:
        """Draw the order of the data, and make the optimiser and its schedule.

        Raises:
            MethodError: The parameter groups of the method are not those of what it trains.
        """
        steps = num_steps(self.train, len(pairs))
        order = training_order([pair.num_tokens for pair in pairs], self.train.batch_size, steps, self.seed)
        self.order = order[: self.stop_after_steps]
        self.device = device
        place(self.model, device)
        self.optimizer = make_optimizer(self.train, self.model, sound_groups(self.method, self.model))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, learning_rate_factor(self.train, steps))

    @property
    def done(self) -> int:
        """The number of steps that earlier attempts have made."""
        return self.continued_after_steps[-1] if self.continued_after_steps else 0

    @property
    def steps(self) -> int:
        """The number of steps of this trial; fewer than planned if it has diverged."""
        return len(self.order)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step for the first group of parameters."""
        return float(self.optimizer.param_groups[0]["lr"])

    def divisor(self, batch: Sequence[Pair]) -> int:
        """The number by which the summed loss of a step's batch is divided before its gradient is computed."""
        return num_targets(batch) if self.train.loss_reduction == "token_mean" else len(batch)

    def evaluates_after(self, step: int) -> bool:
        """Whether the dev loss is due after this step, from 1."""
        return step == self.steps or step % (self.train.evaluate_every_steps or self.steps) == 0

    @property
    def first_kept(self) -> int:
        """The step from which on a state may be the best one: before it AdaLoRA, say, has ranks still to cut."""
        needed: float = self.method.config.needed_steps[0]
        return min(math.ceil(needed), self.steps)

    def passes_begin(self, step: int) -> None:
        """Have the passes of this step compute no gradient for what the method leaves idle in it."""
        self._idle = self.method.idle(self.model, step)
        for parameter in self._idle:
            parameter.requires_grad_(False)
            self.optimizer.state.pop(stepped_for(parameter), None)

    def require_graph(self, loss: torch.Tensor) -> None:
        """Check that a loss depends on a trained tensor, before its gradient is computed.

        Raises:
            MethodError: It does not.
        """
        if self.watch is not None:
            self.watch.require_graph(loss)

    def gradients_came(self, step: int) -> None:
        """Check that trained tensors have gradients, before the optimiser steps. Collective in the first steps.

        Raises:
            MethodError: Some trained tensors have none.
        """
        for parameter in self._idle:
            parameter.requires_grad_(True)
            stepped_for(parameter).grad = None  # which ranks may have summed to zeros, that decay would count
        if self.watch is not None:
            self.watch.after_backward(self.learning_rate, last=step == self.steps, idle=self._idle)

    def step_was_skipped(self) -> None:
        """The engine has left the trained tensors where they were, because gradients overflowed."""
        if self.watch is not None:
            self.watch.step_was_skipped()

    def stepped(self, step: int, loss: torch.Tensor, learning_rate: float) -> None:
        """Record a step. ``loss`` is this rank's part of the batch's mean loss."""
        self.method.after_step(self.model, step)
        self._pending.append((loss, learning_rate))

    def report(self, pairs: Sequence[Pair], durations: Sequence[float]) -> None:
        """Check and report the losses since the last report. ``durations`` are the seconds of all steps."""
        losses = torch.stack([loss for loss, _ in self._pending])
        dist.all_reduce(losses)
        seconds, tokens, step = sum(durations[-len(losses) :]), 0, len(self.train_curve)
        for loss, (_, learning_rate) in zip(losses.tolist(), self._pending, strict=True):
            step += 1
            if not math.isfinite(loss):
                self._diverge(step, f"the loss of step {step} is {loss} (learning rate {learning_rate:g})")
                return
            self.train_curve.append(TrainPoint(step=step, loss=loss, learning_rate=learning_rate))
            tokens += sum(pairs[index].num_tokens for index in self.order[step - 1])
        self.progress(
            {
                "step": step,
                "steps": self.steps,
                "loss": self.train_curve[-1].loss,
                "tokens_per_second": tokens / seconds,
                "remaining_seconds": (self.steps - step) * seconds / len(losses),
            }
        )
        self._pending.clear()

    def evaluated(self, step: int, loss: float) -> None:
        """Record the dev loss after this step, and keep the state with the lowest one of those that count."""
        if not math.isfinite(loss):
            self._diverge(step, f"the dev loss after step {step} is {loss}")
            return
        point = DevPoint(step=step, loss=loss)
        self.dev_curve.append(point)
        if step >= self.first_kept and (self.best is None or loss < self.best.loss):
            self.best, self.state = point, self._state_now(step)

    @contextlib.contextmanager
    def scored_weights(self) -> Iterator[None]:
        """Inside the block the model has the weights that are validated and stored: those that are trained, or others.

        Some optimisers take gradients at one point and score another one, such as the average of all steps.
        """
        with scored_weights(self.optimizer) as others:
            if others:
                round_masters(self.model)
            yield
        if others:
            round_masters(self.model)

    def trained(self, cost: TrainCost) -> Trained:
        """The result at the end of training."""
        if self.best is None:
            raise RuntimeError("training ended without an evaluation")
        return Trained(self.state, self.best, self.train_curve, self.dev_curve, cost)

    def checkpoint(self, step: int, device: torch.device, by_engine: bool) -> Checkpoint:
        """Everything that the next step depends on, except DeepSpeed's own files. A collective operation.

        The order of the data is not in it: it follows from the trial.
        """
        tensors, facts = training_state(self.model, self.optimizer, self.scheduler, device, by_engine)
        if isinstance(self.state, StreamedState):
            shapes = {name: list(shape) for name, shape in self.state.shapes.items()}
            facts["best_files"] = {"folder": self.state.folder.name, "shapes": shapes}
        else:
            tensors |= {f"best/{name}": tensor for name, tensor in self.state.items()}
        facts["best"] = self.best.model_dump() if self.best else None
        facts["train_curve"] = [point.model_dump() for point in self.train_curve]
        facts["dev_curve"] = [point.model_dump() for point in self.dev_curve]
        facts["continued_after_steps"] = self.continued_after_steps
        untrained = self._stored_untrained()
        with gathered(untrained.values()):
            tensors |= {f"untrained/{name}": copy_on_cpu(tensor) for name, tensor in untrained.items()}
        facts["watch"] = None if self.watch is None else self.watch.facts()
        return Checkpoint(step, tensors, facts)

    def continue_from(self, checkpoint: Checkpoint, device: torch.device, by_engine: bool) -> None:
        """Restore a checkpoint whose DeepSpeed files are loaded, so that the next step is the one after it."""
        restore_training_state(checkpoint, self.model, self.optimizer, self.scheduler, device, by_engine)
        untrained = self._stored_untrained()
        with gathered(untrained.values(), changed=True):
            copy_state(untrained, checkpoint.part("untrained"))
        if self.watch is not None and checkpoint.facts["watch"] is not None:
            self.watch.take_up(checkpoint.facts["watch"])
        self.train_curve = [TrainPoint.model_validate(point) for point in checkpoint.facts["train_curve"]]
        self.dev_curve = [DevPoint.model_validate(point) for point in checkpoint.facts["dev_curve"]]
        if checkpoint.facts["best"] is not None:
            self.best, self.state = DevPoint.model_validate(checkpoint.facts["best"]), checkpoint.part("best")
        if (files := checkpoint.facts.get("best_files")) is not None and self.state_folder is not None:
            shapes = {name: torch.Size(shape) for name, shape in files["shapes"].items()}
            self.state = StreamedState(self.state_folder / files["folder"], shapes, device)
            self.sealed_state = files["folder"]
        self.continued_after_steps = [*checkpoint.facts["continued_after_steps"], checkpoint.step]

    def _stored_untrained(self) -> dict[str, torch.Tensor]:
        """The model's own tensors that are stored with the trained ones, such as a start that is taken off again.

        Training examples or a factorisation of the weights may have made them, which on another machine, or at another
        time, would have other signs.
        """
        stored = self.method.adapter_state(self.model).keys()
        frozen = [(name, tensor) for name, tensor in self.model.named_parameters() if not tensor.requires_grad]
        return {name: tensor for name, tensor in (*frozen, *self.model.named_buffers()) if name in stored}

    def _state_now(self, step: int) -> Mapping[str, torch.Tensor]:
        """The tensors that the method stores, in memory, or in files of this step if ranks hold slices of much."""
        shapes = large_shapes(self.method, self.model) if self.state_folder is not None else None
        if shapes is None or self.state_folder is None:
            return gathered_state(self.method, self.model)
        state = StreamedState(self.state_folder / f"state-{step:08d}", shapes, self.device)
        state.write(gathered_one_by_one(self.model))
        # One that a checkpoint names is removed with that checkpoint.
        if isinstance(self.state, StreamedState) and self.state.folder.name != self.sealed_state:
            self.state.remove()
        return state

    def _diverge(self, step: int, why: str) -> None:
        self.diverged = Diverged(why)
        self.order = self.order[:step]


def num_targets(pairs: Sequence[Pair]) -> int:
    """The number of target tokens of these pairs."""
    return sum(len(pair.target_ids) for pair in pairs)


@contextlib.contextmanager
def gathered(tensors: Iterable[torch.Tensor], changed: bool = False) -> Iterator[None]:
    """Inside the block these tensors are whole, even if ZeRO-3 has cut them into shards.

    Args:
        tensors: Parameters and buffers, which are never cut.
        changed: Whether what rank 0 writes into them stays.
    """
    cut = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
    if not cut:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(cut, modifier_rank=0 if changed else None):
        yield


def gathered_state(method: Method, model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy on the CPU of the tensors that the method stores, from fp32 masters if there are any.

    A collective operation under ZeRO.
    """
    stored = method.adapter_state(model).keys()
    parameters = [tensor for name, tensor in model.named_parameters() if tensor.requires_grad or name in stored]
    with gathered(parameters), exact(model):
        return {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in method.adapter_state(model).items()
        }


def large_shapes(method: Method, model: nn.Module) -> dict[str, torch.Size] | None:
    """Shapes of the stored tensors, if ZeRO 3 has cut them and they are large; else None.

    It is also None for a method that computes stored tensors from trained ones, because that needs all of them at once.
    """
    trained = dict(trained_parameters(model))
    shapes = {name: getattr(parameter, "ds_shape", None) for name, parameter in trained.items()}
    cut = {name: shape for name, shape in shapes.items() if shape is not None}
    large = BYTES * sum(shape.numel() for shape in cut.values()) > LARGE_BYTES
    as_trained = type(method).adapter_state is Method.adapter_state
    return cut if large and as_trained and len(cut) == len(trained) else None


def gathered_one_by_one(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and values of trained tensors, from fp32 masters if there are any. Collective, tensor by tensor."""
    for name, parameter in trained_parameters(model):
        with gathered([parameter]):
            yield name, exact_value(parameter)
