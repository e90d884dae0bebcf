"""A trained adapter becomes a whole model, or a repository of the hub; what cannot be merged is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from command import Done
from safetensors.torch import load_file
from test_adapters import logits, trained_adapter
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from bench.method import Method, MethodError
from bench.models.adapter_files import AdapterError
from bench.models.export_to_peft import export_merged, export_to_peft
from bench.plugins.registry import load_method, targets
from bench.tools.method_tables import peft_settings

MERGED: list[tuple[str, dict[str, Any], str]] = [
    ("full", {}, "llama"),
    ("full", {}, "gpt2"),
    ("full", {}, "t5"),
    ("top_layers", {"num_layers": 1}, "gpt2"),
    ("layer_norm", {}, "llama"),
    ("bitfit", {}, "gpt2"),
    ("bitfit", {}, "llama"),  # whose linear layers get biases, which its configuration can switch on
    ("lora", {"target_modules": "all_linear"}, "gpt2"),
    ("lora", {"rank": 3}, "llama"),
    ("lora", {}, "t5"),
    ("ia3", {}, "gpt2"),
    ("ia3", {}, "llama"),
    ("ia3", {}, "t5"),
    *(("hf_peft", peft_settings(kind, "llama"), "llama") for kind in ("LOHA", "LN_TUNING", "ADALORA")),
]


@pytest.mark.parametrize(("name", "config", "family"), MERGED)
def test_transformers_loads_a_merged_model_and_gives_the_same_logits(
    name: str, config: dict[str, Any], family: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    base, merged = tiny_models[family], tmp_path / "merged"
    expected = trained_adapter(name, config, base, tmp_path / "adapter")
    assert export_merged(tmp_path / "adapter", merged) < 1e-4
    auto: Any = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    computed_logits = logits(auto.from_pretrained(merged).eval(), base)
    real = torch.isfinite(expected)
    torch.testing.assert_close(computed_logits[real], expected[real], atol=5e-5, rtol=1e-4)
    text = "Data: Ann : home : Rome"
    assert AutoTokenizer.from_pretrained(merged)(text) == AutoTokenizer.from_pretrained(base)(text)
    own, kept = (GenerationConfig.from_pretrained(folder).to_diff_dict() for folder in (base, merged))
    assert kept == own
    assert not list(tmp_path.glob(".merged*"))


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("prompt_tuning", {}, r"PromptTuning cannot be merged: LlamaForCausalLM has no place for .*; keep it as an"),
        ("prefix_tuning", {}, r"PrefixTuning cannot be merged: LlamaForCausalLM has no place for"),
        ("adapters", {}, r"cannot be merged: LlamaForCausalLM has no place for"),
        ("hf_peft", peft_settings("PREFIX_TUNING", "llama"), "PREFIX_TUNING of peft cannot be merged: virtual tokens"),
    ],
)
def test_what_has_no_place_in_a_plain_model_is_refused(
    name: str, config: dict[str, Any], message: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    trained_adapter(name, config, tiny_models["llama"], tmp_path / "adapter")
    with pytest.raises(MethodError, match=message):
        export_merged(tmp_path / "adapter", tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_merged_model_that_computes_something_else_never_exists(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_adapter("lora", {}, tiny_models["llama"], tmp_path / "adapter")
    lora = load_method(targets("method")["lora"])
    right = lora.merged_weights

    def twice(self: Method, model: Any) -> dict[str, torch.Tensor]:
        return {name: 1.1 * weight for name, weight in right(self, model).items()}

    monkeypatch.setattr(lora, "merged_weights", twice)
    with pytest.raises(AdapterError, match=r"transformers computes other logits .* nothing was written"):
        export_merged(tmp_path / "adapter", tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("name", ["lora", "full"])
def test_what_was_trained_in_bf16_is_exported_as_its_fp32_masters(
    name: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    trained_adapter(name, {}, tiny_models["llama"], adapter)
    card = json.loads((adapter / "adapter.json").read_text())
    (adapter / "adapter.json").write_text(json.dumps({**card, "precision": "bf16"}))
    state = load_file(adapter / "adapter.safetensors")
    assert not any(torch.equal(tensor, tensor.bfloat16().float()) for tensor in state.values() if tensor.numel() > 50)
    export_merged(adapter, tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {torch.float32}
    if name == "full":
        assert all(torch.equal(merged[key], tensor) for key, tensor in state.items() if key in merged)
        return
    export_to_peft(adapter, tmp_path / "for-peft")
    theirs = load_file(tmp_path / "for-peft" / "adapter_model.safetensors")
    ours = {tuple(tensor.shape): tensor for tensor in state.values()}
    assert {tensor.dtype for tensor in theirs.values()} == {torch.float32}
    assert any(torch.equal(tensor, ours.get(tuple(tensor.shape), tensor[:0])) for tensor in theirs.values())


def test_a_damaged_file_is_told_in_one_line(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    trained_adapter("lora", {}, tiny_models["llama"], tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(AdapterError, match=r"adapter.safetensors: damaged, or no file of safetensors"):
        export_merged(tmp_path / "adapter", tmp_path / "merged")


class Hub:
    """Stands for the hub: remembers what is done to it."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.refuses = ""

    def whoami(self) -> dict[str, str]:
        if self.refuses == "token":
            raise OSError("401 Unauthorized")
        return {"name": "ann"}

    def create_repo(self, name: str, repo_type: str, private: bool, exist_ok: bool) -> str:
        if self.refuses == "repository":
            raise OSError("403 Forbidden: you may not write there")
        self.done.append(("create", name, repo_type, private, exist_ok))
        return f"https://hub/{name}"

    def upload_folder(self, repo_id: str, repo_type: str, folder_path: str, commit_message: str) -> None:
        self.done.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stand_in)
    return stand_in


def test_an_export_is_pushed_to_a_private_repository(
    hub: Hub, tiny_models: dict[str, Path], tmp_path: Path, tuneoff: Callable[..., Done]
) -> None:
    trained_adapter("lora", {}, tiny_models["llama"], tmp_path / "adapter")
    adapter, into = str(tmp_path / "adapter"), tmp_path / "out"
    done = tuneoff("export", adapter, "--to", "peft", "--into", str(into), "--push", "ann/mine")
    assert done.returncode == 0, done
    assert "uploaded to https://hub/ann/mine" in done.stdout
    files = ["adapter_config.json", "adapter_model.safetensors"]
    assert hub.done == [("create", "ann/mine", "model", True, True), ("upload", "ann/mine", files)]

    hub.refuses = "repository"
    done = tuneoff("export", adapter, "--to", "merged", "--into", str(tmp_path / "merged"), "--push", "bob/his")
    assert (done.returncode, (tmp_path / "merged" / "config.json").is_file()) == (2, True)
    assert "merged is written and was not uploaded: OSError: 403 Forbidden" in done.stderr


@pytest.mark.parametrize(
    ("repository", "token", "offline", "refuses", "message"),
    [
        ("ann/mine", None, False, "", "there is no token of the hub; log in with 'hf auth login', or set HF_TOKEN"),
        ("ann/mine", "token", True, "", "HF_HUB_OFFLINE forbids to ask the hub; unset it"),
        ("ann/mine", "token", False, "token", "the hub does not take the token: OSError: 401 Unauthorized"),
        ("a/b/c", "token", False, "", "not the name of a repository, which is owner/name"),
    ],
)
def test_a_push_that_cannot_be_is_refused_before_any_work(
    repository: str,
    token: str | None,
    offline: bool,
    refuses: str,
    message: str,
    hub: Hub,
    tmp_path: Path,
    tuneoff: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.refuses = refuses
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    done = tuneoff("export", str(tmp_path / "nothing"), "--to", "merged", "--push", repository)
    assert done.returncode == 2
    assert message in done.stderr, "and not that there is no adapter"
    assert not list(tmp_path.iterdir())
