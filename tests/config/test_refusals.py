"""Sweeps that cannot work are refused before the first trial: methods that do not fit a model, missing attention."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_families import small_model

from bench.config.resolver import RegistryResolver
from bench.driver.prepare import prepare
from bench.models.base import ModelError, empty_model, load_model
from bench.schema.trial import DecodeSpec, ModelSpec, ResourceSpec, TrainSpec, TrialSpec
from bench.schema.validation import ConfigError, check_attention

MakeTrial = Callable[..., TrialSpec]


def save(family: str, folder: Path, tokenizer_of: Path) -> Path:
    """A model folder of a family, with the tokenizer of another."""
    small_model(family).save_pretrained(folder)
    for file in tokenizer_of.glob("tokenizer*"):
        shutil.copy(file, folder / file.name)
    return folder


@pytest.fixture
def trial(tiny_task: Path) -> MakeTrial:
    """A trial of a method on a model folder."""
    resolver = RegistryResolver()

    def make(folder: Path, method: str, **config: Any) -> TrialSpec:
        return TrialSpec(
            method=resolver.method(method, config),
            model=ModelSpec(path=str(folder)),
            task=resolver.task("jsonl", {"path": str(tiny_task)}),
            train=TrainSpec(steps=2, batch_size=4),
            decode=DecodeSpec(max_new_tokens=8),
            resources=ResourceSpec(),
            seed=0,
        )

    return make


def test_methods_that_do_not_fit_the_model_are_named_before_any_trial(
    trial: MakeTrial, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    folder = save("JambaForCausalLM", tmp_path / "jamba", tiny_models["llama"])
    trials = [
        trial(folder, "lora"),
        trial(folder, "lora", target_modules="all_linear"),
        trial(folder, "adapters", placement="houlsby"),
    ]
    said: list[str] = []
    with pytest.raises(ConfigError) as refusal:
        prepare(trials, said.append)
    lora, houlsby = str(refusal.value).splitlines()
    assert lora.startswith(f"methods: lora on {folder}: model.layers.0 (JambaMambaDecoderLayer) makes no query")
    assert houlsby.startswith(
        f"methods: adapters on {folder}: model.layers.0 (JambaMambaDecoderLayer) has no attention"
    )


def test_what_trains_weights_of_a_quantised_base_model_is_named_before_any_trial(
    trial: MakeTrial, tiny_models: dict[str, Path]
) -> None:
    folder = tiny_models["llama"]
    model = ModelSpec(path=str(folder), quantization="nf4")
    trials = [trial(folder, name).model_copy(update={"model": model}) for name in ("full", "lora", "top_layers")]
    with pytest.raises(ConfigError) as refusal:
        prepare(trials, [].append)
    full, top_layers = str(refusal.value).splitlines()
    assert full.startswith(f"methods: full on {folder}: full trains weights of the base model, which are stored in nf4")
    assert top_layers.startswith(f"methods: top_layers on {folder}: top_layers trains weights of the base model")


def test_what_needs_weights_is_left_to_its_trial(
    trial: MakeTrial, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.driver.prepare._check_tokens", lambda *_: None)
    said: list[str] = []
    prepare([trial(tiny_models["llama"], "hf_peft", peft_type="SHIRA", r=1, target_modules=["q_proj"])], said.append)
    assert any(line.startswith("method hf_peft: whether it fits") for line in said)


@pytest.mark.parametrize("family", ["BloomForCausalLM", "MptForCausalLM", "MambaForCausalLM"])
def test_attention_that_a_model_lacks_is_refused_by_our_key(
    family: str, trial: MakeTrial, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    folder = save(family, tmp_path / family, tiny_models["llama"])
    expected = rf"model.attention: {family} in '{folder}' cannot be had with 'sdpa'; set model.attention: eager"
    with pytest.raises(ConfigError, match=expected):
        prepare([trial(folder, "layer_norm")], lambda _: None)
    for make in (empty_model, load_model):
        with pytest.raises(ModelError, match=expected):
            make(ModelSpec(path=str(folder)), torch.float32)
    assert empty_model(ModelSpec(path=str(folder), attention="eager")).config._attn_implementation == "eager"


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3"])
def test_flash_attention_that_is_not_there_is_refused_by_our_key(attention: Any, tiny_models: dict[str, Path]) -> None:
    spec = ModelSpec(path=str(tiny_models["llama"]), attention=attention)
    with pytest.raises(ModelError, match=r"model.attention: LlamaForCausalLM .* leave model.attention out"):
        empty_model(spec)


@pytest.mark.parametrize(
    ("resources", "key"), [({}, "precision: fp32"), ({"precision": "bf16", "device": "cpu"}, "device: cpu")]
)
def test_flash_attention_is_asked_for_where_it_can_compute(resources: dict[str, Any], key: str) -> None:
    flash = ModelSpec(attention="flash_attention_2")
    with pytest.raises(ConfigError, match=rf"flash_attention_2 cannot be had with methods.0.resources.{key}"):
        check_attention(flash, ResourceSpec.model_validate(resources), "methods.0")
    check_attention(flash, ResourceSpec(precision="bf16"), "methods.0")
    check_attention(ModelSpec(), ResourceSpec.model_validate(resources), "methods.0")
