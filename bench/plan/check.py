"""Forecasts beside measurements: one real training step of every configuration on this machine's processor."""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.measure.provenance import cpu_name
from bench.models import base
from bench.models.architecture import Batch, Pair
from bench.models.checkpointed_activations import compute_activations_twice
from bench.models.masters import compute_in
from bench.models.shared_heads import sharing_heads
from bench.plan.cost_model import passes_seconds
from bench.plan.devices import measured_cpu
from bench.plan.plan import planned_work
from bench.plan.step_costs import StepCosts, step_costs
from bench.plan.trace import UNCOUNTED, following
from bench.plan.workload import MicroBatch
from bench.plugins.registry import load_method, make_method
from bench.schema.labels import names
from bench.schema.trial import TrialSpec
from bench.train.loss import TargetLoss

TIMED_STEPS = 3


@dataclass(frozen=True)
class Checked:
    """One micro-batch of one configuration: its forecast, and what PyTorch counted."""

    name: str
    rows: int
    length: int
    forecast_flops: float
    counted_flops: float
    forecast_bytes: float
    counted_bytes: float
    forecast_seconds: float
    seconds: float

    @property
    def flops_error(self) -> float:
        return self.forecast_flops / self.counted_flops - 1

    @property
    def seconds_error(self) -> float:
        return self.forecast_seconds / self.seconds - 1

    @property
    def bytes_error(self) -> float:
        return self.forecast_bytes / self.counted_bytes - 1


def check(trials: Iterable[TrialSpec]) -> Iterator[Checked]:
    """Run one forward and backward pass of each configuration, at a length between those that were traced.

    FLOPs are those of ``torch.utils.flop_counter``, told about the attention kernel of CPUs and the product of mixtures
    of experts. Bytes are the peak of live tensors that the step makes, gradients included.
    """
    kinds = {
        spec.configuration_class: spec for spec in reversed(list(trials)) if load_method(spec.method.target).trains
    }
    specs = list(reversed(kinds.values()))
    for spec, name in zip(specs, names(specs), strict=True):
        yield _checked(spec, name)


def _checked(spec: TrialSpec, name: str) -> Checked:
    work = planned_work(spec)
    costs = step_costs(spec, work)
    largest = max(work.micro_batches, key=lambda micro: micro.padded_tokens)
    architecture = base.architecture(spec.model)
    target = max(1, largest.target_tokens // largest.rows)
    source = max(2, round(largest.length) - target)
    # One row is shorter, because transformers leaves the mask out of a batch without padding, which takes less memory.
    pairs = [Pair([5] * source, [5] * target)] * (largest.rows - 1) + [Pair([5] * (source - 1), [5] * target)]
    micro = MicroBatch(largest.rows, architecture.padded_tokens(pairs), target * largest.rows)
    loss, batch = _real_step(spec, pairs)
    with sharing_heads(loss.model):  # as training does
        flops, peak = _counted(loss, batch)
        seconds = _timed(loss, batch)
    return Checked(
        name=name,
        rows=micro.rows,
        length=round(micro.length),
        forecast_flops=costs.flops(micro),
        counted_flops=flops,
        forecast_bytes=_peak_bytes(costs, micro),
        counted_bytes=peak,
        forecast_seconds=passes_seconds(
            spec,
            costs,
            costs.flops(micro),
            1,
            measured_cpu(torch.get_num_threads(), spec.resources.precision, tokens=micro.padded_tokens),
        ),
        seconds=seconds,
    )


def _peak_bytes(costs: StepCosts, micro: MicroBatch) -> float:
    return costs.activation_bytes(micro) + costs.logits_bytes(micro) + costs.growing_gradient_bytes(micro)


def _real_step(spec: TrialSpec, pairs: Sequence[Pair]) -> tuple[TargetLoss, Batch]:
    method = make_method(spec.method, base.load_tokenizer(spec.model))
    dtype = base.weights_dtype(spec.resources.precision)
    model: Any = method.patch(base.load_model(spec.model, dtype, spec.train.dropout).to("cpu"))
    compute_in(dtype, model)
    if spec.train.gradient_checkpointing:
        compute_activations_twice(model)
    return TargetLoss(model, spec.train.label_smoothing).train(), base.architecture(spec.model).batch(pairs, 0)


def _counted(loss: TargetLoss, batch: Batch) -> tuple[int, int]:
    formulas = {kernel: inspect.unwrap(formula) for kernel, formula in UNCOUNTED.items()}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter, following(loss.model) as follower:
        loss.of(batch).backward()  # type: ignore[no-untyped-call]
    return counter.get_total_flops(), follower.peak


def _timed(loss: TargetLoss, batch: Batch) -> float:
    """Median of a few more passes, without counting."""
    taken = []
    for _ in range(TIMED_STEPS):
        loss.zero_grad()
        started = time.perf_counter()
        loss.of(batch).backward()  # type: ignore[no-untyped-call]
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def markdown(sweep: str, rows: Sequence[Checked]) -> str:
    """The comparison as a Markdown table."""
    threads = torch.get_num_threads()
    device = f"{cpu_name()} with {threads} thread{'s' * (threads != 1)}"
    from bench.report.markdown import table

    heading = [
        "configuration",
        "rows x tokens",
        "GFLOP planned",
        "counted",
        "error",
        "MiB planned",
        "live",
        "error",
        "s planned",
        "taken",
        "error",
    ]
    body = [
        [
            row.name,
            f"{row.rows} x {row.length}",
            f"{row.forecast_flops / 1e9:,.2f}",
            f"{row.counted_flops / 1e9:,.2f}",
            f"{row.flops_error:+.2%}",
            f"{row.forecast_bytes / 2**20:,.1f}",
            f"{row.counted_bytes / 2**20:,.1f}",
            f"{row.bytes_error:+.1%}",
            f"{row.forecast_seconds:.3f}",
            f"{row.seconds:.3f}",
            f"{row.seconds_error:+.0%}",
        ]
        for row in rows
    ]
    note = (
        "One micro-batch, forward and backward, at the greatest length of the data. Counted: torch.utils.flop_counter, "
        "told about the attention kernel of CPUs. Live: the peak of tensors that the step makes, gradients included. "
        f"Taken: the median of {TIMED_STEPS} passes, on {device}."
    )
    return f"# Plan of {sweep} against measurements\n\n{table(heading, body)}\n\n{note}"
