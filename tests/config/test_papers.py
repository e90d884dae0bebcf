"""The published set-ups: valid, complete, and running with a tiny model in place of GPT-2 and T5."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import Done

from bench.config.load import expand, load_sweep
from bench.config.resolver import RegistryResolver
from bench.plan.plan import planned_parameters
from bench.report.published import fits, load_published, published_files, quoted
from bench.schema.trial import ModelSpec, TrialSpec

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs" / "papers"
# Those on data sets that are no benchmark of data-to-text are in test_known_configurations.py.
SWEEPS = sorted(FOLDER.glob("[hl]*_[12]*.yaml"))
SMALL = {"train_examples": 24, "dev_examples": 2, "test_examples": 2, "check_counts": False}


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """A GPT-2 of two narrow layers with random weights and the real tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-gpt2")
    end = "<|endoftext|>"
    file = str(shared_data / "gpt2_tokenizer" / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, bos_token=end, eos_token=end)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2)).save_pretrained(folder)
    return folder


@pytest.fixture
def models(tiny_gpt2: Path, tiny_models: dict[str, Path]) -> dict[str, Path]:
    """Published model to its stand-in."""
    return {
        "openai-community/gpt2-medium": tiny_gpt2,
        "openai-community/gpt2-large": tiny_gpt2,
        "google/t5-large-lm-adapt": tiny_models["t5"],
    }


def stand_in(path: Path, models: dict[str, Path], shared_data: Path, folder: Path, **changes: Any) -> Path:
    """The sweep with stand-ins for its models, the data at hand and a few more changes, as a file."""
    text = path.read_text()
    for name, model in models.items():
        text = text.replace(name, str(model))
    sweep = yaml.safe_load(text)
    sweep["task"] |= {"path": str(shared_data / sweep["task"]["name"])}
    sweep["published"] = [str(FOLDER / name) for name in sweep.get("published", ())]
    if sweep["task"]["name"] == "dart":
        sweep["task"]["train_split"] = "dev"  # the training file is not at hand
    for key, value in changes.items():
        sweep[key] = {**sweep.get(key, {}), **value} if isinstance(value, dict) else value
    written = folder / path.name
    written.write_text(yaml.safe_dump(sweep))
    return written


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_set_up_is_valid_and_can_be_planned(
    path: Path, models: dict[str, Path], shared_data: Path, tmp_path: Path
) -> None:
    trials = expand(load_sweep(stand_in(path, models, shared_data, tmp_path)), RegistryResolver())
    assert load_sweep(path).name == path.stem
    for trial in trials:
        assert planned_parameters(trial.method, trial.model).trained > 0


def gpt2_medium(folder: Path) -> ModelSpec:
    """The shape of GPT-2 medium, without weights."""
    from transformers import GPT2Config

    GPT2Config(n_embd=1024, n_layer=24, n_head=16).save_pretrained(folder)
    (folder / "model.safetensors").touch()
    return ModelSpec(path=str(folder))


@pytest.mark.parametrize("task", ["e2e", "webnlg", "dart"])
def test_trained_parameters_are_those_that_the_papers_print(
    task: str, models: dict[str, Path], shared_data: Path, tmp_path: Path
) -> None:
    medium = gpt2_medium(tmp_path / "medium")
    counted: dict[str, int] = {}
    for paper in ("li_liang_2021", "hu_2021"):
        sweep = stand_in(FOLDER / f"{paper}_{task}.yaml", models, shared_data, tmp_path)
        for trial in expand(load_sweep(sweep), RegistryResolver()):
            counts = planned_parameters(trial.method, medium)
            size = trial.method.config.get("bottleneck_size", "")
            counted[f"{trial.method.name}{size}"] = counts.stored
    prefix_length = 10 if task == "dart" else 5
    assert counted == {
        "full": 354_823_168,
        "top_layers": 25_192_448,
        "adapters225": 11_089_176,
        "adapters7": 368_808,
        "prefix_tuning": prefix_length * 24 * 2 * 1024,
        "lora": 4 * 2 * 2 * 1024 * 24,
    }


def test_every_row_of_the_tables_that_a_set_up_reproduces_is_in_it(
    models: dict[str, Path], shared_data: Path, tmp_path: Path
) -> None:
    found: dict[str, list[TrialSpec]] = {}
    for path in SWEEPS:
        found[path.stem] = expand(load_sweep(stand_in(path, models, shared_data, tmp_path)), RegistryResolver())
        for numbers in published_files(path, load_sweep(path)):
            assert path.stem.startswith(numbers.stem)
    for paper, table, sweep in (
        ("li_liang_2021", "arXiv:2101.00190v1 Table 1, E2E", "li_liang_2021_e2e"),
        ("li_liang_2021", "arXiv:2101.00190v1 Table 1, WebNLG", "li_liang_2021_webnlg"),
        ("li_liang_2021", "arXiv:2101.00190v1 Table 1, DART", "li_liang_2021_dart"),
        ("li_liang_2021", "arXiv:2101.00190v1 Table 4, per layer or input only", "li_liang_2021_per_layer"),
        ("hu_2021", "Table 3, E2E", "hu_2021_e2e"),
        ("hu_2021", "Table 14, WebNLG", "hu_2021_webnlg"),
        ("hu_2021", "Table 13, DART", "hu_2021_dart"),
    ):
        rows = [row for row in quoted(load_published(FOLDER / "published" / f"{paper}.yaml")) if row.table == table]
        if paper == "hu_2021":  # the other rows are what they compare LoRA with
            rows = [row for row in rows if row.method == "lora"]
        assert rows
        for row in rows:
            assert any(fits(row, trial) for trial in found[sweep]), row


Run = Callable[[Path, list[str]], list[Any]]


@pytest.fixture
def run_tiny(
    models: dict[str, Path],
    shared_data: Path,
    tmp_path: Path,
    tuneoff: Callable[..., Done],
    trials_in_this_process: None,
) -> Run:
    """Runs these methods of a set-up for two steps, in this process; returns the records."""

    def run(path: Path, methods: list[str]) -> list[Any]:
        sweep = tiny_sweep_of(path, models, shared_data, tmp_path, methods)
        results = tmp_path / "results"
        done = tuneoff("run", str(sweep), "--results", str(results), "--launcher", "local")
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(record.read_text()) for record in results.glob(f"{path.stem}/trials/*/result.json")]

    return run


def tiny_sweep_of(path: Path, models: dict[str, Path], shared_data: Path, folder: Path, methods: list[str]) -> Path:
    """A set-up with these methods alone, one seed and two steps."""
    original = yaml.safe_load(path.read_text())
    entries = []
    for entry in original["methods"]:
        if entry["name"] in methods:
            train = {key: value for key, value in entry.get("train", {}).items() if key != "epochs"}
            entries.append({**entry, "train": {**train, "steps": 2}})
    sweep = stand_in(
        path,
        models,
        shared_data,
        folder,
        methods=entries,
        seeds=original["seeds"][:1],
        task=SMALL,
        decode={"max_new_tokens": 4},
    )
    text = sweep.read_text()
    for name, model in models.items():
        text = text.replace(name, str(model))
    sweep.write_text(text)
    return sweep


def test_a_set_up_runs_with_a_tiny_model(run_tiny: Run, tmp_path: Path) -> None:
    path = FOLDER / "li_liang_2021_e2e.yaml"
    (record,) = run_tiny(path, ["prefix_tuning"])
    assert record["outcome"]["status"] == "completed"
    assert record["spec"]["train"]["loss_reduction"] == "sequence_sum"
    assert record["outcome"]["parameters"]["stored"] == 5 * 2 * 2 * 16
    assert record["outcome"]["parameters"]["trained"] > record["outcome"]["parameters"]["stored"]
    shown = (tmp_path / "results" / path.stem / "report" / "report.md").read_text()
    assert "Li & Liang 2021, arXiv:2101.00190v1 Table 1, E2E: Prefix (0.1%) (openai-community/gpt2-medium) | " in shown
    assert "ours are no reproduction" in shown


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_set_up_runs_with_a_tiny_model(path: Path, run_tiny: Run) -> None:
    names = {entry["name"] for entry in yaml.safe_load(path.read_text())["methods"]}
    records = run_tiny(path, sorted(names))
    assert {record["spec"]["method"]["name"] for record in records} == names
    assert {record["outcome"]["status"] for record in records} == {"completed"}
