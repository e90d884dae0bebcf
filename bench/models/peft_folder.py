"""Reads an adapter's folder of Hugging Face peft as settings of the method ``hf_peft``."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path

from bench.models.adapter_files import AdapterError
from bench.models.model_files import quantization_named
from bench.schema.trial import JsonDict
from bench.schema.validation import ConfigError

PEFT_CONFIG_FILE = "adapter_config.json"
PEFT_TENSORS_FILE = "adapter_model.safetensors"
# The file beside an adapter of peft with the settings that load the base model, which peft's configuration lacks.
QUANTIZATION_FILE = "quantization_config.json"

# Dtypes of multiplication, to what a sweep calls them.
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}


def peft_settings(folder: Path) -> JsonDict:
    """Read ``adapter_config.json``.

    Raises:
        AdapterError: The file is no configuration of peft.
    """
    path = folder / PEFT_CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterError(f"{path}: not a configuration of peft: {error}") from error
    if not (isinstance(content, dict) and isinstance(content.get("peft_type"), str)):
        raise AdapterError(f"{path}: not a configuration of peft: it names no peft_type")
    return content


def format_of_base(folder: Path) -> JsonDict:
    """The settings of a base model that say what ``quantization_config.json`` does; empty if there is no such file.

    Raises:
        AdapterError: The file is no quantisation of bitsandbytes.
    """
    path = folder / QUANTIZATION_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterError(f"{path}: no JSON: {error}") from error
    kind = quantization_named(content)
    if kind not in ("nf4", "fp4", "int8"):
        raise AdapterError(f"{path}: no settings of bitsandbytes, with which the base model could be quantised")
    in_four_bits = kind != "int8"
    return {
        "quantization": kind,
        "double_quantization": in_four_bits and bool(content.get("bnb_4bit_use_double_quant")),
        "quantization_compute": DTYPES.get(content.get("bnb_4bit_compute_dtype")) if in_four_bits else None,
    }


def bridge_settings(settings: JsonDict, decode_batch_size: int) -> JsonDict:
    """Settings of the method hf_peft that equal a configuration of peft: those that differ from peft's defaults.

    Args:
        settings: The result of :func:`peft_settings`.
        decode_batch_size: The number of sources that are decoded together. Some types of peft keep the contract of
            methods only without padding.

    Raises:
        ConfigError: Sources would be padded, or the type breaks the contract in other ways.
    """
    from methods.hf_peft import BREAKS_CONTRACT, OWN_FIELDS, PADDING_BREAKS, peft_config_classes

    peft_type = settings["peft_type"]
    known = peft_config_classes().get(peft_type)
    if known is None:
        return {"peft_type": peft_type}  # the method refuses it and names the known types
    reason = BREAKS_CONTRACT.get(peft_type)
    if reason is not None and reason != PADDING_BREAKS:
        raise ConfigError(f"{peft_type} of peft cannot be scored: {reason}")
    if reason is not None and decode_batch_size > 1:
        raise ConfigError(
            f"{peft_type} of peft is scored one source at a time: {reason}; --set decode.batch_size=1 does so"
        )
    defaults = {
        field.name: field.default_factory() if field.default_factory is not MISSING else field.default
        for field in fields(known)
    }
    own = {
        key: value
        for key, value in settings.items()
        if key not in OWN_FIELDS and (key not in defaults or defaults[key] != value)
    }
    if peft_type == "LORA" and own.get("init_lora_weights") == "eva":
        # EVA leaves the base weights as they are, so that the stored tensors say everything.
        own = {key: value for key, value in own.items() if key not in ("init_lora_weights", "eva_config")}
    return {"peft_type": peft_type, **own, **({"despite_contract": True} if reason is not None else {})}
