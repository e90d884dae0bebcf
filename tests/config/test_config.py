"""Sweeps: what they expand to, and one clear message for each kind of bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.commands.options import read_stages
from bench.config.load import expand, load_sweep
from bench.config.resolver import RegistryResolver
from bench.driver.stages import Stages
from bench.plugins.registry import RegistryError, load, resolve
from bench.schema.trial import TrialSpec
from bench.schema.validation import ConfigError
from bench.task import Task

SWEEP = """
name: demo
task: {name: jsonl, path: FOLDER}
train: {steps: 6, batch_size: 4}
methods:
  - none
  - name: prefix_tuning
    config: {num_prompt_tokens: 3}
    train: {learning_rate: 1e-2}
seeds: [0, 1]
"""


def trials(tmp_path: Path, folder: Path, text: str = SWEEP, settings: tuple[str, ...] = ()) -> list[TrialSpec]:
    path = tmp_path / "sweep.yaml"
    path.write_text(text.replace("FOLDER", str(folder)))
    return expand(load_sweep(path, settings), RegistryResolver())


def test_methods_times_seeds(tmp_path: Path, tiny_task: Path) -> None:
    specs = trials(tmp_path, tiny_task)
    assert [(trial.method.name, trial.seed) for trial in specs] == [
        ("none", 0),
        ("none", 1),
        ("prefix_tuning", 0),
        ("prefix_tuning", 1),
    ]
    assert specs[2].train.learning_rate == 0.01, "PyYAML reads 1e-2 as text; it has to become a number"
    assert specs[2].method.config["num_prompt_tokens"] == 3
    assert specs[2].method.config["init"] == "text", "defaults are part of the record"


def test_grids_are_the_only_lists_that_mean_one_trial_each(tmp_path: Path, tiny_task: Path) -> None:
    own = "    config: {num_prompt_tokens: 3}\n    train: {learning_rate: 1e-2}\n"
    grid = "    grid: {config.num_prompt_tokens: [1, 2], train.learning_rate: [0.1, 0.2]}\n"
    text = SWEEP.replace(own, grid)
    specs = trials(tmp_path, tiny_task, text + "grid: {task.train_examples: [4, 8]}\n")
    labels = [trial.label for trial in specs if trial.method.name == "prefix_tuning" and trial.seed == 0]
    assert len(specs) == 2 * (1 + 4) * 2
    assert labels[0] == "train_examples=4,num_prompt_tokens=1,learning_rate=0.1"
    assert len({trial.trial_id for trial in specs}) == len(specs)


OWN_GRIDS = """
name: demo
task: {name: jsonl, path: FOLDER, choices: {labels: [a, b], prior: none}}
train: {steps: 6, batch_size: 4}
methods:
  - {name: none, grid: {task.choices.prior: [none, uniform]}}
  - lora
"""


@pytest.mark.parametrize("stages", ["", "stages: {final: {seeds: [0]}}\n"])
@pytest.mark.parametrize("first", ["none", "lora"])
def test_a_methods_own_grid_says_nothing_of_other_methods(
    stages: str, first: str, tmp_path: Path, tiny_task: Path
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text((OWN_GRIDS + stages).replace("FOLDER", str(tiny_task)))
    sweep = load_sweep(path)
    if first == "lora":
        sweep = sweep.model_copy(update={"methods": sweep.methods[::-1]})
    before = sweep.model_dump()
    found = Stages(sweep, RegistryResolver()).known_trials()
    assert sweep.model_dump() == before
    priors = [(spec.method.name, spec.task.config["choices"]["prior"]) for spec in found]
    assert sorted(priors) == [("lora", "none"), ("none", "none"), ("none", "uniform")]


def test_a_choice_of_the_grid_is_not_changed_by_another_one(tmp_path: Path, tiny_task: Path) -> None:
    text = OWN_GRIDS.replace(", choices: {labels: [a, b], prior: none}", "")
    grid = "grid: {task.choices: [{labels: [a, b], prior: none}]}\n"
    found = trials(tmp_path, tiny_task, text + grid)
    priors = [(spec.method.name, spec.task.config["choices"]["prior"]) for spec in found]
    assert sorted(priors) == [("lora", "none"), ("none", "none"), ("none", "uniform")]


def test_set_reaches_nested_keys_and_list_entries(tmp_path: Path, tiny_task: Path) -> None:
    settings = ("train.steps=3", "methods.1.config.num_prompt_tokens=7", "methods.0.train.steps=2", "seeds=[5]")
    specs = trials(tmp_path, tiny_task, settings=settings)
    assert [trial.train.steps for trial in specs] == [2, 3]
    assert specs[1].method.config["num_prompt_tokens"] == 7
    assert specs[0].seed == 5


def test_set_extends_the_short_form_of_model_and_task(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    text = "name: d\nmodel: FOLDER\ntask: facts\nmethods: [none]\n"
    specs = trials(tmp_path, tiny_models["llama"], text, ("model.attention=eager", "task.test_examples=5"))
    assert specs[0].model.attention == "eager"
    assert specs[0].model.path == str(tiny_models["llama"])
    assert specs[0].task.config["test_examples"] == 5


def test_the_identity_ignores_what_does_not_change_the_answer(tmp_path: Path, tiny_task: Path) -> None:
    first = trials(tmp_path, tiny_task)[2]
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for file in tiny_task.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    moved = trials(tmp_path, copy, settings=("resources.timeout_seconds=5", "resources.cpus_per_rank=1"))[2]
    assert moved.trial_id == first.trial_id
    changes = ("train.steps=7", "decode.beams=2", "resources.zero_stage=2", "task.test_examples=3", "seeds=[9, 1]")
    for change in changes:
        assert trials(tmp_path, tiny_task, settings=(change,))[2].trial_id != first.trial_id, change
    (copy / "train.jsonl").write_text((copy / "train.jsonl").read_text().replace("Rome", "Riga"))
    RegistryResolver.task.__globals__["_task"].cache_clear()
    assert trials(tmp_path, copy)[2].trial_id != first.trial_id, "other data is another trial"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("steps: 6", "step: 6"), r"sweep.yaml: train.step: unknown key \(value 6\); did you mean 'steps'\?"),
        (("seeds: [0, 1]", "answer: {pattern: boxed}"), "it stands in a section: task.answer"),
        (("seeds: [0, 1]", "sed: 1"), r"sweep.yaml: sed: unknown key \(value 1\); did you mean 'seeds'\?"),
        (("batch_size: 4", "batch_size: four"), "sweep.yaml: train.batch_size: .*valid integer.*'four'"),
        (("batch_size: 4", "batch_size: -4"), "train.batch_size: .*greater than 0, got -4"),
        (("num_prompt_tokens: 3", "num_prompt_token: 3"), "did you mean 'num_prompt_tokens'"),
        (("num_prompt_tokens: 3", "num_prompt_tokens: 0"), "num_prompt_tokens: .*greater than 0, got 0"),
        (("name: prefix_tuning", "name: prefix_tunning"), "methods.1: there is no method .*; did you mean 'prefix_tun"),
        (("name: jsonl", "name: 3"), "task.name: expected a text, e.g. facts, got 3$"),
        (("name: jsonl", "name: [jsonl]"), r"task.name: expected a text, e.g. facts, got \['jsonl'\]$"),
        (("path: FOLDER", "path: FOLDER, references: []"), "task jsonl: references: name at least one column"),
        (("path: FOLDER", "path: ~nobody.of.this.name"), "no file '~nobody.of.this.name/train.jsonl'"),
        (("batch_size: 4", "batch_size: 9223372036854775808"), "train.batch_size: no number here is beyond 9,223,372,"),
        (("steps: 6", "steps: 1000000000"), "methods.0.train.steps: 1,000,000,000 x batch_size 4 are more than"),
        (("steps: 6", "epochs: 1.0e+9"), r"methods.0.train.epochs: 1e\+09 is more than 1,000,000; set fewer"),
        (("name: jsonl", "name: jsonel"), "no task 'jsonel'; did you mean 'jsonl'"),
        (("path: FOLDER", "path: /nowhere"), "the train split is not there: no file '/nowhere/train.jsonl'"),
        (("path: FOLDER", "pfad: x"), "task jsonl: .*pfad: unknown key"),
        (("methods:", "method:"), "method: unknown key"),
        (("name: demo", "name: ../demo"), "name: .*pattern.*'../demo'"),
        (("steps: 6", "steps: 6, epochs: 2"), "set either steps or epochs, not both"),
        (("seeds: [0, 1]", "resources: {ranks: 3}"), "batch_size: 4 is not a multiple of ranks 3"),
        (("seeds: [0, 1]", "decode: {length_penalty: 0.8}"), "length_penalty has no effect with beams: 1"),
        (("seeds: [0, 1]", "grid: {seeds: [1]}"), "grid: 'seeds' is not a key that can vary"),
        (("seeds: [0, 1]", "grid: {train.steps: []}"), "an empty list asks for no trial"),
        (
            ("seeds: [0, 1]", "grid: {train.learning_rate: [0.1, 0.2]}"),
            r"methods.1.train.learning_rate has no effect: grid varies it; leave one of them out",
        ),
        (
            ("num_prompt_tokens: 3}", "num_prompt_tokens: 3}\n    grid: {config.num_prompt_tokens: [1]}"),
            r"methods.1.config.num_prompt_tokens has no effect: methods.1.grid varies it; leave one of them out",
        ),
        (("seeds: [0, 1]", "name: again"), "the key 'name' occurs twice"),
        (("seeds: [0, 1]", "model: ./nowhere"), "no folder './nowhere'"),
        (("seeds: [0, 1]", "model: {path: smollm2-135m, revision: x}"), "revision: 'x' has no effect"),
        (
            ("seeds: [0, 1]", "seeds: [0"),
            r"sweep.yaml: not valid YAML: line \d+, column \d+: [^\n]*expected ',' or '\]'.*$",
        ),
        (("seeds: [0, 1]", "\tseeds: [0]"), "sweep.yaml: not valid YAML: line 10, column 1: .*cannot start any token$"),
    ],
)
def test_bad_input_is_one_clear_message(change: tuple[str, str], message: str, tmp_path: Path, tiny_task: Path) -> None:
    old, new = change
    assert old in SWEEP
    with pytest.raises(ValueError, match=message):
        trials(tmp_path, tiny_task, SWEEP.replace(old, new))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "evaluations: [{lm_evals: x}]",
            r"yaml: evaluations.0.lm_evals: unknown key .*; did you mean 'lm_eval'\?$",
        ),
        ("stages: {tune: {trials: 1000000000}}", "stages.tune.trials: .*less than or equal to 100000, got 1000000000"),
        ("stages: {cost: {repetitions: 1001}}", "stages.cost.repetitions: .*less than or equal to 1000, got 1001"),
        (
            f"grid: {{train.steps: {list(range(1, 1002))}, train.batch_size: {list(range(1000))}}}",
            "1,001,000 choices of",
        ),
        ("decode: 3", "sweep.yaml: decode: expected a mapping, got 3$"),
        (f"decode: {'x' * 5000}", r"sweep.yaml: decode: expected a mapping, got 'x{119}… \(5,002 characters\)$"),
        (f"{'x' * 900}: 1", r"sweep.yaml: x{120}… \(900 characters\): unknown key \(value 1\)"),
        ("resources: {fuse: x}", "resources.fuse: Input should be 'off' or 'auto', or a valid integer.*, got 'x'$"),
        (
            "decode: {early_stopping: x}",
            "decode.early_stopping: Input should be a valid bool.*, or 'never', got 'x'$",
        ),
        ("seeds: [a, b, c, d, e, f, g]", "seeds.4: .*, got 'e'; and 2 more$"),
        ("seeds: [1, 0, 1]", "seeds: 1 is there twice"),
        ("seeds: [4294967296]", "seeds.0: .*less than 4294967296, got 4294967296"),
        ("seeds: [-1]", "seeds.0: .*greater than or equal to 0, got -1"),
        ("decode: {max_new_tokens: 1000001}", "decode.max_new_tokens: 1,000,001 is more than 1,000,000; set fewer"),
        ("decode: {min_new_tokens: 97}", r"decode.min_new_tokens: 97 is more than max_new_tokens \(96\)"),
        ("model: {path: m, commit: a}", "model.commit: 'a': this is found out .* leave it out"),
        ("evaluations: [{lm_eval: x, config_sha256: a}]", "evaluations.0.config_sha256: 'a': this is found out"),
        ("model: ~nobody.of.this.name/m", "model.path: there is no folder '~nobody.of.this.name/m'"),
        (f"model: {'m' * 5000}", r"model.path: 'm{119}… \(5,002 characters\): File name too long"),
    ],
)
def test_a_line_that_cannot_be_is_one_short_message(line: str, message: str, tmp_path: Path, tiny_task: Path) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        trials(tmp_path, tiny_task, SWEEP.replace("seeds: [0, 1]", line))
    assert len(str(refusal.value)) < 1500


def test_a_file_name_that_is_too_long_is_bad_input(tmp_path: Path, tiny_task: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP.replace("FOLDER", f"{tiny_task}, train: {'x' * 300}"))
    with pytest.raises(ConfigError, match=r"sweep.yaml: .*… \([0-9]* characters\): File name too long"):
        read_stages(path, None)


def test_a_revision_of_a_folder_is_refused(tmp_path: Path, tiny_task: Path, tiny_models: dict[str, Path]) -> None:
    line = f"model: {{path: {tiny_models['llama']}, revision: abc}}"
    with pytest.raises(ConfigError, match=r"model.revision: 'abc' has no effect with the folder"):
        trials(tmp_path, tiny_task, SWEEP.replace("seeds: [0, 1]", line))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.stps=3", "train.stps: unknown key"),
        ("train", "expected key.path=value"),
        ("methods.9.name=full", "'9' is not an index of a list of 2"),
        ("name.first=x", "name is 'demo', which has no keys"),
        ("=3", "expected key.path=value"),
        ("seeds.0.x=3", "seeds.0 is 0, which has no keys"),
        ("seeds.0.x.y=3", "seeds.0 is 0, which has no keys"),
        ("seeds.0=3", r"set the whole list, as in seeds=\[...\]; it is \[0, 1\]"),
        ("methods.0=lora", "name a key of an entry, as in methods.0.name"),
        ("methods.².name=lora", "'²' is not an index of a list of 2"),
    ],
)
def test_bad_settings(setting: str, message: str, tmp_path: Path, tiny_task: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        trials(tmp_path, tiny_task, settings=(setting,))


def test_a_missing_sweep_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing.yaml: cannot be read: No such file"):
        load_sweep(tmp_path / "nothing.yaml")


def test_a_model_folder_without_weights_is_refused(tmp_path: Path, tiny_task: Path) -> None:
    (tmp_path / "model").mkdir()
    text = SWEEP + f"model: {tmp_path / 'model'}\n"
    with pytest.raises(ValueError, match=r"has no config.json"):
        trials(tmp_path, tiny_task, text)
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "pytorch_model.bin").write_text("")
    with pytest.raises(ValueError, match=r"no \*.safetensors file with weights \(found pytorch_model.bin; only"):
        trials(tmp_path, tiny_task, text)


def test_a_class_by_path_and_its_errors() -> None:
    assert resolve("method", "methods.full:FullFineTuning") == "methods.full:FullFineTuning"
    with pytest.raises(RegistryError, match="cannot be loaded: ModuleNotFoundError"):
        load("method", "no_such_module:Class")
    with pytest.raises(RegistryError, match="is not a method: it must be a subclass of Method"):
        load("method", "bench.schema.sweep:Sweep")


def test_every_shipped_sweep_is_valid(
    monkeypatch: pytest.MonkeyPatch, shared_data: Path, tiny_models: dict[str, Path]
) -> None:
    root = Path(__file__).resolve().parents[2]
    monkeypatch.chdir(root)
    e2e = f"task.path={shared_data / 'e2e'}"
    extra: dict[str, Any] = {
        "e2e_cpu.yaml": (e2e,),
        "three_stages_cpu.yaml": (e2e, f"model={tiny_models['llama']}"),  # its own model is made by a command
    }
    for path in sorted([*(root / "configs").glob("*.yaml"), *(root / "configs" / "examples").glob("*.yaml")]):
        assert Stages(load_sweep(path, extra.get(path.name, ())), RegistryResolver()).known_trials(), path


def test_a_task_says_what_ends_a_text_unless_the_sweep_does(tmp_path: Path, tiny_task: Path) -> None:
    [before, *_] = trials(tmp_path, tiny_task)
    assert before.decode.stop == ["\n"]
    assert "stop" not in before.identity["decode"], "ids of trials that stop at a line break are what they were"
    [same, *_] = trials(tmp_path, tiny_task, settings=('decode.stop=["\\n"]',))
    assert same.trial_id == before.trial_id
    [other, *_] = trials(tmp_path, tiny_task, settings=("decode.stop=[]",))
    assert other.decode.stop == []
    assert other.trial_id != before.trial_id
    assert Task.stop == (), "a task that says nothing ends at the end tokens of the model"
    varied = trials(tmp_path, tiny_task, SWEEP + 'grid: {decode.stop: [[], ["###"]]}\n')
    assert {tuple(trial.decode.stop) for trial in varied} == {(), ("###",)}
    with pytest.raises(ConfigError, match=r"decode.stop.0.*at least 1 character"):
        trials(tmp_path, tiny_task, settings=('decode.stop=[""]',))
