"""Computes all scores of one system: over all sources, over the sources of each tag, and of each source."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from pydantic import TypeAdapter

from bench.metrics.known import BUILT_IN, Known
from bench.metrics.metric import Measured, MetricError
from bench.metrics.remarks import remarks
from bench.metrics.texts import Texts, prepare
from bench.schema.record import NOT_ASKED_FOR, Scores
from bench.task import Example, Scoring

# Every task is scored by these metrics, too, if they apply to it.
ALWAYS = ("entity_coverage", "exact_match", "length_ratio", "empty_rate", "truncated_rate", "repetition_rate")
# These need a model of their own, and are computed only if a sweep asks for them.
LEARNED = ("bertscore", "bleurt", "mauve")
# Above this loss, a perplexity has no meaning and soon no number.
MEANINGLESS_LOSS = 50.0


def always(scoring: Scoring) -> tuple[str, ...]:
    """What texts are scored by beside a task's official metrics; labels that were chosen are no texts."""
    return ALWAYS if scoring.choices is None else ()


def check_names(names: Iterable[str], where: str | None = None, known: Iterable[str] = BUILT_IN) -> None:
    """Check names of metrics.

    Args:
        names: The names.
        where: The key of the sweep file that has them.
        known: All metrics.

    Raises:
        MetricError: A name is unknown. The message has close matches.
    """
    known = tuple(known)
    for name in names:
        if name in known:
            continue
        key = "" if where is None else f"{where}: "
        raise MetricError(f"{key}there is no metric {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown metric: names that are close to it, if there are any."""
    spelt = {one.replace("_", ""): one for one in known}
    close = difflib.get_close_matches(re.sub(r"[^a-z0-9]", "", name.lower()), spelt, n=3)
    return f"; did you mean {' or '.join(repr(spelt[one]) for one in close)}?" if close else ""


@dataclass(frozen=True)
class SystemScores:
    """Scores of one system, over any part of its sources.

    Args:
        measured: Metric to what was measured, official ones first.
        absent: Metric to the reason why it was not computed.
        tags: Of each source.
        scoring: The settings.
        remarks: Sentences on doubtful scores.
        known: All metrics by name.
    """

    measured: Mapping[str, Measured]
    absent: Mapping[str, str]
    tags: Sequence[Sequence[str]]
    scoring: Scoring
    remarks: Sequence[str] = ()
    known: Known = field(default_factory=lambda: BUILT_IN)

    def over(self, sources: Sequence[int]) -> dict[str, float]:
        """Every score over the sources at these positions, which may repeat."""
        return {name: measured.over(sources) for name, measured in self.measured.items()}

    def source_scores(self, index: int) -> dict[str, float]:
        """Every score of one source by itself."""
        return {
            name: measured.per_example[index]
            for name, measured in self.measured.items()
            if measured.per_example is not None
        }

    def scores(self) -> Scores:
        """The scores for a record."""
        tags = sorted({tag for some in self.tags for tag in some})
        members = {tag: [n for n, some in enumerate(self.tags) if tag in some] for tag in tags}
        return Scores(
            values=self.over(range(len(self.tags))),
            by_tag={tag: self.over(sources) for tag, sources in members.items()},
            sources_by_tag={tag: len(sources) for tag, sources in members.items()},
            signatures={name: measured.signature for name, measured in self.measured.items()},
            higher_is_better={
                name: better for name in self.measured if (better := self.known[name].higher_is_better) is not None
            },
            absent=dict(self.absent),
            scoring=json.loads(json.dumps(asdict(self.scoring))),
            remarks=list(self.remarks),
        )


def stored_scoring(scores: Scores) -> Scoring:
    """The settings of a record's scores, with which the stored predictions can be scored again.

    Raises:
        MetricError: The record is older than these settings.
    """
    if scores.scoring is None:
        raise MetricError("the record does not say how it was scored; it is older than these settings")
    return TypeAdapter(Scoring).validate_python(scores.scoring)


def score_examples(
    examples: Sequence[Example],
    predictions: Sequence[str],
    scoring: Scoring,
    truncated: Sequence[bool] | None = None,
    also: Sequence[str] = (),
    known: Known = BUILT_IN,
) -> SystemScores:
    """Score predictions by a task's official metrics, the metrics of every task, and the metrics of ``also``.

    Args:
        examples: The sources, with references, facts and tags.
        predictions: One text for each.
        scoring: The task's settings.
        truncated: Whether a prediction ended at the length limit; None where that is not known.
        also: Names of further metrics.
        known: All metrics by name.

    Raises:
        MetricError: A metric of ``also`` is unknown or cannot be computed.
        ValueError: There is not one prediction for each source.
    """
    texts = prepare(
        predictions,
        [example.references for example in examples],
        scoring,
        [example.facts for example in examples],
        truncated,
    )
    measured, absent = measure(texts, also, known)
    tags = [example.tags for example in examples]
    return SystemScores(measured, absent, tags, scoring, remarks(texts, measured), known)


def measure(
    texts: Texts, also: Sequence[str] = (), known: Known = BUILT_IN
) -> tuple[dict[str, Measured], dict[str, str]]:
    """The metrics that can be computed, and what the others lack. See :func:`score_examples`."""
    check_names((*texts.scoring.metrics, *also), known=known)
    measured: dict[str, Measured] = {}
    absent: dict[str, str] = {}
    for name in dict.fromkeys((*texts.scoring.metrics, *always(texts.scoring), *also, *LEARNED)):
        metric = known[name](texts.scoring)
        lacking = metric.absent(texts)
        if lacking is None and (name not in LEARNED or name in also):
            measured[name] = metric.measure(texts)
        elif lacking is None:
            absent[name] = NOT_ASKED_FOR
        elif name in also:
            raise MetricError(f"the metric {name!r} cannot be had: {lacking}")
        elif name in texts.scoring.metrics or name in LEARNED:
            absent[name] = lacking
    return measured, absent


def with_perplexity(scores: Scores, loss: float, loss_references: int | None) -> Scores:
    """Add the perplexity of the references to scores; say that there is none where the loss is too high for one.

    The perplexity is per token of the model's own tokenizer, so that it compares methods on one model, not models.

    Args:
        scores: Of the predictions.
        loss: Mean loss per target token, in nats.
        loss_references: The number of references of each source that the loss is over; None: all.
    """
    name = "reference_perplexity"
    if not loss < MEANINGLESS_LOSS:
        reason = f"the loss per target token is {loss:.3g}, and above {MEANINGLESS_LOSS:g} it has no meaning"
        return scores.model_copy(update={"absent": {**scores.absent, name: reason}})
    signature = f"exp of the mean loss per target token|references:{loss_references or 'all'}"
    return scores.model_copy(
        update={
            "values": {**scores.values, name: math.exp(loss)},
            "signatures": {**scores.signatures, name: signature},
            "higher_is_better": {**scores.higher_is_better, name: False},
        }
    )
