"""Set-ups that people know: valid, planned, and run with a tiny model on local files of the same shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_templates import save_chat_model
from in_process import run_here

from bench.config.load import expand, load_sweep
from bench.config.resolver import RegistryResolver
from bench.driver.prepare import prepare
from bench.plan.plan import planned_parameters, planned_work
from bench.plugins.registry import make_task
from bench.report.published import fits, load_published, quoted
from bench.schema.record import Completed
from bench.schema.trial import TrialSpec
from bench.store.records import Store
from bench.task import TaskError
from bench.tasks.metamath import METAMATH, TOO_LONG

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "papers"
PUBLISHED = FOLDER / "published" / "peft_method_comparison.yaml"


def json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_metamath(folder: Path) -> dict[str, Any]:
    """MetaMathQA is one array, GSM8K has JSON lines."""
    rows = [{"query": f"{n} + 1?", "response": f"So {n + 1}.\nThe answer is: {n + 1}", "type": "x"} for n in range(12)]
    (folder / METAMATH).write_text(json.dumps([*rows, {"query": "long", "response": "x" * 1300}]))
    json_lines(folder / "train.jsonl", [{"question": f"{n}?", "answer": f"It is {n}.\n#### {n}"} for n in range(60)])
    json_lines(folder / "test.jsonl", [{"question": f"{n}, no?", "answer": f"It is.\n#### {n},000"} for n in range(6)])
    return {"path": str(folder), "dev_size": 4}


def write_glue(folder: Path) -> dict[str, Any]:
    """As the hub has it: the label is a class."""
    import datasets

    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    for split, size in (("train", 40), ("validation", 6)):
        rows = {"sentence": [f"film {n} of {split}" for n in range(size)], "label": [n % 2 for n in range(size)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return {"path": str(folder), "subset": None, "dev_examples": 4}


def write_chat(folder: Path) -> dict[str, Any]:
    talk = [{"role": "user", "content": "Name {n}."}, {"role": "assistant", "content": "It is\n{n}."}] * 2
    for split, size in (("train", 8), ("dev", 3), ("test", 3)):
        rows = [
            {"messages": [{**turn, "content": turn["content"].format(n=f"{split}{n}")} for turn in talk]}
            for n in range(size)
        ]
        json_lines(folder / f"{split}.jsonl", rows)
    return {"path": str(folder), "dev_examples": 4, "test_examples": 4}


DATA: dict[str, Callable[[Path], dict[str, Any]]] = {
    "peft_method_comparison": write_metamath,
    "glue": write_glue,
    "alpaca_chat": write_chat,
}


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model"), "chatml")


def tiny(name: str, model: Path, folder: Path) -> list[TrialSpec]:
    """The set-up on a model of two layers and a few rows, for two steps."""
    sweep = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    (folder / "data").mkdir(exist_ok=True)
    sweep["model"] = str(model)
    sweep["task"] |= DATA[name](folder / "data")
    for train in (sweep["train"], *(entry.get("train", {}) for entry in sweep["methods"] if isinstance(entry, dict))):
        for length in ("epochs", "micro_batch_size", "evaluate_every_steps"):
            train.pop(length, None)
    sweep["train"] |= {"steps": 2, "batch_size": 4, "warmup_steps": 1}
    sweep["published"] = [str(FOLDER / one) for one in sweep.get("published", ())]
    if "max_new_tokens" in sweep.get("decode", {}):
        sweep["decode"]["max_new_tokens"] = 6
    for entry in sweep["methods"]:
        if isinstance(entry, dict) and "num_layers" in entry.get("config", {}):
            entry["config"]["num_layers"] = 2
        if isinstance(entry, dict) and entry.get("config", {}).get("num_prompt_tokens", 0) > 50:
            entry["config"]["num_prompt_tokens"] = 5
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return expand(load_sweep(path, ["resources.precision=fp32", "seeds=[0]"]), RegistryResolver())


@pytest.mark.parametrize("name", DATA)
def test_a_set_up_can_be_planned(name: str, chat_model: Path, tmp_path: Path) -> None:
    assert load_sweep(FOLDER / f"{name}.yaml").name == name
    trials = tiny(name, chat_model, tmp_path)
    prepare(trials, lambda line: None)
    for trial in trials:
        assert (planned_parameters(trial.method, trial.model).trained > 0) == (trial.method.name != "none")
        work = planned_work(trial)
        assert (work.chosen_tokens > 0, work.decoded_sources > 0) == ((name == "glue"), (name != "glue"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name != "glue" else pytest.mark.full) for name in DATA]
)
def test_a_set_up_runs_with_a_tiny_model(
    name: str, chat_model: Path, store: Store, tmp_path: Path, one_rank: None
) -> None:
    (spec,) = (trial for trial in tiny(name, chat_model, tmp_path) if trial.method.name == "prompt_tuning")
    (result,) = run_here(store, [spec])
    assert isinstance(result.outcome, Completed)
    first = next(iter(result.outcome.scores.values))
    assert first == ("bleu" if name == "alpaca_chat" else "accuracy")


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", DATA)
def test_every_method_of_a_set_up_runs(
    name: str, chat_model: Path, store: Store, tmp_path: Path, one_rank: None
) -> None:
    run_here(store, tiny(name, chat_model, tmp_path))


def test_the_published_table_is_whole_and_stands_beside_ours(chat_model: Path, tmp_path: Path) -> None:
    rows = list(quoted(load_published(PUBLISHED)))
    assert len(rows) == 63
    by_label = {row.label: row for row in rows}
    assert by_label["lora, rank32, lr 0.0001"].values["accuracy"] == pytest.approx(47.8393)
    assert by_label["full-finetuning, lr_0.00001, lr 1e-05"].values["accuracy"] == pytest.approx(47.1569)
    assert by_label["prompt_tuning, sample_vocab-lr_0.001, lr 0.001"].parameters == 614_400
    beside = {
        row.label for trial in tiny("peft_method_comparison", chat_model, tmp_path) for row in rows if fits(row, trial)
    }
    for label in ("lora, rank32, lr 0.0001", "lora, rank64-rslora, lr 0.0001", "lora, rank32-dora, lr 0.0001"):
        assert label in beside
    assert "lora, rank32-lorafa, lr 0.0001" not in beside


def test_metamath_is_cut_as_the_benchmark_cuts_it(tmp_path: Path) -> None:
    config = write_metamath(tmp_path) | {"dev_size": 50}
    task = make_task(RegistryResolver().task("metamath", config))
    assert len(task.load("train")) == 12
    assert task.skipped("train") == {TOO_LONG: 1}
    dev = task.load("dev")
    # numpy.random.seed(0); numpy.random.shuffle(numpy.arange(60)) begins with 26, 35, 59
    assert [one.source for one in dev[:3]] == ["26?", "35?", "59?"]
    assert len(dev) == 50
    (tmp_path / METAMATH).write_text('[{"query": "x"}]')
    with pytest.raises(TaskError, match=r"MetaMathQA-395K.json: line 1: 'response' must hold a text, got None"):
        task.load("train")
