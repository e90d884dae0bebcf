"""Writes a base model with the adapter merged into its weights as a folder that transformers loads."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from bench.method import MethodError, copy_state
from bench.models import base as models
from bench.models.adapter import Restored
from bench.quantized.linear import dequantize
from bench.schema.trial import ModelSpec

# Settings that switch on the biases of linear layers in families of transformers. BitFit may have added biases.
BIAS_SETTINGS = ("attention_bias", "mlp_bias", "use_bias", "add_bias_linear")


def write_merged(folder: Path, restored: Restored) -> None:
    """Write weights, configuration, generation settings and tokenizer. The adapted model cannot be used afterwards.

    If the base model is quantised, the adapter is merged into its dequantised weights.

    Raises:
        MethodError: A plain model has no place for the trained tensors.
    """
    dequantize(restored.model)
    weights = dict(restored.method.merged_weights(restored.model))
    base = restored.fresh_base()
    base, turned = _with_whole_weights(base, dequantize(base))
    weights |= {name: weights[name].T for name in turned & weights.keys()}
    model = _with_places_for(weights, base, restored)
    places = dict(model.named_parameters(remove_duplicate=False))
    copy_state({name: places[name] for name in weights}, weights)
    generation = model.generation_config
    # transformers refuses some settings of base models (sampling settings without do_sample), which must not fail here.
    model.generation_config = type(generation)()
    model.save_pretrained(folder)
    generation.to_json_file(folder / "generation_config.json")
    _write_tokenizer(folder, restored.base)


def _with_whole_weights(base: Any, dequantized: Sequence[str]) -> tuple[Any, set[str]]:
    """A base model whose layers have the classes of its family, after some were quantised.

    Args:
        base: The model with plain linear layers in place of the quantised ones.
        dequantized: The names of these layers.

    Returns:
        The model, and the names of weights that are transposed in its family (GPT-2).
    """
    if not dequantized:
        return base, set()
    model = type(base)(base.config).requires_grad_(False).eval()
    turned = {f"{name}.weight" for name in dequantized if isinstance(model.get_submodule(name), Conv1D)}
    own = {name: tensor.T if name in turned else tensor for name, tensor in base.state_dict().items()}
    model.load_state_dict(own)
    return model, turned


def _with_places_for(names: Iterable[str], base: Any, restored: Restored) -> Any:
    """A base model that has parameters of these names. Biases that it lacks are switched on, at zero."""
    method = type(restored.method).__name__
    known = dict(base.named_parameters(remove_duplicate=False))
    if not (added := sorted(set(names) - known.keys())):
        return base
    config = copy.deepcopy(base.config)
    switched = [name for name in BIAS_SETTINGS if getattr(config, name, None) is False]
    if all(name.endswith(".bias") for name in added) and switched:
        for name in switched:
            setattr(config, name, True)
        larger = type(base)(config)
        places = dict(larger.named_parameters(remove_duplicate=False))
        if set(names) <= places.keys():
            copy_state({name: places[name] for name in known}, known)
            with torch.no_grad():
                for name in places.keys() - known.keys():
                    places[name].zero_()
            return larger
    raise MethodError(
        f"{method} cannot be merged: {type(base).__name__} has no place for {added[0]!r}"
        + (f" and {len(added) - 1} more tensors" if len(added) > 1 else "")
        + "; keep it as an adapter, or try --to peft"
    )


def _write_tokenizer(folder: Path, spec: ModelSpec) -> None:
    """Write the original tokenizer, because training may have given it another padding token."""
    from transformers import AutoTokenizer

    source = models.model_source(spec)
    tokenizer = AutoTokenizer.from_pretrained(
        source, revision=spec.pinned_revision, trust_remote_code=spec.trust_remote_code
    )
    tokenizer.save_pretrained(folder)
    if spec.trust_remote_code and Path(source).is_dir():
        for path in Path(source).glob("*.py"):
            shutil.copy(path, folder)
