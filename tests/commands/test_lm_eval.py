"""Final trials are scored on tasks of the lm-evaluation-harness too, as the package's own command scores a model."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Done
from test_evaluate import in_this_process, sweep  # noqa: F401 - fixtures

from bench.config.load import expand, load_sweep
from bench.config.resolver import RegistryResolver
from bench.decode.lm_evaluation import evaluate
from bench.driver.prepare import prepare
from bench.models.base import load_model, load_tokenizer
from bench.models.coverage import patch_and_count
from bench.plugins import lm_eval_tasks
from bench.plugins.registry import make_method
from bench.report.configurations import comparisons
from bench.report.efficiency import efficiency_table
from bench.schema.record import Completed
from bench.schema.trial import EvaluationSpec, ModelSpec
from bench.schema.validation import ConfigError
from bench.store.records import Store

QUESTIONS = [(f"{a} plus {b} is", a + b) for a in (1, 2, 3) for b in (2, 4)]


@pytest.fixture
def own_tasks(tmp_path: Path) -> Path:
    """A folder with two tasks over six sums: one asks for a choice, one for a text."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"q": question, "choices": [str(total), "banana"], "a": str(total)} for question, total in QUESTIONS]
    (folder / "sums.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "sums.jsonl"}}}}}
test_split: test
fewshot_split: test
doc_to_text: "{{{{q}}}}"
metadata: {{version: 2.0}}
"""
    choice = "doc_to_choice: choices\ndoc_to_target: 0\nmetric_list: [{metric: acc}]\noutput_type: multiple_choice\n"
    text = (
        "doc_to_target: a\noutput_type: generate_until\nmetric_list: [{metric: exact_match, higher_is_better: true}]\n"
        'generation_kwargs: {until: ["."], max_gen_toks: 4}\n'
    )
    (folder / "choice.yaml").write_text(f"task: sums_choice\n{data}{choice}")
    (folder / "text.yaml").write_text(f"task: sums_text\n{data}{text}")
    (folder / "none.yaml").write_text("include: text.yaml\ntask: sums_none\nnum_fewshot: 0\n")
    (folder / "group.yaml").write_text("group: sums\ntask: [sums_none, sums_text]\n")
    return folder


def with_evaluations(sweep: Path, evaluations: list[dict[str, Any]], methods: list[Any]) -> Path:  # noqa: F811
    content = json.loads(sweep.read_text()) | {"evaluations": evaluations, "methods": methods}
    sweep.write_text(json.dumps(content))
    return sweep


def of_package(model: str, own_tasks: Path) -> dict[str, float]:
    """What the package itself gives a model, by its own loader."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    results = simple_evaluate(
        model="hf",
        model_args={"pretrained": model, "dtype": "float32"},
        tasks=["sums_choice", "sums_text"],
        num_fewshot=1,
        batch_size=4,
        device="cpu",
        task_manager=TaskManager(include_path=str(own_tasks), include_defaults=False),
    )
    return {
        f"{task}/{key.removesuffix(',none')}": value
        for task, scores in results["results"].items()
        for key, value in scores.items()
        if key.endswith(",none")
    }


@pytest.mark.usefixtures("in_this_process")
def test_a_trial_has_the_scores_that_the_package_gives_and_keeps_every_answer(
    sweep: Path,  # noqa: F811
    own_tasks: Path,
    tuneoff: Callable[..., Done],
) -> None:
    evaluations = [
        {"lm_eval": name, "include_path": str(own_tasks), "num_fewshot": 1} for name in ("sums_choice", "sums_text")
    ]
    with_evaluations(sweep, evaluations, ["none", {"name": "lora", "config": {"rank": 2}}])
    done = tuneoff("run", str(sweep))
    assert done.returncode == 0, done.stderr
    store = Store(Path("results/tiny"))
    records = {record.spec.method.name: record for record in store.records()}
    outcome = records["none"].outcome
    assert isinstance(outcome, Completed)
    expected = of_package(records["none"].spec.model.path, own_tasks)
    found = {name: value for name, value in outcome.scores.values.items() if "/" in name}
    assert {name.replace(" stderr", "_stderr"): value for name, value in found.items()} == pytest.approx(expected)
    assert set(found) >= {"sums_choice/acc", "sums_choice/acc stderr", "sums_text/exact_match"}
    assert outcome.scores.signatures["sums_choice/acc"] == "lm-eval:0.4.13|task version:2.0|shots:1|questions:6"
    assert outcome.scores.higher_is_better["sums_text/exact_match"] is True
    assert "evaluate" in outcome.ranks[0].phases
    with gzip.open(store.trials / records["lora"].trial_id / "evaluations.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    assert [row["task"] for row in rows] == ["sums_choice"] * 6 + ["sums_text"] * 6
    (comparison,) = comparisons(list(records.values()))
    table = efficiency_table(comparison)
    assert table is not None
    assert "sums_choice/acc over base" in table[0]


def test_evaluations_are_part_of_a_final_trial_and_of_no_other(sweep: Path, own_tasks: Path) -> None:  # noqa: F811
    (plain,) = expand(load_sweep(with_evaluations(sweep, [], ["lora"])), RegistryResolver())
    evaluations = [{"lm_eval": "sums_text", "include_path": str(own_tasks)}]
    (trial,) = expand(load_sweep(with_evaluations(sweep, evaluations, ["lora"])), RegistryResolver())
    assert "evaluations" not in plain.identity
    assert trial.trial_id != plain.trial_id
    assert trial.model_copy(update={"stage": "tune"}).identity == plain.model_copy(update={"stage": "tune"}).identity
    moved = own_tasks.rename(own_tasks.with_name("moved"))
    (moved / "sums.jsonl").write_text((moved / "sums.jsonl").read_text().replace("banana", "cherry"))
    evaluations = [{"lm_eval": "sums_text", "include_path": str(moved)}]
    (other,) = expand(load_sweep(with_evaluations(sweep, evaluations, ["lora"])), RegistryResolver())
    assert other.trial_id != trial.trial_id, "the data beside a task are part of it"


@pytest.mark.parametrize(
    ("evaluation", "complaint"),
    [
        ({"lm_eval": "sums_txt"}, r"evaluations\.0\.lm_eval: .*'sums_txt'; did you mean 'sums_text'"),
        ({"lm_eval": "sums_text", "include_path": "nowhere"}, r"evaluations\.0\.include_path: .*'nowhere'"),
        ({"lm_eval": "sums_text", "limit": 0}, r"evaluations\.0\.limit"),
        ({"lm-eval": "sums_text"}, r"evaluations\.0"),
        (
            {"lm_eval": "sums_none", "num_fewshot": 5},
            r"evaluations\.0\.num_fewshot: 5: .* sums_none says num_fewshot: 0",
        ),
    ],
)
def test_what_cannot_be_asked_is_told_before_the_sweep(
    sweep: Path,  # noqa: F811
    own_tasks: Path,
    evaluation: dict[str, Any],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The index of the whole package takes seconds to read.
    manager = lm_eval_tasks.manager
    monkeypatch.setattr(lm_eval_tasks, "manager", lambda path, include_defaults: manager(path, include_defaults=False))
    path = with_evaluations(sweep, [{"include_path": str(own_tasks), **evaluation}], ["lora"])
    with pytest.raises(ConfigError, match=complaint):
        expand(load_sweep(path), RegistryResolver())


def test_a_task_without_examples_may_be_in_a_group_that_is_shown_some(sweep: Path, own_tasks: Path) -> None:  # noqa: F811
    asked = [("sums_none", 0), ("sums_none", None), ("sums", 5)]
    evaluations = [{"lm_eval": name, "include_path": str(own_tasks), "num_fewshot": shots} for name, shots in asked]
    (trial,) = expand(load_sweep(with_evaluations(sweep, evaluations, ["lora"])), RegistryResolver())
    assert [(one.lm_eval, one.num_fewshot) for one in trial.evaluations] == asked


def test_sharded_models_are_asked_nothing(sweep: Path, own_tasks: Path) -> None:  # noqa: F811
    evaluations = [{"lm_eval": "sums_text", "include_path": str(own_tasks)}]
    methods = [{"name": "lora", "resources": {"zero_stage": 3}}]
    with pytest.raises(ConfigError, match=r"zero_stage: 3 .* evaluations"):
        expand(load_sweep(with_evaluations(sweep, evaluations, methods)), RegistryResolver())


@pytest.mark.parametrize("method", ["loreft", {"name": "prefix_tuning", "config": {"infix": True}}])
def test_methods_that_have_to_know_where_a_question_ends_are_refused_before_the_sweep(
    sweep: Path,  # noqa: F811
    own_tasks: Path,
    method: Any,
) -> None:
    evaluations = [{"lm_eval": "sums_text", "include_path": str(own_tasks)}]
    trials = expand(load_sweep(with_evaluations(sweep, evaluations, [method])), RegistryResolver())
    with pytest.raises(ConfigError, match=r"methods: \w+ on .*: evaluations: .* tell a model where a question ends"):
        prepare(trials, lambda line: None)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("llama", {"name": "prompt_tuning", "config": {"num_prompt_tokens": 3}}),
        ("gpt2", {"name": "prefix_tuning", "config": {"num_prompt_tokens": 3}}),
        ("t5", {"name": "prompt_tuning", "config": {"num_prompt_tokens": 3}}),
        ("t5", {"name": "prefix_tuning", "config": {"num_prompt_tokens": 3}}),
    ],
)
def test_prompts_and_prefixes_answer_alike_in_batches_of_any_size(
    kind: str, method: dict[str, Any], tiny_models: dict[str, Path], own_tasks: Path
) -> None:
    spec = ModelSpec(path=str(tiny_models[kind]))
    tokenizer = load_tokenizer(spec)
    resolved = RegistryResolver().method(method["name"], method["config"])
    torch.manual_seed(0)
    model, _ = patch_and_count(make_method(resolved, tokenizer), load_model(spec, torch.float32))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    evaluations = [EvaluationSpec(lm_eval=name, include_path=str(own_tasks)) for name in ("sums_choice", "sums_text")]
    one, many = (evaluate(model.eval(), tokenizer, evaluations, batch_size) for batch_size in (1, 4))
    assert [row["filtered_resps"] for row in one.samples if row["task"] == "sums_text"] == [
        row["filtered_resps"] for row in many.samples if row["task"] == "sums_text"
    ]
    likelihoods = [
        [float(answer[0]) for row in found.samples if row["task"] == "sums_choice" for answer in row["filtered_resps"]]
        for found in (one, many)
    ]
    assert likelihoods[0] == pytest.approx(likelihoods[1], rel=1e-4)
    untouched = evaluate(load_model(spec, torch.float32), tokenizer, evaluations[:1], 4)
    assert [float(row["filtered_resps"][0][0]) for row in untouched.samples] != pytest.approx(likelihoods[1][::2])
