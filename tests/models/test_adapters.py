"""Stored adapters: two files for every method, folders for Hugging Face peft, texts on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from command import Done
from disturbed import disturb

from bench.commands.adapters import _decode_with
from bench.method import Method, MethodError, PeftAdapter
from bench.models.adapter import CARD_FILE, read_card, restore, save_adapter
from bench.models.adapter_files import AdapterError
from bench.models.architecture import Pair
from bench.models.base import architecture, load_model, load_tokenizer, weights_sha256
from bench.models.export_to_peft import export_to_peft
from bench.plugins.registry import load_method, targets
from bench.schema.trial import DecodeSpec, MethodSpec, ModelSpec, ResourceSpec, TaskSpec, TrainSpec, TrialSpec
from bench.schema.validation import ConfigError
from bench.task import TaskConfig
from bench.tools.method_tables import peft_settings

CPU = torch.device("cpu")
PAIRS = [Pair([7, 21, 5, 40], [13, 2, 1]), Pair([11, 3], [60, 1])]


def model_spec(folder: Path, quantization: Any = None) -> ModelSpec:
    spec = ModelSpec(path=str(folder), quantization=quantization)
    return spec.model_copy(update={"weights_sha256": weights_sha256(spec)})


def trained_adapter(
    name: str, config: dict[str, Any], base: Path, folder: Path, quantization: str | None = None
) -> torch.Tensor:
    """Write the adapter of a method whose trained tensors were moved off their start; returns its logits."""
    method_class: type[Method] = load_method(targets("method")[name])
    settings = method_class.Config(**config)
    spec = TrialSpec(
        method=MethodSpec(name=name, target=targets("method")[name], config=settings.model_dump(mode="json")),
        model=model_spec(base, quantization),
        task=TaskSpec(name="t", target="t:T"),
        train=TrainSpec(steps=1),
        decode=DecodeSpec(max_new_tokens=8),
        resources=ResourceSpec(),
        seed=0,
    )
    method = method_class(settings, load_tokenizer(spec.model))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model: Any = method.patch(load_model(spec.model, torch.float32)).eval()
        disturb(model)
    folder.mkdir()
    save_adapter(folder, spec, TaskConfig(template="Facts: {source}\nText:"), method.adapter_state(model))
    return logits(model, base)


def logits(model: Any, base: Path) -> torch.Tensor:
    inputs = architecture(ModelSpec(path=str(base))).batch(PAIRS, pad_token_id=0).inputs
    with torch.no_grad():
        computed_logits: torch.Tensor = model(**inputs).logits
    return computed_logits


# Settings without which a method cannot be.
REQUIRED = {"hf_peft": {"peft_type": "LOHA", "r": 2, "target_modules": ["q_proj", "v_proj"]}}


@pytest.mark.parametrize("name", [name for name in targets("method") if name != "none"])
def test_every_method_comes_back_from_its_two_files(name: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    stored_in = "nf4" if name == "loftq" else None  # it refuses other base models
    expected = trained_adapter(name, REQUIRED.get(name, {}), tiny_models["llama"], tmp_path / "adapter", stored_in)
    restored = restore(tmp_path / "adapter", CPU)
    torch.testing.assert_close(logits(restored.model, tiny_models["llama"]), expected, atol=1e-6, rtol=0)
    assert restored.tokenizer.decode(restored.source_ids("a : b")) == "Facts: a : b\nText:"


PEFT_CASES = [
    ("prompt_tuning", {"num_prompt_tokens": 5}),
    ("lora", {"rank": 3, "alpha": 7.0}),
    ("lora", {"target_modules": "all_linear"}),
    ("lora", {"target_modules": ["query", "key", "value"]}),
    ("lora", {"target_modules": ["query", "value", "OUTPUT"]}),
    ("ia3", {}),
]

OF_PEFT = ("ADALORA", "LN_TUNING", "LOHA", "PREFIX_TUNING", "PROMPT_TUNING", "VERA")


@pytest.mark.parametrize(
    ("name", "config", "family"),
    [(name, config, family) for name, config in PEFT_CASES for family in ("gpt2", "llama")]
    + [(name, config, "t5") for name, config in PEFT_CASES]
    + [
        ("prefix_tuning", {"num_prompt_tokens": 4, "parametrization": parametrization, **shift}, family)
        for parametrization in ("embedding", "key_value", "mlp")
        for family, shift in (("gpt2", {"shift_positions": True}), ("llama", {}))
    ]
    + [
        ("prefix_tuning", {"num_prompt_tokens": 4, "path": "literal"}, "llama"),
        ("prefix_tuning", {"num_prompt_tokens": 4, "parametrization": "key_value", "shift_positions": True}, "llama"),
    ]
    + [("hf_peft", peft_settings(peft_type, "llama"), "llama") for peft_type in OF_PEFT],
)
def test_peft_loads_an_export_and_gives_the_same_logits(
    name: str, config: dict[str, Any], family: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_models[family]
    if "OUTPUT" in config.get("target_modules", ()):  # layers of another rank than the rest
        config = {"target_modules": ["query", "value", {"gpt2": "mlp.c_proj", "llama": "o_proj", "t5": "wo"}[family]]}
    expected = trained_adapter(name, config, base, tmp_path / "adapter")
    export_to_peft(tmp_path / "adapter", tmp_path / "exported")
    loaded = peft.PeftModel.from_pretrained(load_model(ModelSpec(path=str(base)), torch.float32), tmp_path / "exported")
    inputs = architecture(ModelSpec(path=str(base))).batch(PAIRS, pad_token_id=0).inputs
    inputs.pop("position_ids", None)
    with torch.no_grad():
        found = loaded.eval()(**inputs).logits
    found = found[:, found.shape[1] - expected.shape[1] :]
    real = torch.ones(expected.shape[:2], dtype=torch.bool)
    real[1, len(PAIRS[1].source_ids + PAIRS[1].target_ids) if family != "t5" else 2 :] = False
    torch.testing.assert_close(found[real], expected[real], atol=2e-5, rtol=0)
    assert (tmp_path / "exported" / "adapter_config.json").is_file()
    assert not list(tmp_path.glob(".exported*"))


def test_an_export_that_computes_something_else_never_exists(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_adapter("lora", {}, tiny_models["gpt2"], tmp_path / "adapter")
    to_peft = load_method("methods.lora:LoRA").to_peft

    def twice(self: Method, model: Any) -> PeftAdapter:
        adapter = to_peft(self, model)
        return PeftAdapter({**adapter.config, "lora_alpha": 1.1 * adapter.config["lora_alpha"]}, adapter.state)

    monkeypatch.setattr(load_method("methods.lora:LoRA"), "to_peft", twice)
    with pytest.raises(AdapterError, match=r"peft computes other logits .* nothing was written"):
        export_to_peft(tmp_path / "adapter", tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_what_peft_does_not_have_is_refused(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    trained_adapter("top_layers", {}, tiny_models["gpt2"], tmp_path / "adapter")
    with pytest.raises(MethodError, match="peft has no method that computes what TopLayers does"):
        export_to_peft(tmp_path / "adapter", tmp_path / "exported")
    (tmp_path / "there").mkdir()
    with pytest.raises(AdapterError, match=r"there is there already; choose another folder with --into"):
        export_to_peft(tmp_path / "adapter", tmp_path / "there")


def test_an_adapter_goes_with_the_weights_it_was_trained_on(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    trained_adapter("bitfit", {}, tiny_models["gpt2"], tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r"trained on other weights than .* give the folder of the original ones"):
        restore(tmp_path / "adapter", CPU, model_path=str(tiny_models["llama"]))


def test_what_is_no_adapter_is_named(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    with pytest.raises(AdapterError, match=r"no adapter.json and adapter.safetensors; give the folder of a completed"):
        read_card(tmp_path)
    trained_adapter("bitfit", {}, tiny_models["gpt2"], tmp_path / "adapter")
    card = tmp_path / "adapter" / CARD_FILE
    first = {
        key: value for key, value in json.loads(card.read_text()).items() if key in ("method", "model", "template")
    }
    card.write_text(json.dumps(first))
    assert read_card(tmp_path / "adapter").decode == DecodeSpec(), "the first cards had these three fields"
    card.write_text("{}")
    with pytest.raises(AdapterError, match="not the card of an adapter"):
        read_card(tmp_path / "adapter")


def test_what_a_setting_makes_idle_is_left_out_of_a_stored_decoding() -> None:
    drawn = DecodeSpec(temperature=0.7, top_p=0.9, seed=3, max_new_tokens=7)
    assert _decode_with(drawn, ["decode.temperature=0"]) == DecodeSpec(max_new_tokens=7)
    assert _decode_with(drawn, ["decode.temperature=0.5"]) == drawn.model_copy(update={"temperature": 0.5})
    searched = DecodeSpec(beams=4, length_penalty=0.8, early_stopping=True)
    assert _decode_with(searched, ["decode.beams=1"]) == DecodeSpec()
    assert _decode_with(searched, ["decode.beams=1", "decode.temperature=0.7"]) == DecodeSpec(temperature=0.7)
    for settings in (["decode.temperature=0", "decode.seed=4"], ["decode.seed=4", "decode.temperature=0"]):
        with pytest.raises(ConfigError, match="seed has no effect with temperature: 0"):
            _decode_with(drawn, settings)


def test_the_commands_generate_and_export(
    tmp_path: Path, tiny_models: dict[str, Path], tuneoff: Callable[..., Done]
) -> None:
    folder, exported = tmp_path / "adapter", tmp_path / "exported"
    trained_adapter("prompt_tuning", {"num_prompt_tokens": 3}, tiny_models["llama"], folder)
    sources = ("--source", "Ann : home : Rome", "--source", "Bob : home : Oslo")
    said = tuneoff("generate", str(folder), *sources, "--json")
    assert said.returncode == 0, said.stderr
    texts = json.loads(said.stdout)
    assert [text["source"] for text in texts] == ["Ann : home : Rome", "Bob : home : Oslo"]
    one = tuneoff("generate", str(folder), *sources[:2], "--set", "decode.max_new_tokens=2")
    assert 0 < len(one.stdout.strip()) < len(texts[0]["text"])
    done = tuneoff("export", str(folder), "--to", "peft", "--into", str(exported))
    assert done.returncode == 0, done.stderr
    assert "loads in peft and gives the same logits" in done.stdout
    for arguments, message in (
        (("generate", str(tmp_path), "--source", "x"), "no adapter.json and adapter.safetensors"),
        (("generate", str(folder), "--source", "x", "--set", "train.steps=3"), "only decode.… can be set here"),
        (("generate", str(folder), "--source", "x", "--set", "decode.beam=3"), "did you mean 'beams'"),
        (("export", str(folder), "--to", "peft", "--into", str(exported)), "is there already"),
        (("export", str(folder), "--to", "peft", "--plugins-dir", "gone"), "--plugins-dir: there is no folder"),
        (("generate", str(folder), "--source", "x", "--plugins-dir", "gone"), "--plugins-dir: there is no folder"),
    ):
        wrong = tuneoff(*arguments)
        assert wrong.returncode == 2
        assert message in wrong.stderr


@pytest.mark.parametrize(
    ("name", "family", "config", "reason"),
    [
        ("prefix_tuning", "gpt2", {}, "only prefixes that were trained with shift_positions: true"),
        ("prefix_tuning", "llama", {"infix": True}, "no infix, no layers"),
        ("prefix_tuning", "llama", {"layers": [0]}, "no infix, no layers"),
        ("prefix_tuning", "t5", {}, "self-attention of the decoder alone"),
        ("prompt_tuning", "llama", {"infix": True}, "in front of the source only"),
    ],
)
def test_prompts_that_peft_has_not_are_refused(
    name: str, family: str, config: dict[str, Any], reason: str, tiny_models: dict[str, Path]
) -> None:
    method_class = load_method(targets("method")[name])
    spec = ModelSpec(path=str(tiny_models[family]))
    method = method_class(method_class.Config(**config), load_tokenizer(spec))
    model = method.patch(load_model(spec, torch.float32))
    with pytest.raises(MethodError, match=reason):
        method.to_peft(model)
