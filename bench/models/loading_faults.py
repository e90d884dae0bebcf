"""What is wrong with a base model that people bring, in words: weights of another configuration, damaged files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bench.models.model_files import ModelError, local_folder
from bench.schema.trial import ModelSpec

# The number of a layer in the name of a tensor, and what stands before it.
LAYER = re.compile(r"(.*?\.)(\d+)\.")
# The forms in which tokenizers are stored.
OF_TOKENIZERS = ("tokenizer*", "vocab*", "merges*", "*.model", "*.tiktoken")


def require_weights_of_model(model: nn.Module, loaded: Mapping[str, Any], path: str) -> None:
    """Check that the files have the weights of the model that their configuration describes, and no further layers.

    transformers draws what is missing, or of another size, at random, in every process anew. The model that is scored
    would not be the one that was trained, and slices of several ranks would belong to different models.

    Args:
        model: As it was loaded.
        loaded: What transformers tells of the loading.
        path: Of the model, for messages.

    Raises:
        ModelError: They do not. The message names a weight.
    """
    if other := sorted(loaded["mismatched_keys"], key=lambda one: str(one[0])):
        name, stored, expected = other[0]
        raise ModelError(
            f"model.path: {len(other)} weights in the files of {path!r} have other sizes than its config.json says, "
            f"among them {name!r}: {tuple(stored)}, not {tuple(expected)}; take the config.json that belongs to them"
        )
    if missing := sorted(loaded["missing_keys"]):
        raise ModelError(
            f"model.path: the files of {path!r} lack {len(missing)} weights, among them {missing[0]!r}, which would be "
            "drawn at random; save the model with all of its weights (one without its output head was saved as a "
            "backbone), and with the config.json that belongs to them"
        )
    if further := sorted(_of_further_layers(model, loaded["unexpected_keys"])):
        raise ModelError(
            f"model.path: the files of {path!r} have {len(further)} weights of more layers than its config.json says, "
            f"among them {further[0]!r}, which would be left out; take the config.json that belongs to the weights, or "
            "save the shorter model by itself"
        )


def _of_further_layers(model: nn.Module, unexpected: Iterable[str]) -> Iterator[str]:
    """The tensors without a place that have one in a layer of another number: of a list that goes on in the files."""
    places = {name for name, _ in model.named_parameters()}
    for name in unexpected:
        match = LAYER.match(name)
        if match is not None and name.replace(match[0], f"{match[1]}0.", 1) in places:
            yield name


def in_words(error: Exception, spec: ModelSpec) -> str:
    """An error of a library about a model, with the file, the setting or the key that it is about."""
    plain = type(error) in (OSError, ValueError)
    said = str(error) if plain and str(error) else f"{type(error).__name__}: {error}"
    return "; ".join([said, *_hints(error, spec)])


def _hints(error: Exception, spec: ModelSpec) -> Iterator[str]:
    if not spec.trust_remote_code and "trust_remote_code" in str(error):
        yield "here the key is model.trust_remote_code: true"
    folder = local_folder(spec)
    if folder is None:
        return
    contents = {path.name: _json_of(path) for path in sorted(folder.glob("*.json"))}
    if damaged := [name for name, content in contents.items() if content is None]:
        yield f"no JSON in {folder}: {', '.join(damaged)}"
    if isinstance(error, KeyError):
        for key in _keys_of(contents.get("config.json"), error.args[0]):
            yield f"transformers does not know what config.json says of {key}"
    if "tokenizer" in str(error) and not any(path for pattern in OF_TOKENIZERS for path in folder.glob(pattern)):
        yield f"no file in {folder} is of a tokenizer, such as tokenizer.json"


def _json_of(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _keys_of(content: Any, value: Any, inside: str = "") -> Iterator[str]:
    """Dotted keys that have this value."""
    for key, found in content.items() if isinstance(content, dict) else ():
        if found == value:
            yield f"{inside}{key}"
        yield from _keys_of(found, value, f"{inside}{key}.")
