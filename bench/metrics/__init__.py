"""Scores of predictions against references. Every score has a direction and a signature.

The table :data:`METRICS` is in the order in which results are shown: what a task names as official comes first.
"""

from __future__ import annotations

from bench.metrics import captions, entities, form, learned, meteor, nist, overlap, slots
from bench.metrics.metric import Measured, Metric
from bench.metrics.texts import Texts

__all__ = ["METRICS", "Measured", "Metric", "Texts"]


def _rouge_l(texts: Texts) -> Measured:
    return captions.rouge_l_coco(texts) if texts.scoring.rouge_l == "coco" else overlap.rouge_l_f1(texts)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("bleu", True, overlap.bleu, best=100.0),
        Metric("nist", True, nist.nist, nist.no_nist),
        Metric("meteor", True, meteor.meteor, meteor.no_meteor, best=100.0),
        Metric("rouge_l", True, _rouge_l, best=100.0),
        Metric("cider", True, captions.cider, captions.no_cider, best=10.0),
        Metric("ter", False, overlap.ter, best=0.0),
        Metric("chrf", True, overlap.chrf, best=100.0),
        Metric("slot_error_rate", False, slots.slot_error_rate, slots.no_slots),
        Metric("entity_coverage", True, entities.entity_coverage, entities.no_triples),
        Metric("exact_match", True, form.exact_match, best=100.0),
        Metric("length_ratio", None, form.length_ratio, best=1.0),
        Metric("empty_rate", False, form.empty_rate, best=0.0),
        Metric("truncated_rate", False, form.truncated_rate, form.truncation_unknown),
        Metric("repetition_rate", False, form.repetition_rate),
        Metric("bertscore", True, learned.bertscore, learned.missing("bertscore")),
        Metric("bleurt", True, learned.bleurt, learned.missing("bleurt")),
        Metric("mauve", True, learned.mauve, learned.missing("mauve")),
    )
}
