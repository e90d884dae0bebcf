"""The cost of any micro-batch of a trial, computed from two traces of its step at different lengths."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from importlib.metadata import version
from typing import NamedTuple

from bench.measure.provenance import ANSWERING, sources_sha256
from bench.models import base
from bench.models.architecture import Pair
from bench.plan.trace import StepTrace, StepTracer
from bench.plan.workload import MicroBatch, Workload
from bench.schema.digests import sha256_of_json
from bench.schema.trial import DecodeSpec, ResourceSpec, TrainSpec, TrialSpec
from bench.store.files import write_atomically

# Traced lengths are multiples of this, so that trials that differ only in their data's order share a trace.
ROUNDING = 8


class Products(NamedTuple):
    """How many products in half precision a step has that differ in shape."""

    fixed: int  # whatever the length
    forward: int  # of one length
    of_length: int  # forward and backward together
    of_targets: int  # of one number of target tokens; a forward pass alone has one of them


@dataclass(frozen=True)
class StepCosts:
    """FLOPs and transient bytes of one micro-batch of given size.

    Logits grow with the target tokens as far as they are not computed in chunks, attention with tokens times length,
    everything else with tokens, over a constant (what prompts cost however long the texts are).
    """

    small: StepTrace
    large: StepTrace

    def flops(self, micro: MicroBatch) -> float:
        """FLOPs of forward and backward pass together."""
        small, large = self.small, self.large
        per_target = large.vocabulary_flops / large.target_tokens
        small_attention = small.attention_flops / small.padded_tokens
        large_attention = large.attention_flops / large.padded_tokens
        attention = _line((_length(small), small_attention), (_length(large), large_attention), micro.length)
        other = _line(
            (small.padded_tokens, small.other_flops), (large.padded_tokens, large.other_flops), micro.padded_tokens
        )
        return per_target * micro.target_tokens + attention * micro.padded_tokens + other

    def logits_bytes(self, micro: MicroBatch) -> float:
        """At the peak of the step: chunks of logits have one size, and a trained head has a gradient of its own."""
        small, large = ((trace.target_tokens, trace.logits_bytes) for trace in (self.small, self.large))
        return max(0.0, _line(small, large, micro.target_tokens))

    def activation_bytes(self, micro: MicroBatch) -> float:
        """All else at the peak of the step, but for gradients of parameters."""
        points = [
            (trace.padded_tokens, trace.peak_without_gradients_bytes - trace.logits_bytes)
            for trace in (self.small, self.large)
        ]
        return _line(points[0], points[1], micro.padded_tokens)

    def growing_gradient_bytes(self, micro: MicroBatch) -> float:
        """Gradients that are complete at the peak, where they arise while activations go."""
        points = [
            (trace.padded_tokens, trace.peak_bytes - trace.peak_without_gradients_bytes)
            for trace in (self.small, self.large)
        ]
        return max(0.0, _line(points[0], points[1], micro.padded_tokens))

    @functools.cached_property
    def products(self) -> Products:
        """Those of both traces are there at any length, and the others anew for each.

        Logits are computed in chunks, whose sizes follow the number of target tokens.
        """
        places = ("forward", "backward")
        shared = {name for place in places for name in self.small.products.get(place, ())}
        found = [set(self.large.products.get(place, ())) for place in places]
        forward, backward = (len(names - shared) for names in found)
        return Products(
            fixed=sum(len(names & shared) for names in found),
            forward=forward,
            of_length=forward + backward,
            of_targets=len(self.small.products.get("vocabulary", ())),
        )


def _length(trace: StepTrace) -> float:
    return trace.padded_tokens / trace.rows


def _line(one: tuple[float, float], other: tuple[float, float], x: float) -> float:
    """The straight line through two points, at x."""
    slope = (other[1] - one[1]) / (other[0] - one[0])
    return one[1] + slope * (x - one[0])


def step_costs(spec: TrialSpec, work: Workload) -> StepCosts:
    """Trace the step of a trial at two lengths around those of its data; known traces are read from the cache.

    Raises:
        TraceError: The method's step looks at values.
    """
    source, target = (_rounded(tokens) for tokens in (work.source_tokens, work.target_tokens))
    rows = max(micro.rows for micro in work.micro_batches)
    train, resources = spec.train, spec.resources
    # Other settings do not change the step, so that trials that differ in learning rate, length or seed share a trace.
    of_consequence = {
        "train": TrainSpec(
            gradient_checkpointing=train.gradient_checkpointing,
            label_smoothing=train.label_smoothing,
            dropout=train.dropout,
            optimizer=train.optimizer,
            optimizer_options=train.optimizer_options,
        ),
        "resources": ResourceSpec(precision=resources.precision),
        "decode": DecodeSpec(),
    }
    same = spec.measured.model_copy(update={"seed": 0, "label": "", "compares_merged": True, **of_consequence})
    return _step_costs(same.model_dump_json(), rows, source, target)


def _rounded(tokens: float) -> int:
    return max(ROUNDING, ROUNDING * round(tokens / ROUNDING))


@functools.lru_cache(maxsize=256)
def _step_costs(spec_json: str, rows: int, source: int, target: int) -> StepCosts:
    spec = TrialSpec.model_validate_json(spec_json)
    dtype = base.weights_dtype(spec.resources.precision)
    what = [
        *(spec.method.target, spec.method.config, spec.model.model_dump(), str(dtype), rows, source, target),
        *(spec.train.gradient_checkpointing, spec.train.label_smoothing, spec.train.dropout),
        *(spec.train.optimizer, spec.train.optimizer_options),
        *(sources_sha256(*ANSWERING, "bench/plan"), version("torch"), version("transformers")),
    ]
    digest = sha256_of_json(what)
    path = base.cache_path() / "traces" / f"{digest}.json"
    # The hash of our sources says nothing about a plugin's.
    shipped = spec.method.target.startswith("methods.") and spec.optimizer is None
    if shipped and path.is_file():
        return StepCosts(*(StepTrace(**trace) for trace in json.loads(path.read_text(encoding="utf-8"))))
    tracer = StepTracer(spec.method, spec.model, spec.train, dtype)
    traces = [tracer.trace([Pair([0] * factor * source, [0] * factor * target)] * rows) for factor in (1, 2)]
    if shipped:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps([dataclasses.asdict(trace) for trace in traces]))
    return StepCosts(*traces)
