"""Scores a model on tasks of the lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

The tasks, their prompts and their metrics are the package's own, and so is the way in which it asks the model. What
differs from its command line: the model is the one at hand, with its adapter; errors of metrics that are no means come
from 1,000 bootstrap samples instead of 100,000, in one process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.plugins.lm_eval_tasks import manager_with
from bench.schema.record import Scores
from bench.schema.trial import EvaluationSpec, JsonDict

BOOTSTRAP_SAMPLES = 1_000
FEW_SHOT_SEED = 1234  # the package's default
STDERR = "_stderr"
NO_FILTER = "none"


@dataclass
class Evaluated:
    """Scores by ``task/metric``, with their standard errors, and a row for each answer."""

    values: dict[str, float] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    higher_is_better: dict[str, bool] = field(default_factory=dict)
    samples: list[JsonDict] = field(default_factory=list)

    def beside(self, scores: Scores) -> Scores:
        """These scores after those of the sweep's own task."""
        return scores.model_copy(
            update={
                "values": {**scores.values, **self.values},
                "signatures": {**scores.signatures, **self.signatures},
                "higher_is_better": {**scores.higher_is_better, **self.higher_is_better},
            }
        )


class EvaluationError(RuntimeError):
    """The package gave up on a task."""


def evaluate(model: Any, tokenizer: Any, evaluations: Sequence[EvaluationSpec], batch_size: int) -> Evaluated:
    """Score a model on all tasks of these evaluations, one after the other.

    Args:
        model: On its device, in evaluation mode, patched by a method or not.
        tokenizer: Of the model.
        evaluations: What is asked.
        batch_size: Questions at once.

    Raises:
        EvaluationError: A task cannot be loaded or scored; the message names it.
    """
    from lm_eval.models.huggingface import HFLM

    backend: Literal["seq2seq", "causal"] = "seq2seq" if model.config.is_encoder_decoder else "causal"
    wrapped_model = HFLM(pretrained=model, tokenizer=tokenizer, backend=backend, batch_size=batch_size)
    answered: list[tuple[EvaluationSpec, Mapping[str, Any]]] = []
    for evaluation in evaluations:
        try:
            answered.append((evaluation, _results(wrapped_model, evaluation)))
        except Exception as error:
            raise EvaluationError(f"evaluations: lm_eval: {evaluation.lm_eval}: {error}") from error
    # Only now it is known which tasks are in several groups.
    whole = Evaluated()
    for evaluation, results in answered:
        names = {
            task: task + _told_apart(task, evaluation, [one for one, others in answered if task in _scores_of(others)])
            for task in _scores_of(results)
        }
        _add(whole, results, evaluation, names)
    return whole


def _results(wrapped_model: Any, evaluation: EvaluationSpec) -> Mapping[str, Any]:
    from lm_eval.evaluator import evaluate as evaluate_tasks

    tasks = manager_with(evaluation.lm_eval, evaluation.include_path).load([evaluation.lm_eval])
    for task in tasks["tasks"].values():
        # As the package's own simple_evaluate: a task of a group that says 0 means it. Others are refused before.
        if evaluation.num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=evaluation.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEW_SHOT_SEED)
    results: Mapping[str, Any] | None = evaluate_tasks(
        lm=wrapped_model,
        task_dict=tasks,
        limit=evaluation.limit,
        bootstrap_iters=BOOTSTRAP_SAMPLES,
        log_samples=True,
        apply_chat_template=evaluation.apply_chat_template,
        fewshot_as_multiturn=evaluation.apply_chat_template,
    )
    if results is None:
        raise RuntimeError("lm-eval returned nothing on this rank")
    return results


def _scores_of(results: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Scores of tasks and of groups, by their names."""
    return {**results["results"], **results.get("groups", {})}


def _told_apart(task: str, evaluation: EvaluationSpec, same: Sequence[EvaluationSpec]) -> str:
    """What stands behind a task's name where ``same``, which ask for it, are several with other settings or groups."""

    def differ(field_name: str) -> bool:
        return len({getattr(one, field_name) for one in same}) > 1

    asked, shots = evaluation.lm_eval, evaluation.num_fewshot
    limit, folder = evaluation.limit, evaluation.include_path
    parts = [] if not differ("lm_eval") else ["alone" if asked == task else f"in {asked}"]
    parts += [] if not differ("num_fewshot") else ["its own shots" if shots is None else f"{shots} shots"]
    parts += [] if not differ("limit") else ["all" if limit is None else f"first {limit}"]
    parts += ["chat"] if differ("apply_chat_template") and evaluation.apply_chat_template else []
    parts += [] if not differ("include_path") or folder is None else [_folder_name(Path(folder), same)]
    return f" ({', '.join(parts)})" if parts else ""


def _folder_name(folder: Path, evaluations: Sequence[EvaluationSpec]) -> str:
    """As many last parts of a folder's path as tell it from those of the other evaluations."""
    folders = {Path(one.include_path) for one in evaluations if one.include_path is not None}
    others, parts = [other.parts for other in folders - {folder}], folder.parts
    count = next(n for n in range(1, len(parts) + 1) if n == len(parts) or all(o[-n:] != parts[-n:] for o in others))
    return "/".join(parts[-count:])


def _add(whole: Evaluated, results: Mapping[str, Any], evaluation: EvaluationSpec, names: Mapping[str, str]) -> None:
    """Keep what the package has found, under these names of its tasks."""
    for task, scores in _scores_of(results).items():
        shots = results["n-shot"].get(task)
        counted = results["n-samples"].get(task, {}).get("effective")
        version = results["versions"].get(task)
        signature_parts = [f"lm-eval:{evaluation.lm_eval_version}", f"task version:{version}"]
        signature_parts += [] if shots is None else [f"shots:{shots}"]
        signature_parts += [] if counted is None else [f"questions:{counted}"]
        signature_parts += ["chat template"] if evaluation.apply_chat_template else []
        for metric, name, value in _numbers(scores):
            key = f"{names[task]}/{name}"
            whole.values[key] = value
            whole.signatures[key] = "|".join(signature_parts)
            better = results["higher_is_better"].get(task, {}).get(metric)
            if better is not None and not metric.endswith(STDERR):
                whole.higher_is_better[key] = bool(better)
    for task, rows in results.get("samples", {}).items():
        name = names.get(task, task)
        whole.samples.extend({"task": name, **json.loads(json.dumps(row, default=str))} for row in rows)


def _numbers(scores: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Metric, what tables call it, and value. The package's keys are ``metric,filter``."""
    for key, value in scores.items():
        metric, comma, filtered_by = key.partition(",")
        if not comma or isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            continue
        plain = metric.removesuffix(STDERR)
        name = plain if filtered_by == NO_FILTER else f"{plain} ({filtered_by})"
        yield metric, f"{name} stderr" if metric.endswith(STDERR) else name, float(value)
