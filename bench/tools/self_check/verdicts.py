"""Judges the trials on a device: one line for each thing that was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from bench.report.readers import peak_of_training, peak_over_baseline
from bench.schema.record import Completed, TrialResult
from bench.schema.trial import JsonDict, Spec
from bench.tools.self_check.trials import PLAIN, Variant, losses

# By how much losses may differ from those in fp32, as a fraction: the rounding of a step grows over the steps.
LIMITS = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 5e-2, "nf4": 0.3}
# By which fraction a forecast of memory may differ from what was measured.
MEMORY_LIMIT = 0.15

Verdict = Literal["as it should be", "differs", "failed", "measured", "not tried"]
Records = Mapping[str, Sequence[TrialResult]]


class Shown(Spec):
    """One thing that was measured."""

    what: str
    verdict: Verdict
    found: str
    numbers: JsonDict = Field(default_factory=dict)

    @property
    def is_bad(self) -> bool:
        """Whether something does not work as it should."""
        return self.verdict in ("differs", "failed")


def shown(variant: Variant, records: Records) -> list[Shown]:
    """The lines about a variant, whose trials are compared with those of earlier variants."""
    if variant.without:
        return [Shown(what=variant.name, verdict="not tried", found=variant.without)]
    own = records[variant.name]
    for record in own:
        if not isinstance(record.outcome, Completed):
            return [Shown(what=variant.name, verdict="failed", found=_why(record))]
    lines = [_equality(variant, own, records)]
    if variant.seeds == 1:
        lines += [*_forecast(variant, own[0]), _decoding(variant, own[0])]
    return lines


def _equality(variant: Variant, own: Sequence[TrialResult], records: Records) -> Shown:
    plain = records.get(PLAIN, ())
    rates = {"step_seconds": _step_seconds(own[0]), "skipped_steps": _skipped(own[0])}
    if variant.seeds > 1:
        rates["trial_steps_per_second"] = variant.seeds / seconds if (seconds := rates["step_seconds"]) else None
    if variant.name == PLAIN or not plain or not isinstance(plain[0].outcome, Completed):
        return Shown(what=f"{variant.name}: training", verdict="measured", found=_rates_text(rates), numbers=rates)
    difference = max(
        abs(one - other) / max(1.0, abs(one)) for one, other in zip(losses(plain[0]), losses(own[0]), strict=True)
    )
    precision = variant.resources.get("precision", "fp32")
    limit = LIMITS[str(variant.model.get("quantization") or precision)]
    return Shown(
        what=f"{variant.name}: training beside {PLAIN}",
        verdict="as it should be" if difference <= limit else "differs",
        found=f"losses differ by at most {difference:.2g} (allowed {limit:g}); {_rates_text(rates)}",
        numbers={"largest_difference": difference, "limit": limit, **rates},
    )


def _forecast(variant: Variant, record: TrialResult) -> list[Shown]:
    """Compares memory with its forecast, and judges it on GPUs only: on a CPU nearly all of it is libraries."""
    outcome = record.outcome
    assert isinstance(outcome, Completed)
    if outcome.predicted is None or outcome.train is None:
        return []
    planned = outcome.predicted.peak_memory_bytes
    on_gpu = outcome.ranks[0].memory_method.startswith("cuda")
    measured = peak_of_training(outcome) if on_gpu else peak_over_baseline(outcome)
    assert isinstance(measured, int)
    ratio = planned / measured if measured > 0 else None
    seconds, expected = _step_seconds(record), outcome.predicted.step_seconds
    bad = on_gpu and ratio is not None and abs(ratio - 1) > MEMORY_LIMIT
    numbers = {
        "planned_bytes": planned,
        "measured_bytes": measured,
        "planned_step_seconds": expected,
        "step_seconds": seconds,
    }
    text = f"training planned {planned / 2**20:,.0f} MiB, measured {measured / 2**20:,.0f} MiB"
    if seconds and expected:
        text += f"; a step planned {1e3 * expected:,.0f} ms, measured {1e3 * seconds:,.0f} ms"
    verdict: Verdict = "differs" if bad else "as it should be" if on_gpu else "measured"
    return [Shown(what=f"{variant.name}: forecast", verdict=verdict, found=text, numbers=numbers)]


def _decoding(variant: Variant, record: TrialResult) -> Shown:
    outcome = record.outcome
    assert isinstance(outcome, Completed)
    cost = outcome.decode
    rate = None if cost is None else cost.tokens_per_second
    found = "no rate" if cost is None or rate is None else f"{rate:,.0f} tokens/s by {cost.engine}"
    return Shown(what=f"{variant.name}: decoding", verdict="measured", found=found, numbers={"tokens_per_second": rate})


def _step_seconds(record: TrialResult) -> float | None:
    outcome = record.outcome
    return None if not isinstance(outcome, Completed) or outcome.train is None else outcome.train.step_seconds


def _skipped(record: TrialResult) -> int:
    outcome = record.outcome
    return 0 if not isinstance(outcome, Completed) or outcome.train is None else outcome.train.skipped_steps


def _rates_text(rates: JsonDict) -> str:
    seconds = rates["step_seconds"]
    text = "no step was timed" if seconds is None else f"{1e3 * seconds:,.1f} ms a step"
    if rates.get("trial_steps_per_second"):
        text += f", {rates['trial_steps_per_second']:,.1f} steps of trials a second"
    return text + (f", {rates['skipped_steps']} steps skipped" if rates["skipped_steps"] else "")


def _why(record: TrialResult) -> str:
    message = getattr(record.outcome, "message", None) or str(record.outcome.status)
    return " ".join(str(message).split())[:400]
