"""Scores of predictions against references. Every score has a direction and a signature.

The table :data:`METRICS` is in the order in which results are shown, after the official metrics of a task. It imports
no metric, so that listing names costs little.
"""

from __future__ import annotations

from bench.metrics.metric import Array, MeanOfSources, Measured, Metric, MetricError, NoFunctionOfSums
from bench.metrics.texts import Texts

__all__ = [
    "METRICS",
    "Array",
    "MeanOfSources",
    "Measured",
    "Metric",
    "MetricError",
    "NoFunctionOfSums",
    "Texts",
]

METRICS: dict[str, str] = {
    "bleu": "bench.metrics.overlap:Bleu",
    "nist": "bench.metrics.nist:Nist",
    "meteor": "bench.metrics.meteor:Meteor",
    "rouge_l": "bench.metrics.overlap:RougeL",
    "cider": "bench.metrics.captions:Cider",
    "ter": "bench.metrics.overlap:Ter",
    "chrf": "bench.metrics.overlap:Chrf",
    "slot_error_rate": "bench.metrics.slots:SlotErrorRate",
    "entity_coverage": "bench.metrics.entities:EntityCoverage",
    "exact_match": "bench.metrics.form:ExactMatch",
    "accuracy": "bench.metrics.answers:Accuracy",
    "macro_f1": "bench.metrics.choices:MacroF1",
    "matthews": "bench.metrics.choices:Matthews",
    "length_ratio": "bench.metrics.form:LengthRatio",
    "empty_rate": "bench.metrics.form:EmptyRate",
    "truncated_rate": "bench.metrics.form:TruncatedRate",
    "repetition_rate": "bench.metrics.form:RepetitionRate",
    "bertscore": "bench.metrics.learned:BertScore",
    "bleurt": "bench.metrics.learned:Bleurt",
    "mauve": "bench.metrics.learned:Mauve",
}
