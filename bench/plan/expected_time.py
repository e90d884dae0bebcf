"""How long trials should take in proportion to each other, by the planner's arithmetic, without tracing their steps.

Traces take seconds for each configuration, while nothing may disturb what is measured. The sizes of model, data and
what is trained are known already, and proportions are all that is asked for: seconds are those of a machine that does
not exist, and :mod:`bench.driver.pace` learns what this one makes of them.
"""

from __future__ import annotations

from dataclasses import replace

from bench.plan.cost_model import forecast_of
from bench.plan.devices import Device
from bench.plan.plan import planned_parameters, planned_work
from bench.plan.step_costs import StepCosts
from bench.plan.trace import StepTrace
from bench.plan.workload import Workload
from bench.schema.record import ParameterCounts
from bench.schema.trial import TrialSpec

# Of a step of a small model, forward and backward.
KERNELS = 2000
SOME_DEVICE = Device(
    name="some device",
    kind="cpu",
    flops_per_second={"fp32": 1e11, "bf16": 1e11, "fp16": 1e11},
    bytes_per_second=2e10,
    memory_bytes=0,
    source="proportions alone count",
    start_seconds=4.0,
)


def expected_seconds(spec: TrialSpec) -> float:
    """Seconds of a trial from its launch to its end, on an imaginary machine.

    Raises:
        TaskError: The data cannot be read.
    """
    work, counts = planned_work(spec), planned_parameters(spec.method, spec.model)
    whole = forecast_of(spec, work, SOME_DEVICE, SOME_DEVICE.name, _outline(work, counts))
    total, training = whole.total_seconds or 0.0, whole.train_seconds or 0.0
    return total if counts.trained else total - training


def _outline(work: Workload, counts: ParameterCounts) -> StepCosts:
    """Two FLOPs for every weight and token forward, two back to the input, and two more where the weight is trained."""
    rows = max(micro.rows for micro in work.micro_batches)
    passes = 2 + counts.trained_fraction
    tokens = round(rows * (work.source_tokens + work.target_tokens)) + 1
    trace = StepTrace(
        rows=rows,
        padded_tokens=tokens,
        target_tokens=max(1, round(rows * work.target_tokens)),
        attention_flops=0.0,
        vocabulary_flops=0.0,
        other_flops=2.0 * passes * counts.total * tokens,
        forward_fraction=1 / passes,
        kernels=KERNELS,
        peak_bytes=0,
        peak_without_gradients_bytes=0,
        logits_bytes=0,
        trained_elements=max(1, counts.trained),
        stored_elements=counts.stored,
        gradient_bytes=4 * max(1, counts.trained),
        state_bytes=8.0 * counts.trained,
        weight_bytes=4 * counts.total,
        largest_layer_bytes=0,
        largest_gradient_bytes=0,
        products={},
    )
    return StepCosts(replace(trace, padded_tokens=2 * tokens, other_flops=2 * trace.other_flops), trace)
