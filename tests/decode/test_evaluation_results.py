"""Results of lm-evaluation-harness become scores, signatures and rows; the package itself runs in test_lm_eval.py."""

from __future__ import annotations

import math
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bench.decode import lm_evaluation
from bench.decode.lm_evaluation import EvaluationError, evaluate
from bench.schema.sweep import Sweep
from bench.schema.trial import EvaluationSpec

RESULTS: dict[str, Any] = {
    "results": {
        "sums": {
            "alias": "sums",
            "acc,none": 0.5,
            "acc_stderr,none": 0.1,
            "exact,strict": 0.25,
            "odd,none": math.nan,
            "flag,none": True,
            "sample_len": 8,
        },
        "words": {"ppl,none": 12},
    },
    "groups": {"all": {"acc,none": 0.75}},
    "n-shot": {"sums": 3, "words": 0},
    "n-samples": {"sums": {"original": 9, "effective": 8}},
    "versions": {"sums": 2, "words": 1.5},
    "higher_is_better": {"sums": {"acc": True, "exact": True}, "words": {"ppl": False}},
    "samples": {"sums": [{"doc_id": 1, "target": {2}}], "words": [{"doc_id": 7}]},
}


class Task:
    def __init__(self, shots: int | None) -> None:
        self.config: dict[str, Any] = {"num_fewshot": shots}
        self.seed = 0

    def get_config(self, key: str) -> Any:
        return self.config[key]

    def set_config(self, key: str, value: Any) -> None:
        self.config[key] = value

    def set_fewshot_seed(self, seed: int) -> None:
        self.seed = seed


class Package:
    """Stands for lm-eval: remembers how it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, results: Any, *shots: int | None) -> None:
        self.results, self.tasks = results, {str(number): Task(one) for number, one in enumerate(shots)}
        self.asked: list[dict[str, Any]] = []
        self.models: list[dict[str, Any]] = []
        for name in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface", "lm_eval.evaluator"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["lm_eval.models.huggingface"].HFLM = self.model  # type: ignore[attr-defined]
        sys.modules["lm_eval.evaluator"].evaluate = self.evaluate  # type: ignore[attr-defined]
        manager = SimpleNamespace(load=lambda names: {"tasks": self.tasks})
        monkeypatch.setattr(lm_evaluation, "manager_with", lambda name, path: manager)

    def model(self, **settings: Any) -> str:
        self.models.append(settings)
        return "the model"

    def evaluate(self, **settings: Any) -> Any:
        self.asked.append(settings)
        return self.results[len(self.asked) - 1] if isinstance(self.results, list) else self.results


def model_of(is_encoder_decoder: bool) -> Any:
    return SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=is_encoder_decoder))


def test_scores_have_the_names_of_tables_and_say_how_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Package(monkeypatch, RESULTS)
    spec = EvaluationSpec(lm_eval="sums", limit=8, apply_chat_template=True, lm_eval_version="0.4")
    found = evaluate(model_of(False), "tokenizer", [spec], 4)
    assert found.values == {
        "sums/acc": 0.5,
        "sums/acc stderr": 0.1,
        "sums/exact (strict)": 0.25,
        "words/ppl": 12.0,
        "all/acc": 0.75,
    }
    assert found.higher_is_better == {"sums/acc": True, "sums/exact (strict)": True, "words/ppl": False}
    of_sums = "lm-eval:0.4|task version:2|shots:3|questions:8|chat template"
    assert found.signatures["sums/acc"] == found.signatures["sums/acc stderr"] == of_sums
    assert found.signatures["words/ppl"] == "lm-eval:0.4|task version:1.5|shots:0|chat template"
    assert found.samples == [{"task": "sums", "doc_id": 1, "target": "{2}"}, {"task": "words", "doc_id": 7}]
    (arguments,) = package.asked
    assert (arguments["lm"], arguments["limit"], arguments["bootstrap_iters"]) == ("the model", 8, 1000)
    assert arguments["apply_chat_template"] and arguments["fewshot_as_multiturn"] and arguments["log_samples"]
    plain = evaluate(model_of(False), "tokenizer", [EvaluationSpec(lm_eval="sums", lm_eval_version="0.4")], 4)
    assert plain.signatures["sums/acc"] == "lm-eval:0.4|task version:2|shots:3|questions:8"


@pytest.mark.parametrize(("is_encoder_decoder", "backend"), [(True, "seq2seq"), (False, "causal")])
def test_a_model_is_asked_as_its_kind_is(
    is_encoder_decoder: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Package(monkeypatch, RESULTS)
    model = model_of(is_encoder_decoder)
    evaluate(model, "tokenizer", [EvaluationSpec(lm_eval="sums"), EvaluationSpec(lm_eval="words")], 4)
    assert package.models == [{"pretrained": model, "tokenizer": "tokenizer", "backend": backend, "batch_size": 4}]
    assert len(package.asked) == 2


@pytest.mark.parametrize(("num_fewshot", "shots"), [(None, [0, 0, 5]), (3, [3, 0, 3])])
def test_shots_are_those_asked_for_unless_a_task_says_none(
    num_fewshot: int | None, shots: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Package(monkeypatch, RESULTS, None, 0, 5)
    evaluate(model_of(False), "tokenizer", [EvaluationSpec(lm_eval="sums", num_fewshot=num_fewshot)], 1)
    assert [task.config["num_fewshot"] for task in package.tasks.values()] == shots
    assert {task.seed for task in package.tasks.values()} == {1234}


def test_a_task_that_is_asked_for_several_times_has_a_column_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    Package(monkeypatch, {**RESULTS, "results": {"sums": {"acc,none": 0.5}}, "groups": {}})
    asked: list[dict[str, Any]] = [
        {"num_fewshot": 5},
        {"num_fewshot": 0, "limit": 8},
        {"apply_chat_template": True, "include_path": "my/tasks"},
    ]
    found = evaluate(model_of(False), "tokenizer", [EvaluationSpec(lm_eval="sums", **one) for one in asked], 1)
    names = ["sums (5 shots, all)", "sums (0 shots, first 8)", "sums (its own shots, all, chat, tasks)"]
    assert list(found.values) == [f"{name}/acc" for name in names]
    assert [row["task"] for row in found.samples if row["doc_id"] == 1] == names
    sweep = {"name": "s", "task": "facts", "methods": ["none"]}
    with pytest.raises(ValueError, match=r"evaluations\.1: sums is there already with the same settings"):
        Sweep.model_validate({**sweep, "evaluations": [{"lm_eval": "sums", "limit": 1}] * 2})


def test_a_task_that_is_in_several_groups_has_a_column_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(task_scores: dict[str, float]) -> dict[str, Any]:
        results = {task: {"acc,none": score} for task, score in task_scores.items()}
        samples = {task: [{"doc_id": 1}] for task in task_scores}
        return {**RESULTS, "results": results, "groups": {}, "samples": samples}

    Package(monkeypatch, [answers({"sums": 0.25, "words": 0.5}), answers({"sums": 0.75})])
    asked = [EvaluationSpec(lm_eval="school"), EvaluationSpec(lm_eval="sums", num_fewshot=5)]
    found = evaluate(model_of(False), "tokenizer", asked, 1)
    assert found.values == {
        "sums (in school, its own shots)/acc": 0.25,
        "words/acc": 0.5,
        "sums (alone, 5 shots)/acc": 0.75,
    }
    names = ["sums (in school, its own shots)", "words", "sums (alone, 5 shots)"]
    assert [row["task"] for row in found.samples] == names


def test_folders_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    Package(monkeypatch, {**RESULTS, "results": {"sums": {"acc,none": 0.5}}, "groups": {}})
    asked = [EvaluationSpec(lm_eval="sums", include_path=path) for path in ("/data/old/tasks", "/data/new/tasks/")]
    found = evaluate(model_of(False), "tokenizer", asked, 1)
    assert list(found.values) == ["sums (old/tasks)/acc", "sums (new/tasks)/acc"]


def test_a_task_that_gives_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Package(monkeypatch, None)
    with pytest.raises(EvaluationError, match="evaluations: lm_eval: sums: lm-eval returned nothing on this rank"):
        evaluate(model_of(False), "tokenizer", [EvaluationSpec(lm_eval="sums")], 1)
