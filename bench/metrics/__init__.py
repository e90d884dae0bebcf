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
        Metric("bleu", True, overlap.bleu),
        Metric("nist", True, nist.nist),
        Metric("meteor", True, meteor.meteor, meteor.no_meteor),
        Metric("rouge_l", True, _rouge_l),
        Metric("cider", True, captions.cider),
        Metric("ter", False, overlap.ter),
        Metric("chrf", True, overlap.chrf),
        Metric("slot_error_rate", False, slots.slot_error_rate, slots.no_slots),
        Metric("entity_coverage", True, entities.entity_coverage, entities.no_triples),
        Metric("exact_match", True, form.exact_match),
        Metric("length_ratio", None, form.length_ratio),
        Metric("empty_rate", False, form.empty_rate),
        Metric("truncated_rate", False, form.truncated_rate, form.truncation_unknown),
        Metric("repetition_rate", False, form.repetition_rate),
        Metric("bertscore", True, learned.bertscore, learned.missing("bertscore")),
        Metric("bleurt", True, learned.bleurt, learned.missing("bleurt")),
        Metric("mauve", True, learned.mauve, learned.missing("mauve")),
    )
}
