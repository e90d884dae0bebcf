"""Checks a task's metrics before anything is trained: names, settings, packages, script of the references."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from pydantic import TypeAdapter, ValidationError

from bench.metrics import METRICS
from bench.metrics.answers import without_answer
from bench.metrics.known import BUILT_IN, Known
from bench.metrics.metric import Metric, MetricError
from bench.metrics.remarks import advice_on_tokenizer, fit_of_tokenizer
from bench.metrics.scoring import always, check_names, measure
from bench.metrics.texts import Texts, prepare
from bench.metrics.words import missing
from bench.task import Example, Scoring, Split, Task

SINGLE_REFERENCE = ("meteor", "ter")
ENOUGH = 500  # examples, from all over a split, on which references are checked
TRIED_EMPTY = 2  # examples on which a metric is tried with empty predictions
PERPLEXITY = "reference_perplexity"


def check_scoring(scoring: Scoring, where: str, known: Known = BUILT_IN) -> None:
    """Check the settings that a task is scored with, also those of a plugin.

    Raises:
        MetricError: A setting is unknown, or has no effect.
    """
    try:
        TypeAdapter(Scoring).validate_python(asdict(scoring))
    except (ValidationError, TypeError) as error:
        problems = error.errors() if isinstance(error, ValidationError) else [{"loc": ("",), "msg": str(error)}]
        message = "; ".join(f"{where}.{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in problems)
        raise MetricError(message) from error
    check_names(scoring.metrics, f"{where}.metrics", known)
    check_names(scoring.single_reference, f"{where}.single_reference", SINGLE_REFERENCE)
    if scoring.own_script and scoring.tokenize != "13a":
        raise MetricError(
            f"{where}.tokenize: {scoring.tokenize!r} has no effect with bleu={scoring.bleu!r} and "
            f"preparation={scoring.preparation!r}, which cut words themselves; leave it out"
        )


def check_metrics(
    task: Task, examples: Sequence[Example], needed: Sequence[str] = (), known: Known = BUILT_IN
) -> list[str]:
    """Check before any training that the metrics of a sweep can be computed.

    Args:
        task: With its settings.
        examples: Some of those that will be scored.
        needed: Metrics by which settings are chosen.
        known: All metrics by name.

    Returns:
        Sentences on what would make the scores of any system doubtful.

    Raises:
        MetricError: A metric or setting is unknown, misses a package or weights, or does not suit the task.
    """
    check_scoring(task.scoring, "the task's scoring", known)
    check_names(task.config.metrics, "task.metrics", known)
    if (lacking := missing(task.scoring.tokenize)) is not None:
        raise MetricError(f"task.tokenize: {lacking}")
    texts = _perfect(task, examples[:: -(-len(examples) // ENOUGH)])
    for name in dict.fromkeys((*task.scoring.metrics, *task.config.metrics)):
        if name not in METRICS:
            try_metric(known[name], texts)
    for name, where in (
        *((one, "task.metrics") for one in task.config.metrics),
        *((one, "stages.tune.metric") for one in needed),
    ):
        if name in known and (reason := known[name](task.scoring).absent(texts)) is not None:
            raise MetricError(f"{where}: {name!r} cannot be had: {reason}")
    return [*fit_of_tokenizer(texts), *advice_on_tokenizer(texts)]


def try_metric(metric_class: type[Metric], texts: Texts) -> None:
    """Try the metric of a plugin on references and on nothing, so that its faults are known before anything is trained.

    A metric whose ``absent`` gives a reason is not tried.

    Raises:
        MetricError: The metric fails, or its score is no finite number.
    """
    name = metric_class.name
    try:
        metric = metric_class(texts.scoring)
        if (lacking := metric.absent(texts)) is not None:
            if not isinstance(lacking, str):
                raise MetricError(f"absent gives {lacking!r}; it must give a reason or None")  # noqa: TRY301
            return
        measured = metric.measure(texts)
        score = measured.over(range(len(texts)))
    except MetricError:
        raise
    except Exception as error:
        raise MetricError(f"the metric {name!r} fails: {type(error).__name__}: {error}") from error
    if not math.isfinite(score):
        raise MetricError(f"the metric {name!r} gives {score} for references scored against themselves")
    if not (isinstance(measured.signature, str) and measured.signature.strip()):
        raise MetricError(f"the metric {name!r} has the signature {measured.signature!r}; it must say what makes it up")
    if texts.scoring.choices is not None:  # a label is never empty
        return
    few = slice(TRIED_EMPTY)
    references, facts = texts.references[few], texts.facts[few]
    silent = prepare([""] * len(references), references, texts.scoring, facts, [False] * len(references))
    try:
        metric.measure(silent).over(range(len(silent)))
    except Exception as error:
        raise MetricError(
            f"the metric {name!r} fails where predictions are empty, as those of a model may be: "
            f"{type(error).__name__}: {error}"
        ) from error


def answers_missing(task: Task, splits: Mapping[Split, Sequence[Example]]) -> list[str]:
    """A sentence for each split in which references lack the answer that the task looks for.

    Raises:
        MetricError: Most sources of a split have no answer, so that accuracy would say nothing.
    """
    answer = task.scoring.answer
    if answer is None:
        return []
    sentences = []
    for split, examples in splits.items():
        lacking = without_answer(examples, answer)
        if not lacking:
            continue
        name, text = lacking[0]
        problem = (
            f"{len(lacking):,} of {len(examples):,} sources of {split} have no reference with an answer by the pattern "
            f"{answer.pattern!r} ({answer.normalise}), e.g. {name}: {text[-80:]!r}"
        )
        if 2 * len(lacking) > len(examples):
            raise MetricError(f"task.answer: {problem}; give a pattern that finds the answers of references")
        sentences.append(f"{problem}; whatever is written there counts as wrong")
    return sentences


def choosable(task: Task, known: Known = BUILT_IN) -> tuple[str, ...]:
    """The scores by which settings can be chosen: all scores of the task that have a direction."""
    names = dict.fromkeys((*task.scoring.metrics, *always(task.scoring), *task.config.metrics))
    return (*(name for name in names if known[name].higher_is_better is not None), PERPLEXITY)


def doubts_of_tokenizer(task: Task, examples: Sequence[Example]) -> tuple[list[str], list[str]]:
    """Sentences on what is wrong with the tokenizer for these references, and on a better tokenizer."""
    texts = _perfect(task, examples)
    return list(fit_of_tokenizer(texts)), list(advice_on_tokenizer(texts))


def imperfect(task: Task, examples: Sequence[Example], known: Known = BUILT_IN) -> dict[str, str]:
    """The metrics that are not at their best value when references are scored against themselves, with the reason.

    Left out are texts whose prepared form as a prediction differs from that as a reference.
    """
    alone = [replace(example, references=example.references[:1]) for example in examples]
    texts = _perfect(task, alone)
    same = [n for n in range(len(texts)) if texts.prepared_predictions[n] == texts.prepared_references[n][0]]
    if not same:
        return {"all": f"the preparation {task.scoring.preparation!r} makes every reference differ from itself"}
    texts = _perfect(task, [alone[n] for n in same])
    measured, _ = measure(texts, task.config.metrics, known)
    why: dict[str, str] = {}
    for name, one in measured.items():
        best, score = known[name].best, one.over(range(len(texts)))
        if best is not None and abs(score - best) > 1e-6 * max(1.0, best):
            why[name] = f"{score:.4g} instead of {best:g}{_because(name, texts)}"
    return why


def _because(name: str, texts: Texts) -> str:
    if name == "bleu" and (doubts := list(fit_of_tokenizer(texts))):
        return f": {doubts[0].rstrip('.')}"
    if name in ("bleu", "cider"):
        return (
            ": texts of fewer than four words have no run of four, which it counts; score them by other metrics of the "
            "task's scoring, or by letters with task.tokenize: char"
        )
    return ""


def _perfect(task: Task, examples: Sequence[Example]) -> Texts:
    """References in place of predictions."""
    return prepare(
        [example.references[0] for example in examples],
        [example.references for example in examples],
        task.scoring,
        [example.facts for example in examples],
        [False] * len(examples),
    )
