"""Base models in four and eight bits: weights, memory, plans, records and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from test_adapters import logits, model_spec, trained_adapter
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

from bench.conformance.tiny_models import tiny_model
from bench.method import MethodError, trained_parameters
from bench.models.adapter import restore
from bench.models.base import empty_model, load_model, quantization_config, stored_bytes
from bench.models.coverage import patch_and_count
from bench.models.export_to_peft import export_merged, export_to_peft
from bench.models.model_files import ModelError, quantized_by
from bench.models.peft_folder import QUANTIZATION_FILE
from bench.models.quantization import Storage, quantize, quantized_layer, require_bitsandbytes, storage_of
from bench.plugins.registry import load_method, targets
from bench.quantized.linear import QuantizedLinear, dequantize, quantized_layers, say_stored_in
from bench.schema.trial import ModelSpec

KINDS = [("nf4", False), ("nf4", True), ("fp4", False), ("int8", False)]
# Relative error of weights from a normal distribution: 0.092 for nf4, as Dettmers et al. 2023 have it.
LARGEST_ERROR = {"nf4": 0.11, "fp4": 0.14, "int8": 0.01}


def one_layer(in_features: int, out_features: int, kind: Any, double: bool = False) -> tuple[nn.Linear, Any]:
    """A plain layer and the same quantised, in a model that is nothing else."""
    require_bitsandbytes(kind)
    torch.manual_seed(0)
    plain = nn.Linear(in_features, out_features)
    return plain, quantized_layer(plain.weight.detach(), plain.bias, Storage(kind, double))


def spec_of(folder: Path, kind: Any = "nf4", **more: Any) -> ModelSpec:
    return ModelSpec(path=str(folder), quantization=kind, **more)


@pytest.mark.parametrize(("kind", "double"), KINDS)
@pytest.mark.parametrize(("in_features", "out_features"), [(64, 16), (128, 33), (32, 32), (96, 16), (24, 10), (10, 7)])
def test_weights_are_what_was_stored_also_where_blocks_go_over_the_ends_of_rows(
    kind: str, double: bool, in_features: int, out_features: int
) -> None:
    """The layers of bitsandbytes have an error of 0.2 and more in rows of 32 or 96 on a CPU."""
    plain, layer = one_layer(in_features, out_features, kind, double)
    error = (layer.dequantized(torch.float32) - plain.weight).norm() / plain.weight.norm()
    assert error < LARGEST_ERROR[kind]
    if kind == "nf4" and not double:
        from bitsandbytes.functional import get_4bit_type

        code = get_4bit_type("nf4", "cpu")
        codes = torch.stack([layer.weight.flatten() >> 4, layer.weight.flatten() & 15], dim=1).flatten().long()
        scales = layer.absmax.repeat_interleave(64)[: len(codes)]
        expected = (code[codes] * scales)[: in_features * out_features].view(out_features, in_features)
        torch.testing.assert_close(layer.dequantized(torch.float32), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_there_is_one_function_with_one_gradient_in_every_mode(kind: str) -> None:
    _, layer = one_layer(32, 16, kind)
    packed = layer.weight.clone()
    x = torch.randn(3, 32, requires_grad=True)
    layer.eval()
    with torch.no_grad():
        evaluated = layer(x.detach())
    layer.train()
    trained = layer(x)
    trained.square().sum().backward()
    expected = nn.functional.linear(x, layer.dequantized(torch.float32), layer.bias)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    assert torch.equal(evaluated, trained)
    torch.testing.assert_close(trained, expected)
    torch.testing.assert_close(x.grad, wanted)
    assert torch.equal(layer.weight, packed) and layer.weight.grad is None


def test_statistics_keep_their_dtype_whatever_the_model_is_cast_to() -> None:
    _, layer = one_layer(64, 16, "nf4", double=True)
    before = layer.dequantized(torch.float32)
    layer.to(torch.bfloat16)
    assert layer.like.dtype == layer.bias.dtype == torch.bfloat16
    assert torch.equal(layer.dequantized(torch.float32), before)
    assert layer(torch.randn(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_a_model_is_quantised_as_it_is_loaded_and_its_empty_twin_is_as_large(
    kind: str, double: bool, tiny_models: dict[str, Path]
) -> None:
    spec = spec_of(tiny_models["llama"], kind, double_quantization=double)
    model, whole = load_model(spec, torch.float32), load_model(spec.not_quantized, torch.float32)
    quantize(whole, Storage(kind, double))  # type: ignore[arg-type]
    assert len(dict(quantized_layers(model))) == 14 and type(model.lm_head) is nn.Linear
    folder = tiny_models["llama"]
    assert torch.equal(logits(model, folder), logits(whole, folder))
    sizes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.named_parameters()}
    assert {name: (tuple(t.shape), t.dtype) for name, t in empty_model(spec).named_parameters()} == sizes
    held = [*model.parameters(), *model.buffers()]
    assert stored_bytes(spec, torch.float32) == sum(tensor.numel() * tensor.element_size() for tensor in held)


def test_counts_and_coverage_are_those_of_the_model_as_it_was(tiny_models: dict[str, Path]) -> None:
    for family in ("llama", "gpt2", "t5"):
        method_class = load_method(targets("method")["lora"])
        method = method_class(method_class.Config())
        counts = []
        for kind in (None, "nf4"):
            spec = spec_of(tiny_models[family], kind)
            counts += [
                patch_and_count(method, model)[1] for model in (empty_model(spec), load_model(spec, torch.float32))
            ]
        assert len({count.model_dump_json() for count in counts}) == 1


def test_types_of_peft_that_compute_with_weights_are_refused_and_others_get_the_dtype_of_the_model() -> None:
    method_class = load_method(targets("method")["hf_peft"])
    model = tiny_model("llama", dtype=torch.bfloat16)
    require_bitsandbytes("nf4")
    quantize(model, Storage("nf4"))
    with pytest.raises(MethodError, match=r"LOHA of peft computes with the weights .* stored in nf4"):
        method_class(method_class.Config(peft_type="LOHA", target_modules=["q_proj"])).patch(model)
    model = tiny_model("llama", dtype=torch.bfloat16)
    quantize(model, Storage("nf4"))
    patched = method_class(method_class.Config(peft_type="LORA", target_modules=["q_proj"])).patch(model)
    assert {parameter.dtype for _, parameter in trained_parameters(patched)} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_checkpoint_that_is_quantised_already_is_loaded_as_it_is(
    kind: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    spec, folder = spec_of(tiny_models["llama"], kind), tmp_path / kind
    settings = quantization_config(spec)
    AutoModelForCausalLM.from_pretrained(spec.path, quantization_config=settings, dtype=torch.float32).save_pretrained(
        folder
    )
    own = ModelSpec(path=str(folder))
    assert torch.equal(logits(load_model(own, torch.float32), folder), logits(load_model(spec, torch.float32), folder))
    assert len(dict(quantized_layers(empty_model(own)))) == 14
    assert load_model(own.model_copy(update={"quantization": kind}), torch.float32) is not None
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]["quant_method"]  # as checkpoints of 2023
    (folder / "config.json").write_text(json.dumps(config))
    assert quantized_by(folder) == kind
    assert len(dict(quantized_layers(load_model(own, torch.float32)))) == 14
    other = {"nf4": "int8", "int8": "fp4"}[kind]
    with pytest.raises(ModelError, match=f"{other} cannot be had .* quantised already, by {kind}"):
        load_model(own.model_copy(update={"quantization": other}), torch.float32)


def test_settings_beside_a_quantised_checkpoint_count_or_are_refused(tmp_path: Path) -> None:
    """They are part of a trial's identity, so that without effect one training would have several rows."""
    require_bitsandbytes("nf4")

    def storage(double: bool, **settings: Any) -> Storage | None:
        config = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": double}
        return storage_of(spec_of(tmp_path, **settings), SimpleNamespace(quantization_config=config))

    assert storage(False) == Storage("nf4", in_checkpoint=True)
    in_bf16 = Storage("nf4", multiplied_in=torch.bfloat16, in_checkpoint=True)
    assert storage(False, quantization_compute="bf16") == in_bf16
    assert storage(True, double_quantization=True) == Storage("nf4", double=True, in_checkpoint=True)
    with pytest.raises(ModelError, match=r"model.double_quantization: the scales of .* are not quantised; leave"):
        storage(False, double_quantization=True)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_what_transformers_cannot_load_here_is_one_clear_error(
    method: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / method
    folder.mkdir()
    for path in tiny_models["llama"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"quantised by {method}, and transformers cannot load them"):
        load_model(ModelSpec(path=str(folder)), torch.float32)
    with pytest.raises(ModelError, match=f"nf4 cannot be had .* quantised already, by {method}"):
        load_model(spec_of(folder), torch.float32)


MERGED = [
    ("lora", {"target_modules": "all_linear"}, "gpt2", "nf4"),
    ("lora", {}, "llama", "int8"),
    ("ia3", {}, "llama", "nf4"),
    ("bitfit", {}, "gpt2", "int8"),
    ("hf_peft", {"peft_type": "LORA", "target_modules": ["q_proj", "v_proj"]}, "llama", "nf4"),
    ("dora", {}, "gpt2", "nf4"),
    ("loftq", {}, "llama", "nf4"),
]


@pytest.mark.parametrize(("name", "config", "family", "kind"), MERGED)
def test_merged_are_the_dequantised_weights_with_what_was_trained(
    name: str, config: dict[str, Any], family: str, kind: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_models[family]
    expected = trained_adapter(name, config, base, tmp_path / "adapter", quantization=kind)
    torch.testing.assert_close(logits(restore(tmp_path / "adapter", torch.device("cpu")).model, base), expected)
    assert export_merged(tmp_path / "adapter", tmp_path / "merged") < 1e-4
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    torch.testing.assert_close(logits(merged, base), expected, atol=5e-5, rtol=1e-4)


def test_an_export_is_exact_also_where_training_multiplied_in_bf16(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    base, card = tiny_models["llama"], tmp_path / "adapter" / "adapter.json"
    exact = trained_adapter("lora", {}, base, card.parent, quantization="nf4")
    content = json.loads(card.read_text())
    content["model"]["quantization_compute"] = "bf16"
    card.write_text(json.dumps(content))
    restored = restore(card.parent, torch.device("cpu"))
    assert {layer.multiplied_in for _, layer in quantized_layers(restored.model)} == {torch.bfloat16}
    assert export_merged(card.parent, tmp_path / "merged") < 1e-4
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged, base), exact, atol=5e-5, rtol=1e-4)


def test_a_peft_folder_says_how_its_base_model_is_quantised(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    base = tiny_models["llama"]
    expected = trained_adapter("lora", {}, base, tmp_path / "adapter", quantization="int8")
    export_to_peft(tmp_path / "adapter", tmp_path / "peft")
    settings = BitsAndBytesConfig.from_dict(json.loads((tmp_path / "peft" / QUANTIZATION_FILE).read_text()))
    assert settings.load_in_8bit
    loaded = AutoModelForCausalLM.from_pretrained(base, quantization_config=settings, dtype=torch.float32)
    # In evaluation mode layers of bitsandbytes round what comes in as well.
    their_model = PeftModel.from_pretrained(loaded, str(tmp_path / "peft")).train()
    torch.testing.assert_close(logits(their_model, base), expected, atol=1e-4, rtol=1e-4)
    assert set(load_file(tmp_path / "peft" / "adapter_model.safetensors"))


@pytest.mark.parametrize("name", ["full", "top_layers", "lisa", "pissa"])
def test_weights_that_another_library_has_packed_are_not_trained(name: str) -> None:
    """Training what is left, norms and embeddings, would be another method."""
    model = tiny_model("llama")
    say_stored_in(model, "gptq")
    method_class = load_method(targets("method")[name])
    with pytest.raises(MethodError, match="stored in gptq"):
        method_class(method_class.Config()).patch(model)


def test_settings_for_others_have_the_dtype_of_the_computation(tiny_models: dict[str, Path]) -> None:
    spec = spec_of(tiny_models["llama"])
    assert quantization_config(spec, "bf16").bnb_4bit_compute_dtype == torch.bfloat16
    assert quantization_config(spec).bnb_4bit_compute_dtype == torch.float32
    in_bf16 = spec.model_copy(update={"quantization_compute": "bf16"})
    assert quantization_config(in_bf16, "fp32").bnb_4bit_compute_dtype == torch.bfloat16


def test_dequantised_layers_compute_the_same(tiny_models: dict[str, Path]) -> None:
    model = load_model(spec_of(tiny_models["gpt2"]), torch.float32)
    before = logits(model, tiny_models["gpt2"])
    assert len(dequantize(model)) == 8 and not any(isinstance(each, QuantizedLinear) for each in model.modules())
    torch.testing.assert_close(logits(model, tiny_models["gpt2"]), before)


def test_a_spec_without_effect_is_an_error() -> None:
    with pytest.raises(ValueError, match="double_quantization has no effect with quantization: int8"):
        ModelSpec(quantization="int8", double_quantization=True)
    with pytest.raises(ValueError, match="quantization_compute has no effect without quantization"):
        ModelSpec(quantization_compute="bf16")


def test_weights_may_be_multiplied_in_another_dtype(tiny_models: dict[str, Path]) -> None:
    base = tiny_models["llama"]
    exact = logits(load_model(spec_of(base), torch.float32), base)
    coarse = logits(load_model(spec_of(base, quantization_compute="bf16"), torch.float32), base)
    assert coarse.dtype == torch.float32 and 1e-5 < float((coarse - exact).abs().max()) < 0.1


def test_model_spec_of_the_trial_is_what_the_adapter_remembers(tiny_models: dict[str, Path]) -> None:
    assert model_spec(tiny_models["llama"], "nf4").stored_in == "nf4"


@pytest.mark.parametrize(("name", "kind"), [("lora", "int8"), ("dora", "nf4"), ("dora", "int8")])
def test_peft_computes_the_same_on_weights_that_were_quantised(
    name: str, kind: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    trained_adapter(name, {}, tiny_models["llama"], tmp_path / "adapter", quantization=kind)
    assert export_to_peft(tmp_path / "adapter", tmp_path / "peft") < 1e-4


def test_a_base_model_that_was_quantised_on_a_gpu_is_compared_on_the_cpu(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers leaves it on the GPU where there is one."""
    trained_adapter("lora", {}, tiny_models["llama"], tmp_path / "adapter", quantization="nf4")
    moved: list[Any] = []

    def loaded(*arguments: Any) -> Any:
        model: Any = load_model(*arguments)
        original = model.to

        def to(*places: Any) -> Any:
            moved.append(places)
            return original(*places)

        model.to = to
        return model

    restored = restore(tmp_path / "adapter", torch.device("cpu"), exact=True)
    monkeypatch.setattr("bench.models.base.load_model", loaded)
    restored.fresh_base()
    assert moved == [("cpu",)]


@pytest.mark.parametrize(("kind", "packed"), [("nf4", {"wi"}), ("int8", {"wi", "wo"})])
def test_inputs_are_never_cast_to_the_bytes_of_packed_weights(kind: Any, packed: set[str]) -> None:
    """Switch Transformers casts inputs to the dtype of `wo`, unless that is int8."""
    config = SwitchTransformersConfig(
        vocab_size=40, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=2, num_experts=2
    )
    torch.manual_seed(0)
    model: Any = SwitchTransformersForConditionalGeneration(config).eval()
    require_bitsandbytes(kind)
    quantize(model, Storage(kind))
    names = {name.rpartition(".")[2] for name, _ in quantized_layers(model)}
    assert names & {"wi", "wo"} == packed
    _, layer = one_layer(64, 16, kind)
    with pytest.raises(TypeError, match=r"got inputs in torch\.uint8"):
        layer(torch.ones(1, 64, dtype=torch.uint8))
