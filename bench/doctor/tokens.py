"""Base models and the tasks that they are to write: whether the tokens of one can say the texts of the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.doctor.finding import Finding, ok, problem, warning
from bench.models import base
from bench.models.token_check import check_key, check_tokens
from bench.plugins.registry import make_task
from bench.schema.trial import DecodeSpec, ModelSpec, TrialSpec
from bench.task import SPLITS, Task
from bench.tasks.facts.task import Facts
from bench.tasks.splits import Splits, load_splits


def check_embedded_tokens() -> Iterator[Finding]:
    """The model of the quickstart on its task, once it was converted."""
    if base.embedded_folder().is_dir():
        task = Facts(Facts.Config())
        yield from _findings(ModelSpec(), task, load_splits(task, SPLITS), None)


def check_tokens_of(trials: Sequence[TrialSpec]) -> Iterator[Finding]:
    """Each base model of some trials on each of their tasks."""
    kinds = {(one.model, one.task.model_dump_json(), *check_key(one.decode)): one for one in trials}
    for trial in kinds.values():
        try:
            task = make_task(trial.task)
            splits = load_splits(task, trial.splits)
        except ValueError as error:
            yield problem(f"task {trial.task.name}", str(error), "see 'tuneoff check-task'")
            continue
        yield from _findings(trial.model, task, splits, trial.decode)


def _findings(model: ModelSpec, task: Task, splits: Splits, decode: DecodeSpec | None) -> Iterator[Finding]:
    name = f"{model.path} on {type(task).__name__}"
    try:
        found = check_tokens(model, task, splits, decode)
    except ValueError as error:
        yield problem(name, str(error), "name a model that is there under 'model' in the sweep")
        return
    makers = {"warning": warning, "problem": problem}
    complaints = [makers[one.outcome](one.check, one.found, one.remedy) for one in found if one.outcome != "pass"]
    yield from complaints or [ok(name, f"its tokens can say the task: {len(found)} checks on references")]
