"""A chat model is tuned on messages, decoded over several lines, and scored by the answers in its texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from chat_templates import save_chat_model
from in_process import run_here

from bench.config.load import expand, load_sweep
from bench.config.resolver import RegistryResolver
from bench.driver.prepare import prepare
from bench.models.adapter import restore
from bench.schema.record import Completed
from bench.schema.validation import ConfigError
from bench.statistics.significance import significance
from bench.store.predictions import read_predictions
from bench.store.records import Store
from bench.task import Example

SWEEP = """
name: tiny
model: {model}
task: {{name: chat, path: {data}, answer: {{pattern: last_number}}, dev_examples: 4, test_examples: 8}}
train: {{steps: 40, batch_size: 8, learning_rate: 2e-2}}
decode: {{max_new_tokens: 24}}
methods: [none, full, {{name: lora, config: {{rank: 2, alpha: 8}}, train: {{steps: 2}}}}]
"""


def sweep_of(folder: Path, template: str) -> Path:
    """Two lines in reply to each question, of which the second has the answer."""
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"so\nit is {n % 3}."}]}
        for n in range(24)
    ]
    (folder / "data").mkdir()
    for split, chosen in {"train": rows, "dev": rows[:4], "test": rows[4:12]}.items():
        (folder / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    (folder / "model").mkdir()
    model = save_chat_model(folder / "model", template)
    path = folder / "sweep.yaml"
    path.write_text(SWEEP.format(model=model, data=folder / "data"))
    return path


def test_a_chat_model_is_tuned_on_messages(store: Store, tmp_path: Path, one_rank: None) -> None:
    specs = expand(load_sweep(sweep_of(tmp_path, "llama")), RegistryResolver())
    assert specs[0].decode.stop == []
    said: list[str] = []
    prepare(specs, said.append)
    assert not any("warning" in line and "come back" in line for line in said), said
    results = {result.spec.method.name: [result] for result in run_here(store, specs)}
    full = results["full"][0]
    assert isinstance(full.outcome, Completed)
    rows = read_predictions(store.root, full.trial_id)
    assert rows is not None
    assert all(row["prediction"].startswith("so\nit is ") for row in rows), rows[:2]
    right = [row["prediction"].rstrip(".")[-1] == row["references"][0].rstrip(".")[-1] for row in rows]
    assert full.outcome.scores.values["accuracy"] == pytest.approx(100 * sum(right) / len(rows))
    assert full.outcome.scores.values["truncated_rate"] == 0.0, "turns end by the template's own end"
    tested = significance(store.root, results, "accuracy", True)
    assert tested is not None
    assert len(tested.differences) == 3
    restored = restore(store.trials / full.trial_id, torch.device("cpu"))
    prompt = restored.tokenizer.decode(restored.source_ids("4?"))
    assert prompt == "<s><|start|>user<|stop|>\n\n4?<|eot|><|start|>assistant<|stop|>\n\n"


def test_a_template_that_refuses_the_data_is_one_error_before_the_sweep(tmp_path: Path) -> None:
    path = sweep_of(tmp_path, "gemma")
    specs = expand(load_sweep(path, ["task.system_prompt=Be brief."]), RegistryResolver())
    with pytest.raises(ConfigError, match=r"refuses the turns system, .*System role not supported; set system_in"):
        prepare(specs, lambda line: None)
    with pytest.raises(ConfigError, match=r"--shots 1: pairs cannot be shown in a chat template"):
        from bench.models.few_shot import with_examples

        with_examples(specs[0], 1)


def test_ids_tell_templates_apart(tmp_path: Path) -> None:
    path = sweep_of(tmp_path, "llama")
    first = expand(load_sweep(path), RegistryResolver())[0]
    briefly = expand(load_sweep(path, ["task.system_prompt=Be brief."]), RegistryResolver())[0]
    assert first.trial_id != briefly.trial_id
    assert Example("a", (), "b", ()).turns == ()
