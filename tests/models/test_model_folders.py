"""Model folders that people bring with something missing, damaged or contradictory: one error names file and remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, GPTNeoXConfig, LlamaConfig

from bench.models.architecture import ArchitectureError, DecoderOnly, architecture_of
from bench.models.base import ModelError, empty_model, load_config, load_model, load_tokenizer
from bench.models.model_files import INDEX, WEIGHTS, require_model_files, require_readable_weights
from bench.schema.trial import ModelSpec

Change = Callable[[Path], object]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"


@pytest.fixture
def folder(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a small Llama."""
    return Path(shutil.copytree(tiny_models["llama"], tmp_path / "model"))


@pytest.fixture
def in_shards(folder: Path) -> Path:
    """The same, with its weights in several files."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder


def configure(folder: Path, **settings: Any) -> None:
    """Change config.json. A setting of ``...`` is removed."""
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def test_files_with_weights_are_those_that_the_index_names(in_shards: Path) -> None:
    require_model_files(in_shards)
    require_readable_weights(in_shards)
    second = sorted(in_shards.glob("*.safetensors"))[1]
    content = second.read_bytes()
    second.write_bytes(content[:-100])
    with pytest.raises(ModelError, match=rf"{second} \(.* bytes\) is no whole file of safetensors"):
        require_readable_weights(in_shards)
    with pytest.raises(ModelError, match="cannot be loaded: SafetensorError"):
        load_model(ModelSpec(path=str(in_shards)), torch.float32)
    second.write_text(POINTER)
    with pytest.raises(ModelError, match="a pointer of Git LFS in place of its file"):
        require_readable_weights(in_shards)
    second.unlink()
    with pytest.raises(ModelError, match=rf"lacks 1 of \d+ files with weights, among them '{second.name}'"):
        require_model_files(in_shards)
    (in_shards / INDEX).write_text("{")
    with pytest.raises(ModelError, match=f"{INDEX}: damaged, or no index of weights"):
        require_model_files(in_shards)
    (in_shards / INDEX).unlink()
    with pytest.raises(ModelError, match=f"lacks 1 of 1 files with weights, among them '{WEIGHTS}'"):
        require_model_files(in_shards)


def test_a_configuration_may_name_the_file_with_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "other.safetensors")
    with pytest.raises(ModelError, match=r"among them 'model\.safetensors'"):
        require_model_files(folder)
    configure(folder, transformers_weights="other.safetensors")
    assert load_model(ModelSpec(path=str(folder)), torch.float32) is not None


def test_an_adapter_beside_the_weights_is_not_put_into_the_model_unasked(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/other"}')
    with pytest.raises(ModelError, match=r"holds an adapter of peft \(adapter_config.json\)"):
        require_model_files(folder)


def without_head(folder: Path) -> None:
    backbone = AutoModelForCausalLM.from_pretrained(folder).model
    backbone.save_pretrained(folder / "backbone")
    shutil.copy(folder / "backbone" / WEIGHTS, folder)
    configure(folder, tie_word_embeddings=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_head, "lack 1 weights, among them 'lm_head.weight', which would be drawn at random"),
        (lambda folder: configure(folder, num_hidden_layers=3), r"lack 9 weights, among them 'model.layers.2."),
        (lambda folder: configure(folder, num_hidden_layers=1), r"have 9 weights of more layers .*'model.layers.1."),
        (
            lambda folder: configure(folder, intermediate_size=40),
            r"6 weights .*other sizes .*'model.layers.0.mlp.down_proj.weight': \(32, 48\), not \(32, 40\)",
        ),
        (
            lambda folder: configure(folder, hidden_act="none of these"),
            "cannot be loaded: KeyError: .*does not know what config.json says of hidden_act",
        ),
        (
            lambda folder: configure(folder, quantization_config={"quant_method": "exl2"}),
            "quantised by exl2, which transformers does not know",
        ),
    ],
)
def test_weights_that_do_not_belong_to_the_configuration_are_refused(change: Change, said: str, folder: Path) -> None:
    change(folder)
    with pytest.raises(ModelError, match=f"(?s){said}"):
        load_model(ModelSpec(path=str(folder)), torch.float32)


def own_code(folder: Path) -> None:
    configure(folder, model_type="own", auto_map={"AutoConfig": "own.Own"})
    (folder / "own.py").write_text("import a_package_that_is_nowhere\n")


@pytest.mark.parametrize(
    ("change", "trusts", "said"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), False, "JSON"),
        (lambda folder: configure(folder, hidden_size="large"), False, "hidden_size"),
        (lambda folder: configure(folder, model_type=...), False, "model_type"),
        (own_code, False, "here the key is model.trust_remote_code: true"),
        (own_code, True, "a_package_that_is_nowhere"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_error(change: Change, trusts: bool, said: str, folder: Path) -> None:
    change(folder)
    with pytest.raises(ModelError, match=f"(?s)has no usable configuration: .*{said}"):
        load_config(ModelSpec(path=str(folder), trust_remote_code=trusts))


def test_code_that_a_model_brings_is_run_where_a_sweep_trusts_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without weights too, where transformers would ask people on the terminal."""
    configure(folder, model_type="mine", auto_map={"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.MineLM"})
    (folder / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Mine(LlamaConfig):\n    model_type = 'mine'\n"
        "class MineLM(LlamaForCausalLM):\n    config_class = Mine\n"
    )
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nobody is asked"))
    trusted = ModelSpec(path=str(folder), trust_remote_code=True)
    assert type(empty_model(trusted)).__name__ == type(load_model(trusted, torch.float32)).__name__ == "MineLM"


def test_encoders_are_no_language_models() -> None:
    with pytest.raises(ArchitectureError, match="in bert tokens see later ones"):
        architecture_of(BertConfig())
    for config in (BertConfig(is_decoder=True), GPTNeoXConfig(), LlamaConfig()):
        assert isinstance(architecture_of(config), DecoderOnly)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "no file in .* is of a tokenizer"), ("{", "no JSON in .*: tokenizer.json")]
)
def test_a_tokenizer_that_is_missing_or_damaged_is_one_error(content: str | None, said: str, folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    if content is not None:
        (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=f"(?s)has no usable tokenizer: .*{said}"):
        load_tokenizer(ModelSpec(path=str(folder)))
