"""The contract of tasks, as checks. ``tuneoff check-task`` and tests run them, on tasks of plugins, too."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Literal

from bench.conformance.check_verdict import CheckVerdict
from bench.metrics.checks import answers_missing, check_metrics, doubts_of_tokenizer, imperfect
from bench.metrics.known import BUILT_IN, Known
from bench.metrics.metric import MetricError
from bench.metrics.scoring import score_examples
from bench.models.text_ends import first_stop
from bench.models.token_check import check_tokens
from bench.schema.trial import ModelSpec
from bench.task import SPLITS, Example, Task, TaskError
from bench.tasks.splits import Splits, load_split

# So many references are scored against themselves, to check the official metrics. More would only take longer.
SCORED = 20


def verdicts(task: Task, model: ModelSpec | None = None, metrics: Known = BUILT_IN) -> Iterator[CheckVerdict]:
    """Run every check, also after failures, unless the data cannot be loaded.

    Args:
        task: With its settings.
        model: The base model whose tokens are tried on the references; None: no tokens are tried.
        metrics: All metrics by name.
    """
    splits: Splits = {}
    for split in SPLITS:
        name = f"loads {split}"
        try:
            splits[split] = load_split(task, split)
        except Exception as error:  # noqa: BLE001 - whatever a stranger's code raises is the reason of a failure
            yield CheckVerdict(name, "fail", f"{type(error).__name__}: {error}")
        else:
            yield CheckVerdict(name, "pass")
    for name, check in CHECKS.items():
        try:
            remark = check(task, splits, metrics)
        except Exception as error:  # noqa: BLE001 - as above
            yield CheckVerdict(name, "fail", str(error) if isinstance(error, TaskError | MetricError) else f"{error!r}")
        else:
            yield CheckVerdict(name, "pass", remark or "")

    if model is not None and splits:
        yield from _of_tokens(task, splits, model)


def _of_tokens(task: Task, splits: Splits, model: ModelSpec) -> Iterator[CheckVerdict]:
    try:
        findings = check_tokens(model, task, splits)
    except Exception as error:  # noqa: BLE001 - as above
        yield CheckVerdict(
            f"{model.path}: tokens", "fail", str(error) if isinstance(error, ValueError) else f"{error!r}"
        )
        return
    outcomes: dict[str, Literal["pass", "warn", "fail"]] = {"pass": "pass", "warning": "warn", "problem": "fail"}
    for finding in findings:
        reason = f"{finding.found}; {finding.remedy}" if finding.remedy else ""
        yield CheckVerdict(finding.check, outcomes[finding.outcome], reason)


def _loads_the_same_twice(task: Task, splits: Splits, _: Known) -> None:
    again = type(task)(task.config)
    for split, examples in splits.items():
        if load_split(again, split) != examples:
            raise TaskError(
                f"loading {split} again gives other examples, so that methods would be compared on other data"
            )


def _examples_are_whole(__: Task, splits: Splits, _: Known) -> None:
    for split, examples in splits.items():
        for example in examples:
            where = f"{split}: example {example.id!r}"
            if not example.source.strip():
                raise TaskError(f"{where}: the source is empty")
            if not example.references:
                raise TaskError(f"{where}: there is no reference")
            if not all(isinstance(text, str) and text.strip() for text in example.references):
                raise TaskError(f"{where}: a reference is empty")
            if not all(isinstance(part, str) for fact in example.facts for part in fact):
                raise TaskError(f"{where}: a part of a fact is no text")
            if not all(isinstance(tag, str) and tag for tag in example.tags):
                raise TaskError(f"{where}: a tag is no text")


def _references_hold_no_stop_string(task: Task, splits: Splits, _: Known) -> None:
    for split, examples in splits.items():
        for example in examples:
            stops = (first_stop(text.strip(), task.stop) for text in example.references)
            if (stop := next(filter(None, stops), None)) is not None:
                raise TaskError(
                    f"{split}: example {example.id!r}: a reference holds {stop!r}; a prediction of this task ends at "
                    "the first, so that it can never be reached; give the task another 'stop', or set decode.stop in "
                    "the sweep ([] ends texts at the model's end tokens alone)"
                )


def _sources_are_worded(__: Task, splits: Splits, _: Known) -> None:
    for split, examples in splits.items():
        for example in examples:
            parts = [part for fact in example.facts for part in fact] or [example.source]
            if (found := next(filter(_as_python_writes_it, parts), None)) is not None:
                raise TaskError(
                    f"{split}: example {example.id!r}: the source says {found[:80]!r}, a value as Python writes it; "
                    "word it, or store it as a list, an object or null, see docs/use/tasks.md"
                )


def _as_python_writes_it(text: str) -> bool:
    """Whether a text is a list or dictionary in Python's notation, or its word for a missing value."""
    text = text.strip()
    if text in ("None", "nan", "NaT"):
        return True
    if text[:1] not in ("[", "{") or text[-1:] not in ("]", "}"):
        return False
    try:
        return isinstance(ast.literal_eval(text), list | dict)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def _hash_is_steady(task: Task, __: Splits, _: Known) -> None:
    first, second = task.data_sha256(), type(task)(task.config).data_sha256()
    if first != second:
        raise TaskError("data_sha256 differs from call to call, so that no finished trial would be found again")


def _some(splits: Splits) -> list[Example]:
    some: list[Example] = next((examples for split, examples in splits.items() if split != "train"), [])[:SCORED]
    if not some:
        raise TaskError("there is neither a dev nor a test split to score")
    return some


def _official_scores_can_be_had(task: Task, splits: Splits, metrics: Known) -> None:
    some = _some(splits)
    check_metrics(task, some, known=metrics)
    system = score_examples(some, [example.references[0] for example in some], task.scoring, known=metrics)
    scores = system.scores()
    for name in ("empty_rate", "repetition_rate"):
        if scores.values.get(name, 0.0) > 50:
            raise TaskError(f"the references themselves have a {name} of {scores.values[name]:.0f} %")


def _tokenizer_fits(task: Task, splits: Splits, _: Known) -> str:
    wrong, better = doubts_of_tokenizer(task, _some(splits))
    if wrong:
        raise TaskError(" ".join(wrong))
    return " ".join(better)


def _references_score_best(task: Task, splits: Splits, metrics: Known) -> None:
    if why := imperfect(task, _some(splits), metrics):
        scores = "; ".join(f"{name} {reason}" for name, reason in why.items())
        raise TaskError(f"references scored against themselves have {scores}")


def _references_have_answers(task: Task, splits: Splits, _: Known) -> str:
    return " ".join(answers_missing(task, splits))


CHECKS: dict[str, Callable[[Task, Splits, Known], str | None]] = {
    "loads the same twice": _loads_the_same_twice,
    "examples are whole": _examples_are_whole,
    "references hold no stop string": _references_hold_no_stop_string,
    "sources are worded": _sources_are_worded,
    "hash is steady": _hash_is_steady,
    "references have answers": _references_have_answers,
    "official scores can be had": _official_scores_can_be_had,
    "tokenizer fits the references": _tokenizer_fits,
    "references score best": _references_score_best,
}
