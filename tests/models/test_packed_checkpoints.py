"""Checkpoints whose weights another library has packed: what is dequantised, what trains, what is refused and when."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_families import small_model
from transformers import AutoModelForCausalLM, GptOssForCausalLM
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer

from bench.config.resolver import RegistryResolver
from bench.method import Method, MethodError, stored_in
from bench.models.base import empty_model, load_model
from bench.models.coverage import patch_and_count
from bench.models.model_files import ModelError
from bench.plugins.registry import load_method, targets
from bench.quantized.linear import say_stored_in
from bench.schema.trial import ModelSpec
from bench.schema.validation import ConfigError

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def packed(folder: Path, base: Path, **settings: Any) -> ModelSpec:
    """A model folder whose configuration says that its weights are packed, which they are not."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return ModelSpec(path=str(folder))


def method(name: str) -> Method:
    method_class = load_method(targets("method")[name])
    made: Method = method_class(method_class.Config())
    return made


@pytest.fixture
def gpt_oss(tmp_path: Path) -> Path:
    """A small gpt-oss whose experts are in mxfp4: two numbers of four bits in a byte, a power of two for 32 of them."""
    config, folder = small_model("GptOssForCausalLM").config, tmp_path / "gpt-oss"
    config.intermediate_size = 64
    GptOssForCausalLM(config).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (experts, outputs, inputs // 32, 16)).to(torch.uint8)
        tensors[f"{name}_scales"] = torch.full((experts, outputs, inputs // 32), 120, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_mxfp4_is_dequantised_on_every_device_as_its_kernels_have_no_gradients(
    gpt_oss: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        Mxfp4HfQuantizer, "validate_environment", lambda self, **_: asked.append(self.quantization_config.dequantize)
    )
    spec = RegistryResolver().model(ModelSpec(path=str(gpt_oss), attention="eager"))
    assert spec.stored_in is None, "ranks hold slices of it under ZeRO 3, and rows do not say that it is in four bits"
    model = load_model(spec, torch.float32)
    assert asked == [True] and stored_in(model) is None
    experts = model.model.layers[0].mlp.experts.down_proj
    scaled = experts * 2.0**7
    assert experts.dtype == torch.float32 and set(scaled.unique().abs().tolist()) == {0, 0.5, 1, 1.5, 2, 3, 4, 6}
    sizes = {name: tensor.shape for name, tensor in model.named_parameters()}
    assert {name: tensor.shape for name, tensor in empty_model(spec).named_parameters()} == sizes
    with pytest.raises(ConfigError, match=r"nf4 cannot be had of .* quantised already, by mxfp4"):
        RegistryResolver().model(ModelSpec(path=str(gpt_oss), quantization="nf4"))


def test_attention_is_named_where_attention_is_at_fault(gpt_oss: Path) -> None:
    for make in (empty_model, load_model):
        with pytest.raises(ModelError, match=r"model.attention: GptOssForCausalLM .* set model.attention: eager"):
            make(ModelSpec(path=str(gpt_oss)), torch.float32)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ImportError("Loading a GPTQ model requires optimum"), "install what reads them"),
        (RuntimeError("No GPU found. A GPU is needed"), "install what reads them"),
        (RuntimeError("The size of tensor a must match"), "cannot be loaded: RuntimeError: The size of tensor a"),
        (ValueError("group_size must be greater than 0"), "cannot be loaded: group_size must be greater than 0"),
    ],
)
def test_a_package_is_asked_for_only_where_one_is_missing(
    error: Exception, expected: str, tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    spec = packed(tmp_path / "gptq", tiny_models["llama"], quant_method="gptq", bits=4)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fails)
    with pytest.raises(ModelError, match=expected):
        load_model(spec, torch.float32)


def test_what_a_packed_checkpoint_rules_out_is_known_without_weights(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    spec = packed(tmp_path / "gptq", tiny_models["llama"], quant_method="gptq", bits=4)
    for name in ("full", "top_layers", "pissa"):
        with pytest.raises(MethodError, match="stored in gptq"):
            patch_and_count(method(name), empty_model(spec))
    with pytest.raises(MethodError, match=r"these weights are stored in gptq, .* name a checkpoint that is not"):
        patch_and_count(method("loftq"), empty_model(spec))
    assert patch_and_count(method("lora"), empty_model(spec))[1].trained
    spec = packed(tmp_path / "nf4", tiny_models["llama"], **NF4)
    with pytest.raises(MethodError, match="the checkpoint is quantised already"):
        patch_and_count(method("loftq"), empty_model(spec))
    assert patch_and_count(
        method("loftq"), empty_model(spec.model_copy(update={"path": str(tiny_models["llama"]), "quantization": "nf4"}))
    )
    spec = packed(tmp_path / "fp8", tiny_models["llama"], quant_method="fp8")
    assert stored_in(empty_model(spec)) is None, "transformers dequantises it where no GPU has fp8"


def test_nothing_is_trained_beside_weights_without_gradients(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """Their kernels only infer. Layers below would get the gradients of what goes around them, in silence."""
    spec = packed(tmp_path / "spqr", tiny_models["llama"], quant_method="spqr")
    with pytest.raises(MethodError, match="only infers with weights that are stored in spqr"):
        patch_and_count(method("lora"), empty_model(spec))
    assert not patch_and_count(method("none"), empty_model(spec))[1].trained
    model = empty_model(ModelSpec(path=str(tiny_models["llama"])))
    say_stored_in(model, "awq", trains=False)
    with pytest.raises(MethodError, match="only infers with weights that are stored in awq"):
        patch_and_count(method("prompt_tuning"), model)
