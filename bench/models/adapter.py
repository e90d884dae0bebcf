"""Stores a trained adapter in ``adapter.safetensors`` and ``adapter.json``, and loads it into its base model.

The files are complete: they hold the tensors under the names that the method gives them, and name the method, base
model, template and decoding that belong to them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError, field_validator

from bench.measure.provenance import installed_version
from bench.method import Method
from bench.models import base as models
from bench.models.adapter_files import (
    TENSORS_FILE,
    AdapterError,
    StreamedState,
    read_tensors,
    tensors_bytes,
    tensors_files,
)
from bench.models.architecture import Architecture
from bench.models.masters import compute_in
from bench.models.tokens import Tokenization
from bench.plugins.registry import make_method
from bench.quantized.linear import quantized_layers
from bench.schema.trial import DecodeSpec, JsonDict, MethodSpec, ModelSpec, Precision, Spec, TrialSpec
from bench.task import Example, TaskConfig

CARD_FILE = "adapter.json"


class AdapterCard(Spec):
    """``adapter.json``. Fields with defaults are missing in the oldest files."""

    method: MethodSpec
    model: ModelSpec
    template: str = Field(description="what the model reads before it writes; {bos} is its beginning token")
    system_prompt: str | None = Field(None, description="with the template chat; see the task's setting")
    system_in: Literal["system", "user"] = "system"
    chat_options: JsonDict = Field(default={})
    max_source_tokens: int | None = Field(None, description="longer sources were cut at the end; None: not recorded")
    decode: DecodeSpec = Field(DecodeSpec(), description="how its trial generated")
    precision: Precision = "fp32"
    trial_id: str | None = None
    tuneoff_version: str | None = None

    @field_validator("model", mode="before")
    @classmethod
    def _before_there_was_a_choice(cls, model: Any) -> Any:
        """Adapters whose card does not say were trained on sources without a beginning token."""
        return {"beginning_token": False, **model} if isinstance(model, dict) else model

    @property
    def reading(self) -> JsonDict:
        """The settings of a task that say how its sources were read in training, as far as they are recorded."""
        names = {"template", "system_prompt", "system_in", "chat_options"}
        if self.max_source_tokens is not None:
            names.add("max_source_tokens")
        return self.model_dump(mode="json", include=names)


def save_adapter(folder: Path, spec: TrialSpec, task: TaskConfig, state: Mapping[str, torch.Tensor]) -> int:
    """Write card and tensors.

    Returns:
        Bytes of the tensors' files.
    """
    from safetensors.torch import save_file

    if isinstance(state, StreamedState):
        state.put_into(folder)
    else:
        save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, folder / TENSORS_FILE)
    card = AdapterCard(
        method=spec.method,
        model=spec.model,
        template=task.template,
        system_prompt=task.system_prompt,
        system_in=task.system_in,
        chat_options=task.chat_options,
        max_source_tokens=task.max_source_tokens,
        decode=spec.drawing,
        precision=spec.resources.precision,
        trial_id=spec.trial_id,
        tuneoff_version=installed_version("tuneoff"),
    )
    text = json.dumps(card.model_dump(mode="json"), indent=2, sort_keys=True)
    (folder / CARD_FILE).write_text(text + "\n", encoding="utf-8")
    return tensors_bytes(tensors_files(folder))


def read_card(folder: Path) -> AdapterCard:
    """The card of an adapter, e.g. of a trial's folder.

    Raises:
        AdapterError: The folder has no adapter, or one that this version cannot read.
    """
    path = folder / CARD_FILE
    if not (path.is_file() and tensors_files(folder)):
        raise AdapterError(
            f"{folder}: no {CARD_FILE} and {TENSORS_FILE}; give the folder of a completed trial that trains something "
            "(results/<sweep>/trials/<id>), or another one with these two files"
        )
    try:
        return AdapterCard.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path}: not the card of an adapter: {error}") from error


@dataclass(frozen=True)
class Restored:
    """A base model with an adapter, in evaluation mode, with tokenizer and settings."""

    card: AdapterCard
    base: ModelSpec  # where the base model was found
    method: Method
    model: Any
    tokenizer: Any
    architecture: Architecture

    def fresh_base(self) -> Any:
        """A new copy of the base model, on the CPU, in fp32, not adapted."""
        return base_model(self.base, self.card.precision, exact=True).to("cpu")

    def source_ids(self, source: str) -> list[int]:
        """The tokens that the model reads for a source, by the template of its training."""
        config = TaskConfig(**self.card.reading)
        tokens = Tokenization(self.tokenizer, config, self.architecture, self.card.model.beginning_token)
        return tokens.source(Example("", (), source, ()))


def base_model(spec: ModelSpec, precision: Precision, exact: bool = False) -> Any:
    """The base model of an adapter. ``exact``: in fp32, with weights rounded as they were when it was trained."""
    model = models.load_model(spec, models.weights_dtype(precision))
    if not exact:
        return model
    for _, layer in quantized_layers(model):
        layer.multiplied_in = None
    return model.float()


def restore(folder: Path, device: torch.device, model_path: str | None = None, exact: bool = False) -> Restored:
    """Load the base model, patch it, and put the stored tensors in.

    Args:
        folder: The folder of the adapter.
        device: The device of the model.
        model_path: Path of the base model, if it is not where it was in training.
        exact: Whether to compute in fp32 at any precision of the training, so that no stored tensor is rounded.

    Raises:
        AdapterError: There is no adapter, it is damaged, or the base model is not the one it was trained on.
        ModelError: The base model cannot be loaded.
        RegistryError: The method cannot be loaded.
    """
    card = read_card(folder)
    elsewhere = {"path": model_path, "revision": None, "commit": None}
    spec = card.model if model_path is None else card.model.model_copy(update=elsewhere)
    weights = models.weights_sha256(spec)
    if card.model.weights_sha256 is not None and weights != card.model.weights_sha256:
        raise AdapterError(
            f"{folder}: the adapter was trained on other weights than {spec.path!r} has now (those of "
            f"{card.model.path!r}); give the folder of the original ones with --model"
        )
    tokenizer = models.load_tokenizer(spec)
    method = make_method(card.method, tokenizer)
    model = method.patch(base_model(spec, card.precision, exact))
    compute_in(torch.float32 if exact else models.weights_dtype(card.precision), model)
    method.load_adapter_state(model, read_tensors(tensors_files(folder)))
    return Restored(card, spec, method, model.to(device).eval(), tokenizer, models.architecture(spec))
