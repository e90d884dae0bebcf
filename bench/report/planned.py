"""Forecasts beside measurements, so that everybody sees how far to trust the next plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.report.column import ABSENT, size
from bench.report.configurations import Comparison, Configuration
from bench.schema.trial import JsonDict

HEADING = ("method", "TFLOP", "GFLOP/s", "memory planned", "measured", "error", "step planned", "measured", "error")
TITLE = "Plan against measurement"
NOTE = (
    "Of configurations that cost alike, one. FLOPs are those of all training steps by PyTorch's formulas, the rate is "
    "that of the step that was measured. Memory is that of training; on a CPU beyond what was there before the model. "
    "Steps: the mean, of records before 2026-11-30 the median; on a busy machine the plan cannot be right."
)


@dataclass(frozen=True)
class PlannedRow:
    """Forecast and measurement of one configuration. None: not known."""

    configuration: Configuration
    flops: float
    memory_planned_bytes: float
    memory_measured_bytes: float | None
    step_planned_seconds: float | None
    step_measured_seconds: float | None

    @property
    def flops_per_second(self) -> float | None:
        """FLOPs per second of all ranks together while they train."""
        steps = self.configuration.mean("steps")
        if not self.step_measured_seconds or steps is None:
            return None
        return self.flops / steps / self.step_measured_seconds


def with_different_costs(configurations: Sequence[Configuration]) -> list[Configuration]:
    """One configuration of each set that differs in nothing that costs time or memory."""
    found: dict[tuple[object, ...], Configuration] = {}
    for configuration in configurations:
        spec = configuration.results[0].spec
        found.setdefault((spec.configuration_class, spec.train.steps, spec.train.epochs), configuration)
    return list(found.values())


def forecasts(comparison: Comparison) -> list[PlannedRow]:
    """For each configuration that has a forecast, best first."""
    found = []
    for configuration in with_different_costs(comparison.scored):
        flops, memory = configuration.mean("planned_flops"), configuration.mean("planned_memory_bytes")
        if flops is not None and memory is not None:
            on_cpu = any(outcome.ranks[0].memory_method != "cuda_allocated" for _, outcome in configuration.completed)
            found.append(
                PlannedRow(
                    configuration,
                    flops,
                    memory,
                    configuration.mean("memory_over_baseline_bytes" if on_cpu else "peak_memory_bytes"),
                    configuration.mean("planned_step_seconds"),
                    _step_seconds(configuration),
                )
            )
    return found


def _step_seconds(configuration: Configuration) -> float | None:
    """Mean of a step; of older records the median."""
    mean = configuration.mean("step_seconds_mean")
    return configuration.mean("step_seconds_p50") if mean is None else mean


def forecast_rows(found: Sequence[PlannedRow]) -> list[list[str]]:
    """A row for each, under :data:`HEADING`."""
    return [
        [
            one.configuration.name,
            f"{one.flops / 1e12:,.3g}",
            ABSENT if one.flops_per_second is None else f"{one.flops_per_second / 1e9:,.0f}",
            *_pair(one.memory_planned_bytes, one.memory_measured_bytes, size),
            *_pair(one.step_planned_seconds, one.step_measured_seconds, lambda value: f"{value:.3g} s"),
        ]
        for one in found
    ]


def forecast_document(found: Sequence[PlannedRow]) -> list[JsonDict]:
    """The rows for report.json, unrounded."""
    return [
        {
            "cell": row.configuration.name,
            **{key: value for key, value in vars(row).items() if key != "configuration"},
            "flops_per_second": row.flops_per_second,
        }
        for row in found
    ]


def _pair(planned: float | None, measured: float | None, show: Callable[[float], str]) -> list[str]:
    error = ABSENT if planned is None or not measured else f"{planned / measured - 1:+.0%}"
    return [ABSENT if planned is None else show(planned), ABSENT if measured is None else show(measured), error]
