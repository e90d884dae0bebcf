"""Forecasts the cost of a sweep: FLOPs, memory, time and price. Writes nothing and starts nothing."""

from __future__ import annotations

import functools
import heapq
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from bench.models import base
from bench.models.architecture import Architecture, Pair
from bench.models.tokens import tokenization
from bench.plan.cost_model import forecast_of, untrained_memory, with_decoded_at_once
from bench.plan.devices import Device, known_gpu
from bench.plan.patched import patched_without_weights
from bench.plan.remedies import remedies
from bench.plan.trace import TraceError
from bench.plan.workload import Workload, workload
from bench.plugins.registry import make_task
from bench.schema.record import Forecast, ParameterCounts, TrainCost, TrialResult
from bench.schema.trial import MethodSpec, ModelSpec, TaskSpec, TrialSpec
from bench.task import Split
from bench.tasks.splits import load_splits

# So many pairs of a large training set are tokenised; the others are supposed to be as long.
MOST_PAIRS = 4000


@dataclass(frozen=True)
class PlannedTrial:
    """A trial with the parameters that it trains and its forecast for a device."""

    spec: TrialSpec
    parameters: ParameterCounts
    forecast: Forecast | None  # None where nothing is trained, or nothing can be said
    remark: str = ""  # why nothing can be said
    phases: Mapping[str, int] = field(default_factory=dict)  # phase to bytes on one rank at its peak
    taken_bytes: int = 0  # of the device's memory by what is no tensor, in every phase
    too_large: tuple[str, ...] = ()  # phases that do not fit, the largest first
    remedies: tuple[str, ...] = ()  # settings under which all would
    on_one_cpu: int | None = None  # trials like it that a CPU runs side by side; None: each rank takes a device

    @property
    def fits(self) -> bool:
        """Whether it fits in every phase."""
        return not self.too_large

    @property
    def seconds(self) -> float:
        """From its start to its end; 0 where nothing is known."""
        return (self.forecast.total_seconds or 0.0) if self.forecast is not None else 0.0

    @property
    def device_seconds(self) -> float:
        """Seconds of all devices together, of a CPU its share."""
        return self.seconds * (self.spec.resources.ranks if self.on_one_cpu is None else 1 / self.on_one_cpu)


@dataclass(frozen=True)
class Totals:
    """What a sweep costs as a whole, as far as its trials have a forecast."""

    trials: int
    with_forecast: int
    flops: float
    device_hours: float
    wall_hours: float
    devices: int
    price: float | None


def plan(trials: Sequence[TrialSpec], device: Device) -> list[PlannedTrial]:
    """Forecast every trial on a model without weights and data of which only lengths count.

    Raises:
        TaskError: The data of a task cannot be read.
    """
    return [_planned(spec, device) for spec in trials]


def totals(trials: Sequence[PlannedTrial], devices: int, price_per_hour: float | None) -> Totals:
    """Add up, and pack the trials on so many devices, the longest first."""
    known = [trial for trial in trials if trial.forecast is not None and trial.forecast.total_seconds is not None]
    hours = sum(trial.device_seconds for trial in known) / 3600
    return Totals(
        trials=len(trials),
        with_forecast=len(known),
        flops=sum(trial.forecast.flops for trial in known if trial.forecast is not None),
        device_hours=hours,
        wall_hours=_wall_seconds(known, devices) / 3600,
        devices=devices,
        price=None if price_per_hour is None else hours * price_per_hour,
    )


def _wall_seconds(trials: Sequence[PlannedTrial], devices: int) -> float:
    """Seconds until all trials have ended, when each takes its seats as soon as they are free.

    A GPU is one seat, and each rank takes one. A CPU has as many seats as it runs trials at once.
    """
    seats = max((trial.on_one_cpu or 1 for trial in trials), default=1)
    free_at = [0.0] * (devices * seats)
    for trial in sorted(trials, key=lambda trial: -trial.device_seconds):
        takes = trial.spec.resources.ranks if trial.on_one_cpu is None else seats // trial.on_one_cpu
        if takes > len(free_at):
            return math.inf
        taken = [heapq.heappop(free_at) for _ in range(takes)]
        end = max(taken) + trial.seconds
        for _ in taken:
            heapq.heappush(free_at, end)
    return max(free_at)


def calibrated(device: Device, records: Iterable[TrialResult]) -> tuple[Device, int]:
    """A device whose rates agree with what trials on it took, and the number of those trials.

    Rates of a GPU are divided by the median of measured over forecast step time. An entry of the table stands for
    devices of several names (SXM, PCIe), whose rates differ: of those, the one with most trials counts, which its
    source says. Of a CPU no rate is known without a measurement, which trials replace: forecasts of theirs were made
    with what was measured then.
    """
    if device.kind == "cpu":
        return _calibrated_cpu(device, records)
    ratios_of: dict[str, list[float]] = {}
    for record in records:
        if (found := _forecast_and_cost(record)) is None or not (expected := found[0].step_seconds):
            continue
        forecast, seconds, _ = found
        known = known_gpu(forecast.device)
        if forecast.device == device.name or (known is not None and known.name == device.name):
            ratios_of.setdefault(forecast.device, []).append(seconds / expected)
    if not ratios_of:
        return device, 0
    name = max(sorted(ratios_of), key=lambda name: len(ratios_of[name]))
    ratio = statistics.median(ratios_of[name])
    left_out = "".join(f", without {len(of)} on {other}" for other, of in ratios_of.items() if other != name)
    return (
        replace(
            device,
            efficiency=device.efficiency / ratio,
            kernel_seconds=device.kernel_seconds * ratio,
            step_seconds=device.step_seconds * ratio,
            bytes_per_second=device.bytes_per_second / ratio,
            source=f"{device.source}; step times of {len(ratios_of[name])} trials on {name}{left_out}",
        ),
        len(ratios_of[name]),
    )


def _calibrated_cpu(device: Device, records: Iterable[TrialResult]) -> tuple[Device, int]:
    """A CPU whose rate in each precision is the median of what trials reached with all that a step takes."""
    rates_of: dict[str, list[float]] = {}
    for record in records:
        if (found := _forecast_and_cost(record)) is None or found[0].device != device.name:
            continue
        forecast, seconds, steps = found
        resources = record.spec.resources
        rates_of.setdefault(resources.precision, []).append(forecast.flops / steps / resources.ranks / seconds)
    count = sum(map(len, rates_of.values()))
    known = replace(
        device,
        flops_per_second={precision: statistics.median(rates) for precision, rates in rates_of.items()},
        bytes_per_second=math.inf,
        link_bytes_per_second=math.inf,
        efficiency=1.0,
        kernel_seconds=0.0,
        step_seconds=0.0,
        source=f"step times of {count} trials on {device.name}",
    )
    return (known, count) if count else (device, 0)


def _forecast_and_cost(record: TrialResult) -> tuple[Forecast, float, int] | None:
    """The forecast of a trial that trained, with the seconds of a step and the number of steps that it took."""
    forecast: Forecast | None = getattr(record.outcome, "predicted", None)
    cost: TrainCost | None = getattr(record.outcome, "train", None)
    if forecast is None or cost is None or not cost.step_seconds:
        return None
    return forecast, cost.step_seconds, cost.steps


def _planned(spec: TrialSpec, device: Device) -> PlannedTrial:
    parameters = planned_parameters(spec.method, spec.model)
    forecast, remark = None, "nothing is trained"
    if parameters.trained:
        try:
            forecast, remark = forecast_of(spec, planned_work(spec), device, device.name), ""
        except TraceError as error:
            remark = str(error)
    phases = _phases(spec, parameters, forecast, device)
    taken = device.taken_bytes(spec.resources.ranks)
    limit = device.share_bytes(spec) - taken
    too_large = tuple(sorted((phase for phase, size in phases.items() if size > limit), key=lambda one: -phases[one]))
    found: tuple[str, ...] = ()
    if too_large:
        found = tuple(remedies(spec, lambda changed: _peak(changed, parameters, device), device))
    at_once = device.trials_at_once(spec) if device.kind == "cpu" else None
    return PlannedTrial(spec, parameters, forecast, remark, phases, taken, too_large, found, at_once)


def _phases(spec: TrialSpec, parameters: ParameterCounts, forecast: Forecast | None, device: Device) -> dict[str, int]:
    """Phase to bytes at its peak; without training if its step cannot be traced."""
    if forecast is not None:
        return forecast.phases
    dtype = base.weights_dtype(spec.resources.precision)
    whole = dtype.itemsize * parameters.total if spec.model.stored_in is None else base.stored_bytes(spec.model, dtype)
    work = planned_work(spec)
    return untrained_memory(with_decoded_at_once(spec, work, device), work, whole, device.kind == "cpu")


def _peak(spec: TrialSpec, parameters: ParameterCounts, device: Device) -> int:
    """Bytes at the peak of the largest phase, with what is no tensor."""
    forecast = forecast_of(spec, planned_work(spec), device, device.name) if parameters.trained else None
    return max(_phases(spec, parameters, forecast, device).values()) + device.taken_bytes(spec.resources.ranks)


def planned_work(spec: TrialSpec) -> Workload:
    """The sizes of a trial's work."""
    pairs, num_sources, choices = _pairs(spec.task.model_dump_json(), spec.model, spec.splits)
    decoded = num_sources.get(spec.scored_split, 0) if spec.scored_split else 0
    return workload(spec, _architecture(spec.model), pairs, decoded, choices)


@functools.lru_cache(maxsize=8)
def _architecture(model: ModelSpec) -> Architecture:
    return base.architecture(model)


@functools.lru_cache(maxsize=8)
def _pairs(
    task_json: str, model: ModelSpec, wanted: tuple[Split, ...]
) -> tuple[dict[Split, list[Pair]], dict[Split, int], int]:
    """Pairs and the number of sources by split, and the number of choices of a source."""
    task = make_task(TaskSpec.model_validate_json(task_json))
    splits = load_splits(task, wanted)
    tokens = tokenization(model, task.config)
    found: dict[Split, list[Pair]] = {}
    for split, examples in splits.items():
        step = max(1, len(examples) // MOST_PAIRS)
        references = None if split == "train" else task.config.loss_references
        sample = tokens.pairs(examples[::step], references)
        found[split] = [sample[at % len(sample)] for at in range(len(sample) * step)] if step > 1 else sample
    choices = max(len(example.choices) for examples in splits.values() for example in examples)
    return found, {split: len(examples) for split, examples in splits.items()}, choices


def planned_parameters(method: MethodSpec, model: ModelSpec, dtype: torch.dtype = torch.float32) -> ParameterCounts:
    """Parameters of a method on a model, from the model's configuration alone.

    Args:
        method: What is trained.
        model: What is patched.
        dtype: Of the weights, of which the counts do not depend; methods refuse some models in fp16.
    """
    return patched_without_weights(method, model, dtype).counts


def needs_source_lengths(method: MethodSpec, model: ModelSpec) -> bool:
    """Whether the patched model has to be told where the source of each row ends."""
    return patched_without_weights(method, model).takes_source_lengths
