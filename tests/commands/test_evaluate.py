"""Trained adapters and models are scored like trials of a sweep: the same scores and texts, and a row of their own."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Done
from disturbed import disturb
from safetensors.torch import load_file, save_file
from test_adapters import logits, trained_adapter

from bench.config.evaluation import Evaluations
from bench.config.load import expand, load_sweep
from bench.config.resolver import RegistryResolver
from bench.driver.status import read_status
from bench.models.base import load_model, load_tokenizer
from bench.models.export_to_peft import export_merged, export_to_peft
from bench.models.few_shot import next_pair
from bench.models.loaded import load_into
from bench.models.tokens import tokenization
from bench.plugins.registry import make_method, make_task
from bench.report.configurations import comparisons
from bench.schema.record import Completed
from bench.schema.trial import ModelSpec, TrialSpec
from bench.schema.validation import ConfigError
from bench.statistics.systems import PairedSystems, load_system
from bench.store.records import Store
from bench.tasks.splits import load_splits

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"config": {"rank": 2}, "resources": {"precision": "bf16"}},
    "prefix_tuning": {"config": {"num_prompt_tokens": 3, "parametrization": "mlp"}},
    "full": {},
}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch, trials_in_this_process: None) -> None:
    """Trials run in this process, and no report is made."""
    for command in ("evaluate", "sweeps"):  # pages and plots are tested elsewhere
        monkeypatch.setattr(f"bench.commands.{command}.report_sweep", lambda store: None)


@pytest.fixture
def sweep(tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep on the shipped facts; the folder of the test is the current one."""
    monkeypatch.chdir(tmp_path)
    content = {
        "name": "tiny",
        "model": str(tiny_models["llama"]),
        "task": {"name": "facts", "train_examples": 16, "dev_examples": 4, "test_examples": 6, "max_source_tokens": 60},
        "train": {"steps": 4, "batch_size": 4, "learning_rate": 1e-2},
        "decode": {"max_new_tokens": 6, "batch_size": 4},
        "methods": [{"name": name, **entry} for name, entry in METHODS.items()],
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(content))
    return path


def texts(root: Path, trial_id: str) -> Any:
    with gzip.open(root / "trials" / trial_id / "predictions.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def completed(store: Store, trial_id: str) -> Completed:
    stored_result = store.read(trial_id)
    assert stored_result is not None
    assert isinstance(stored_result.outcome, Completed), stored_result.outcome
    return stored_result.outcome


def test_what_is_loaded_has_the_scores_and_texts_of_its_trial(
    sweep: Path, tuneoff: Callable[..., Done], in_this_process: None
) -> None:
    done = tuneoff("run", str(sweep))
    assert done.returncode == 0, done
    store = Store(Path("results/tiny"))
    trials = {name: f"results/tiny/trials/{name}" for name in store.trial_ids()}
    assert len(trials) == len(METHODS)
    status = read_status(store.root)
    done = tuneoff("evaluate", str(sweep), *trials.values())
    assert done.returncode == 0, done
    assert read_status(store.root) == status, "that of the sweep, which the report speaks of"
    evaluated = {
        result.spec.loaded.path.rpartition("/")[2]: result
        for result in store.read_all()
        if result.spec.loaded is not None
    }
    assert evaluated.keys() == trials.keys()
    for name, result in evaluated.items():
        outcome, own = completed(store, result.trial_id), completed(store, name)
        assert outcome.scores == own.scores
        assert texts(store.root, result.trial_id) == texts(store.root, name)
        assert (outcome.dev_loss, outcome.test_loss) == (own.stored_dev_loss, own.test_loss)
        assert outcome.train is None
        assert outcome.parameters == own.parameters
        assert outcome.adapter_bytes == own.adapter_bytes
        assert result.spec.label == f"evaluated={name}"
    before = store.trial_ids()
    done = tuneoff("evaluate", str(sweep), *trials.values(), "--set", "train.steps=9")
    assert "3 trials, 3 done, 0 to run" in done.stdout, "however it was trained, it is the same"
    assert store.trial_ids() == before

    (table,) = comparisons(store.read_all())
    assert len({configuration.name for configuration in table.configurations}) == len(trials) + len(evaluated)
    paired = PairedSystems(
        tuple(
            load_system(store.root, configuration.name, configuration.results) for configuration in table.configurations
        )
    )
    made = paired.statistics("chrf")
    assert made is not None, "every row can be tested source by source"


@pytest.fixture
def evaluations(sweep: Path) -> Callable[..., Evaluations]:
    """Those of the sweep file, with further settings."""

    def make(*settings: str) -> Evaluations:
        keys = [setting.partition("=")[0] for setting in settings]
        return Evaluations(load_sweep(sweep, settings), RegistryResolver(), keys)

    return make


def test_the_base_model_is_the_trial_none_and_may_be_shown_training_pairs(
    sweep: Path, evaluations: Callable[..., Evaluations], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.models.few_shot.context_length", lambda trial: None)
    settings = ("task.template={source} ->", "task.max_source_tokens=1000")
    with_none = load_sweep(sweep, ["methods=[none]"])
    plain = evaluations().base_trial(shots=0, seed=None)
    assert [plain.trial_id] == [trial.trial_id for trial in expand(with_none, RegistryResolver())]

    prompted = evaluations(*settings).base_trial(shots=2, seed=3)
    splits = load_splits(make_task(plain.task))
    shown = {example.id: example for example in splits["train"]}
    assert prompted.few_shot is not None
    first, second = (shown[name] for name in prompted.few_shot.examples)
    template = prompted.task.config["template"]
    assert template == (
        f"{first.source} -> {first.references[0]}\n\n{second.source} -> {second.references[0]}\n\n{{source}} ->"
    )
    assert not {first.source, second.source} & {one.source for one in [*splits["dev"], *splits["test"]]}
    assert prompted == evaluations(*settings).base_trial(shots=2, seed=3), "drawn by the seed alone"
    other = evaluations(*settings).base_trial(shots=2, seed=4)
    assert prompted.few_shot != other.few_shot
    assert {**prompted.identity, "seed": 4} == other.identity, "one row over seeds"
    assert prompted.label == "shots=2"
    tokens = tokenization(prompted.model, make_task(prompted.task).config)
    test = splits["test"][0]
    assert tokens.tokenizer.decode(tokens.source(test)) == template.replace("{source}", test.source)


def test_a_text_without_stop_strings_ends_where_the_next_pair_would_begin(
    evaluations: Callable[..., Evaluations], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.models.few_shot.context_length", lambda trial: None)
    settings = ("task.max_source_tokens=1000", "decode.stop=[]")
    assert evaluations(*settings).base_trial(shots=0, seed=None).decode.stop == []
    assert evaluations(*settings).base_trial(shots=1, seed=None).decode.stop == ["\n\n"]
    of_the_task = evaluations("task.max_source_tokens=1000").base_trial(shots=1, seed=None)
    assert of_the_task.decode.stop == ["\n"]
    assert next_pair("{bos}Question: {source}\nAnswer:", ["one\n\ntwo"]) == ["\n\nQuestion:"]
    assert next_pair("{source}\nAnswer:", ["one\n\ntwo"]) == []
    assert next_pair("{source}\nAnswer:", ["one\ntwo\n\n"]) == ["\n\n"], "what stands behind a reference is cut off"


@pytest.mark.parametrize(
    ("settings", "shots", "message"),
    [
        ([], 4, r"--shots 4: the longest prompt takes \d+ tokens with what is written behind it, and .* at most 128"),
        ([], 17, r"--shots 17: the training data have \d+ sources that are no dev or test sources; ask for fewer"),
        (["grid={decode.beams: [1, 2]}"], 0, r"grid.decode.beams: the sweep has 1, 2; say .* --set decode.beams=..."),
    ],
)
def test_what_the_base_model_cannot_be_asked(
    settings: list[str], shots: int, message: str, evaluations: Callable[..., Evaluations]
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluations(*settings).base_trial(shots, seed=None)


def test_what_is_no_adapter_of_this_base_model_is_one_line(
    evaluations: Callable[..., Evaluations], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    def refused(path: Path, *settings: str) -> str:
        with pytest.raises(ConfigError) as error:
            evaluations(*settings).stored_trial(path, 0, None, None)
        assert "\n" not in str(error.value)
        return str(error.value)

    llama, adapter = tiny_models["llama"], tmp_path / "adapter"
    trained_adapter("lora", {"rank": 2}, llama, adapter)
    tensors = adapter / "adapter.safetensors"
    trial = evaluations().stored_trial(tensors, 0, None, "mine")
    assert (trial.label, trial.task.config["template"]) == ("evaluated=mine", "Facts: {source}\nText:")
    assert trial.trial_id == evaluations("train.steps=7").stored_trial(adapter, 0, None, "mine").trial_id

    assert "the adapter was trained on" in refused(adapter, f"model={tiny_models['gpt2']}")
    assert "nothing to score; give the folder of a completed trial" in refused(tmp_path)
    assert "there is no such folder" in refused(tmp_path / "nowhere")
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-100])
    assert f"{tensors}: damaged, or no file of safetensors" in refused(adapter)
    other = load_file(write_bytes(tmp_path / "whole.safetensors", whole))
    save_file({name: tensor[:1].contiguous() for name, tensor in other.items()}, tensors)
    assert "not an adapter of" in refused(adapter)
    assert "stored shape" in refused(adapter)
    save_file(dict(list(other.items())[1:]), tensors)
    assert "the stored state lacks 1 tensors of this method" in refused(adapter)
    assert "not " in (message := refused(tiny_models["gpt2"]))
    assert "this model does not have it; a model of another make is compared in a sweep of its own" in message


@pytest.mark.parametrize(
    "resources",
    [
        "{zero_stage: 2, deepspeed: {zero_optimization: {overlap_comm: true}}}",
        "{zero_stage: 1, offload: {optimizer: cpu}, deepspeed: {dump_state: true}}",
        "{zero_stage: 3, offload: {optimizer: cpu, parameters: cpu}, checkpoint_every_steps: 2}",
    ],
)
def test_what_is_scored_beside_a_sweep_under_zero_can_be_read_back(
    resources: str, evaluations: Callable[..., Evaluations], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    trained_adapter("lora", {"rank": 2}, tiny_models["llama"], tmp_path / "adapter")
    made = evaluations(f"resources={resources}")
    for trial in (made.stored_trial(tmp_path / "adapter", 0, None, None), made.base_trial(0, None)):
        assert TrialSpec.model_validate_json(trial.model_dump_json()) == trial


def test_an_adapter_trained_in_a_chat_template_is_asked_as_in_training(
    evaluations: Callable[..., Evaluations], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    trained_adapter("lora", {"rank": 2}, tiny_models["llama"], tmp_path / "adapter")
    card = tmp_path / "adapter" / "adapter.json"
    in_training = {"template": "chat", "system_prompt": "Be brief.", "system_in": "user", "chat_options": {"a": 1}}
    card.write_text(json.dumps({**json.loads(card.read_text()), **in_training}))
    config = evaluations().stored_trial(card.parent, 0, None, None).task.config
    assert {name: config[name] for name in in_training} == in_training
    settings = ("task.template=chat", "task.system_prompt=At length.")
    config = evaluations(*settings).stored_trial(card.parent, 0, None, None).task.config
    assert config["system_prompt"] == "At length.", "that of the command line"


def test_an_adapter_is_scored_on_weights_in_the_format_of_its_training(
    evaluations: Callable[..., Evaluations], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    trained_adapter("lora", {"rank": 2}, tiny_models["llama"], tmp_path / "adapter", quantization="nf4")
    card = tmp_path / "adapter" / "adapter.json"
    content = json.loads(card.read_text())
    content["model"] |= {"double_quantization": True, "quantization_compute": "bf16"}
    card.write_text(json.dumps(content))

    def scored_on(*settings: str) -> tuple[str | None, bool, str | None]:
        model = evaluations(*settings).stored_trial(card.parent, 0, None, None).model
        return model.quantization, model.double_quantization, model.quantization_compute

    assert scored_on() == ("nf4", True, "bf16")
    grid = "grid={model.quantization: [null, nf4, int8]}"
    assert scored_on(grid) == ("nf4", True, "bf16"), "the card says which of them"
    assert scored_on("model.quantization=null") == (None, False, None)
    assert scored_on(grid, "model.quantization=int8") == ("int8", False, None)
    with pytest.raises(ConfigError, match=r"grid.model.quantization: the sweep has None, nf4, int8; say with which"):
        evaluations(grid).base_trial(0, None)


def test_an_adapter_of_peft_is_scored_on_the_format_that_lies_beside_it(
    evaluations: Callable[..., Evaluations], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    base, folder = tiny_models["llama"], tmp_path / "theirs"
    trained_adapter("lora", {"rank": 2}, base, tmp_path / "adapter", quantization="nf4")
    export_to_peft(tmp_path / "adapter", folder)

    def scored_on(*settings: str) -> tuple[str | None, bool, str | None]:
        model = evaluations(*settings).stored_trial(folder, 0, None, None).model
        return model.quantization, model.double_quantization, model.quantization_compute

    assert scored_on() == scored_on("grid={model.quantization: [null, int8]}") == ("nf4", False, None)
    assert scored_on("resources={precision: bf16}") == ("nf4", False, "fp32"), "in which it was trained"
    assert scored_on("model.quantization=int8") == ("int8", False, None)
    (folder / "quantization_config.json").write_text('{"quant_method": "gptq"}')
    with pytest.raises(ConfigError, match="no settings of bitsandbytes"):
        scored_on()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_merged_model_of_a_quantised_sweep_is_scored_as_its_files_are_stored(
    family: str, evaluations: Callable[..., Evaluations], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    base, merged = tiny_models[family], tmp_path / "merged"
    trained_adapter("lora", {"rank": 2}, base, tmp_path / "adapter", quantization="nf4")
    export_merged(tmp_path / "adapter", merged)

    def stored_in(*settings: str) -> str | None:
        made = evaluations(f"model.path={base}", *settings)
        return made.stored_trial(merged, 0, None, None).model.stored_in

    in_four_bits = "grid={model.quantization: [nf4]}"
    assert stored_in(in_four_bits) is None
    assert stored_in(in_four_bits, "model.quantization=nf4") == "nf4", "that of the command line"
    config = json.loads((merged / "config.json").read_text())
    packed = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (merged / "config.json").write_text(json.dumps(config | packed))
    assert stored_in(in_four_bits) == "gptq"


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


PEFT = {
    "LORA": {"r": 2, "target_modules": ["q_proj", "v_proj"]},
    "IA3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "PREFIX_TUNING": {"num_virtual_tokens": 3},
    "PROMPT_TUNING": {"num_virtual_tokens": 3},
}


@pytest.mark.parametrize("peft_type", PEFT)
def test_an_adapter_of_peft_computes_what_peft_computes(
    peft_type: str, evaluations: Callable[..., Evaluations], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    import peft

    base = tiny_models["llama"]
    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft_type](**PEFT[peft_type], task_type="CAUSAL_LM")
    theirs: Any = peft.get_peft_model(load_model(ModelSpec(path=str(base)), torch.float32), config)
    disturb(theirs)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    expected = logits(theirs.eval(), base)
    one_by_one = ["decode.batch_size=1"] if peft_type == "PROMPT_TUNING" else []
    trial = evaluations(*one_by_one).stored_trial(tmp_path / "theirs", 0, None, None)
    assert trial.method.name == "hf_peft"
    assert trial.loaded is not None
    method = make_method(trial.method, load_tokenizer(trial.model))
    model: Any = method.patch(load_model(trial.model, torch.float32)).eval()
    load_into(method, model, trial.loaded)
    computed_logits = logits(model, base)
    torch.testing.assert_close(computed_logits[0], expected[0, -computed_logits.shape[1] :], atol=1e-5, rtol=0)
    if one_by_one:
        with pytest.raises(ConfigError, match=r"one source at a time: .* --set decode.batch_size=1 does so"):
            evaluations().stored_trial(tmp_path / "theirs", 0, None, None)
    with pytest.raises(ConfigError, match="the sweep's base model is"):
        evaluations(f"model={tiny_models['gpt2']}", *one_by_one).stored_trial(tmp_path / "theirs", 0, None, None)
