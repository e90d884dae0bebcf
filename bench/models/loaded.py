"""Loads trained adapters and models for trials: an adapter of Tuneoff or of Hugging Face peft, or a whole model.

Before any trial starts, the driver recognises the form and compares the shapes of its tensors with the base model. A
rank loads the files only if their hash is still the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from bench.method import Method, MethodError
from bench.models import base
from bench.models.adapter import CARD_FILE
from bench.models.adapter_files import (
    TENSORS_FILE,
    AdapterError,
    read_tensors,
    tensors_bytes,
    tensors_files,
    tensors_sha256,
)
from bench.models.coverage import patch_and_count
from bench.models.peft_folder import PEFT_CONFIG_FILE, PEFT_TENSORS_FILE
from bench.plugins.registry import make_method
from bench.quantized.linear import quantized_layers
from bench.schema.digests import sha256_of
from bench.schema.trial import LoadedSpec, MethodSpec, ModelSpec
from bench.store.records import RECORD_FILE

Form = Literal["tuneoff", "peft", "model"]
# So many digits of a hash stand in a name.
NAME_DIGITS = 6


def recognise(path: Path, name: str | None = None) -> LoadedSpec:
    """Describe the adapter or model at a path, which is a folder or the file with an adapter's tensors.

    Args:
        path: A folder, or the file with an adapter's tensors.
        name: The name of its row. None: the trial's id for the adapter of a trial; else the name of the folder and a
            part of the hash, because many folders have the same name.

    Raises:
        AdapterError: The path holds nothing that could be loaded.
        ModelError: A model folder without weights in safetensors.
    """
    folder = path.parent if path.is_file() else path
    if not folder.is_dir():
        raise AdapterError(f"{path}: there is no such folder")
    if (folder / CARD_FILE).is_file() and tensors_files(folder):
        return _loaded(folder, "tuneoff", tensors_sha256(tensors_files(folder)), name)
    if (folder / PEFT_CONFIG_FILE).is_file():
        if not (folder / PEFT_TENSORS_FILE).is_file():
            raise AdapterError(
                f"{folder}: {PEFT_CONFIG_FILE} without {PEFT_TENSORS_FILE}; only safetensors are read, so save the "
                "adapter again with save_pretrained(..., safe_serialization=True)"
            )
        return _loaded(folder, "peft", sha256_of(folder / PEFT_TENSORS_FILE), name)
    if (folder / "config.json").is_file():
        return _loaded(folder, "model", _model_sha256(folder), name)
    raise AdapterError(
        f"{folder}: nothing to score; give the folder of a completed trial that trains something "
        f"(results/<sweep>/trials/<id>) or another one with {CARD_FILE} and {TENSORS_FILE}, one of peft with "
        f"{PEFT_CONFIG_FILE} and {PEFT_TENSORS_FILE}, or a model folder with config.json"
    )


def _loaded(folder: Path, form: Form, sha256: str, name: str | None) -> LoadedSpec:
    own = folder.resolve().name
    if not (folder / RECORD_FILE).is_file():
        own = f"{own}@{sha256[:NAME_DIGITS]}"
    return LoadedSpec(path=str(folder), form=form, sha256=sha256, name=name or own)


def require_fit(loaded: LoadedSpec, method: MethodSpec, model: ModelSpec) -> None:
    """Compare names and shapes of the loaded tensors with the patched base model, without weights.

    Raises:
        AdapterError: The file is damaged, or its tensors are not those of this method and model.
        MethodError: The method does not fit the model.
    """
    if loaded.form == "model":
        _require_same_shapes(loaded, model)
        return
    state = read_tensors(_tensors_files(loaded), shapes_only=True)
    made = make_method(method)
    patched, _ = patch_and_count(made, base.empty_model(model))
    try:
        _put(made, patched, loaded, state)
    except MethodError as error:
        raise AdapterError(f"{loaded.path}: not an adapter of {model.path!r}: {error}") from error


def load_into(method: Method, model: Any, loaded: LoadedSpec) -> None:
    """Put a loaded adapter into a patched model. The weights of a whole model are there already.

    Raises:
        AdapterError: The files have changed since the driver has read them, or are damaged.
        MethodError: Names or shapes differ from those that the method stores.
    """
    sha256 = _model_sha256(Path(loaded.path)) if loaded.form == "model" else tensors_sha256(_tensors_files(loaded))
    if sha256 != loaded.sha256:
        raise AdapterError(f"{loaded.path}: it has changed since the command was given, or is another one on this node")
    if loaded.form != "model":
        _put(method, model, loaded, read_tensors(_tensors_files(loaded)))


def size_of(loaded: LoadedSpec) -> int:
    """Bytes on disk of the tensors of an adapter; 0 for a whole model, which has no adapter."""
    return 0 if loaded.form == "model" else tensors_bytes(_tensors_files(loaded))


def _put(method: Method, model: Any, loaded: LoadedSpec, state: Mapping[str, torch.Tensor]) -> None:
    if loaded.form == "peft":
        method.load_peft_state(model, state)
    else:
        method.load_adapter_state(model, state)


def _tensors_files(loaded: LoadedSpec) -> list[Path]:
    folder = Path(loaded.path)
    return [folder / PEFT_TENSORS_FILE] if loaded.form == "peft" else tensors_files(folder)


def _model_sha256(folder: Path) -> str:
    sha256 = base.weights_sha256(ModelSpec(path=str(folder.absolute())))
    if sha256 is None:
        raise AdapterError(f"{folder}: not a model folder")
    return sha256


def _require_same_shapes(loaded: LoadedSpec, model: ModelSpec) -> None:
    """Check that a whole model has all tensors of the base model, in their shapes. It may have others, too.

    Either of them may be quantised. A packed weight has the shape of what it stands for, in which GPT-2 turns it.
    """
    own = ModelSpec(path=loaded.path, attention=model.attention, trust_remote_code=model.trust_remote_code)
    tuned, plain = base.empty_model(own), base.empty_model(model.not_quantized)
    packed = {f"{name}.weight" for each in (tuned, plain) for name, _ in quantized_layers(each)}
    shapes = _shapes(tuned)
    for name, shape in _shapes(plain).items():
        found = shapes.get(name)
        same = found == shape or (name in packed and found is not None and sorted(found) == sorted(shape))
        if not same:
            has = f"has it in the shape {shapes[name]}" if name in shapes else "does not have it"
            raise AdapterError(
                f"{loaded.path}: not {model.path!r} tuned: that has {name} in the shape {shape}, and this model {has}; "
                "a model of another make is compared in a sweep of its own, with the method none"
            )


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters. Packed weights have those of their layers."""
    packed = {f"{name}.weight": (layer.out_features, layer.in_features) for name, layer in quantized_layers(model)}
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()} | packed
