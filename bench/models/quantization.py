"""Base models in four or eight bits: settings for transformers and bitsandbytes, and replacement of their layers."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from bench.models.model_files import DEQUANTIZED, ModelError, quantization_named
from bench.quantized.linear import BITS, BLOCK, Quantization, QuantizedLinear, packed_sizes, replace_layers
from bench.schema.trial import JsonDict, ModelSpec
from methods.parts.weight_reads import uses_of

PACKAGE = "bitsandbytes>=0.50,<0.51"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Formats that transformers dequantises in loading, always (DEQUANTIZED) or where a device has no kernels for them.
SOMETIMES_WHOLE = (*DEQUANTIZED, "fp8", "mxfp8", "metal", "gguf")
# Families of transformers that cast the inputs of these layers to the dtype of the weight, unless that is int8 or the
# activation is gated. In four bits packed weights are uint8. T5 does so, too, and keeps the layers whole itself.
CASTS_INPUTS = {"switch_transformers": ("wo",), "longt5": ("wo",)}


@dataclass(frozen=True)
class Storage:
    """The format in which bitsandbytes stores the linear layers of a base model."""

    kind: Quantization
    double: bool = False
    multiplied_in: torch.dtype | None = None  # None: the dtype of the inputs
    in_checkpoint: bool = False  # True: the checkpoint is quantised; False: weights are quantised in loading


def storage_of(spec: ModelSpec, config: Any) -> Storage | None:
    """The format in which bitsandbytes stores the linear layers of a model; None if it does not.

    Args:
        spec: The model.
        config: The model's configuration of transformers.

    Raises:
        ModelError: bitsandbytes is not installed, or the checkpoint is stored in another way than the sweep says.
    """
    stored = _of_checkpoint(getattr(config, "quantization_config", None))
    method = quantized_by(config)
    if spec.quantization is not None and method is not None and (stored is None or stored.kind != spec.quantization):
        raise ModelError(
            f"model.quantization: {spec.quantization} cannot be had of {spec.path!r}, whose weights are quantised "
            f"already, by {method}; leave quantization out, or name a checkpoint that is not quantised"
        )
    if method is not None and stored is None:
        _require_known(method, spec.path)
    if stored is None and spec.quantization is None:
        return None
    require_bitsandbytes((stored.kind if stored is not None else spec.quantization) or "")
    multiplied_in = None if spec.quantization_compute is None else DTYPES[spec.quantization_compute]
    if stored is not None:
        if spec.double_quantization and not stored.double:
            raise ModelError(
                f"model.double_quantization: the scales of {spec.path!r}, whose weights are quantised already, by "
                f"{stored.kind}, are not quantised; leave double_quantization out, or name a checkpoint that is not "
                "quantised"
            )
        return replace(stored, multiplied_in=multiplied_in)
    assert spec.quantization is not None
    return Storage(spec.quantization, spec.double_quantization, multiplied_in)


def _require_known(method: str, path: str) -> None:
    """Check that transformers knows a quantisation. Of another one it would take packed weights for plain ones.

    Raises:
        ModelError: It does not.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise ModelError(
            f"model.path: the weights of {path!r} are quantised by {method}, which transformers does not know "
            "(quantization_config of its config.json); name a checkpoint that is not quantised, and set "
            "model.quantization"
        )


def quantized_by(config: Any) -> str | None:
    """The quantisation of a checkpoint, by its configuration: ``nf4`` of bitsandbytes, or a name such as gptq."""
    return quantization_named(_as_dict(getattr(config, "quantization_config", None)) or None)


def packed_by_another_library(config: Any) -> str | None:
    """The format in which the weights of a model surely stay on every device, if it is not one of bitsandbytes."""
    method, settings = quantized_by(config), _as_dict(getattr(config, "quantization_config", None))
    is_packed = method not in (None, *BITS, *SOMETIMES_WHOLE) and not settings.get("dequantize")
    return method if is_packed else None


def trains_through(quantizer: Any) -> bool:
    """Whether gradients go through the packed weights of a quantiser of transformers, or its configuration.

    True also where that cannot be told, as without the package of the format, without which nothing is loaded.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        if isinstance(quantizer, dict):
            quantizer = AutoHfQuantizer.from_config(copy.deepcopy(quantizer))
        return bool(quantizer.is_trainable)
    except Exception:  # noqa: BLE001 - of many kinds, by the package that is missing
        return True


def dequantizing_config(config: Any) -> Any:
    """The settings with which transformers dequantises a checkpoint in loading; None if its weights stay as they are.

    On GPUs with kernels for mxfp4, transformers would keep it. These kernels have no backward pass.
    """
    from transformers import Mxfp4Config

    return Mxfp4Config(dequantize=True) if quantized_by(config) in DEQUANTIZED else None


def cast_dequantized(model: Any, dtype: torch.dtype) -> None:
    """Give weights that were dequantised in loading the dtype of a model: transformers 5.18 makes them bf16 always."""
    for parameter in model.parameters():
        if parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.to(dtype)


def _of_checkpoint(quantization: Any) -> Storage | None:
    settings = _as_dict(quantization)
    kind = quantization_named(settings or None)
    if kind not in BITS:
        return None
    return Storage(cast(Quantization, kind), bool(settings.get("bnb_4bit_use_double_quant")), in_checkpoint=True)


def _as_dict(settings: Any) -> JsonDict:
    return dict(settings if isinstance(settings, dict) else settings.to_dict()) if settings is not None else {}


def require_bitsandbytes(kind: str) -> None:
    """Check that bitsandbytes is installed.

    Raises:
        ModelError: It is not.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantization: weights in {kind} need the package bitsandbytes; install it with "
            f"\"pip install '{PACKAGE}'\", or take weights that are not quantised"
        )
    import bitsandbytes  # noqa: F401 - it registers its operators


def bitsandbytes_config(storage: Storage, dtype: torch.dtype, skipped: list[str] | None = None) -> Any:
    """The settings of transformers for a model that is quantised in loading.

    Args:
        storage: The format.
        dtype: In which weights are multiplied, unless the format says.
        skipped: Names of layers that are not quantised; None: transformers decides, when users load the model
            elsewhere.
    """
    from transformers import BitsAndBytesConfig

    if storage.kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=storage.kind,
        bnb_4bit_use_double_quant=storage.double,
        bnb_4bit_compute_dtype=storage.multiplied_in or dtype,
        llm_int8_skip_modules=skipped,
    )


def skipped_layers(empty: Any, kind: Quantization) -> list[str]:
    """Names of the linear layers that are not quantised.

    They are the output head and layers tied to it, as in transformers, layers whose weight a model reads without
    calling the layer, which is impossible with packed weights, and layers whose inputs it casts to the weight's dtype.

    Args:
        empty: The model without weights, not quantised.
        kind: The format of the others.
    """
    from transformers.quantizers.base import HfQuantizer

    usual = HfQuantizer.get_modules_to_not_convert(empty, None, empty._keep_in_fp32_modules)
    config = empty.config
    casts = BITS[kind] == 4 and not getattr(config, "is_gated_act", False)
    casting = CASTS_INPUTS.get(getattr(config, "model_type", ""), ()) if casts else ()
    return sorted({*usual, *uses_of(empty).readers, *casting})


def use_quantized_layers(model: Any, storage: Storage, dtype: torch.dtype) -> None:
    """Replace the layers of bitsandbytes by those of Tuneoff, with the same packed weights.

    Transformers then treats the model like one that is not quantised.

    Args:
        model: A model that transformers has loaded.
        storage: The format.
        dtype: The dtype in which the model computes.
    """
    from bitsandbytes import nn as layers

    theirs = (layers.Linear4bit, layers.Linear8bitLt)
    replace_layers(model, lambda _, layer: _ours(layer, storage, dtype) if isinstance(layer, theirs) else None)
    model.hf_quantizer.remove_quantization_config(model)
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        vars(model).pop(flag, None)


def _ours(layer: Any, storage: Storage, dtype: torch.dtype) -> QuantizedLinear:
    weight = layer.weight
    if storage.kind == "int8":
        scale = layer.state.SCB if weight.SCB is None else weight.SCB
        packed, statistics, block = weight.data, {"absmax": scale.flatten()}, BLOCK
    else:
        packed, statistics, block = weight.data.view(torch.uint8), _statistics(weight.quant_state), weight.blocksize
    elements = layer.in_features * layer.out_features
    if packed.numel() != (elements if storage.kind == "int8" else -(-elements // 2)):
        raise ModelError(
            f"model.path: a weight in its files has another size than {layer.out_features} x {layer.in_features}, as "
            "its config.json says; take the config.json that belongs to the weights"
        )
    return QuantizedLinear(
        layer.in_features,
        layer.out_features,
        storage.kind,
        packed.reshape(-1, 1),
        statistics,
        layer.bias,
        torch.empty(0, dtype=dtype, device=packed.device),
        storage.multiplied_in,
        block,
    )


def _statistics(state: Any) -> dict[str, torch.Tensor]:
    """The statistics of a quantisation state of bitsandbytes."""
    statistics = {"absmax": state.absmax}
    if state.nested:
        statistics |= {"nested_absmax": state.state2.absmax, "nested_code": state.state2.code, "offset": state.offset}
    return statistics


def quantize(model: Any, storage: Storage) -> None:
    """Quantise the layers of a model that is in memory as a whole, or has no data (on the meta device).

    Their weights stay in memory, for methods that ask what quantising took away, unless the checkpoint lacks them.

    Args:
        model: A model that is neither patched nor quantised.
        storage: The format.
    """
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.quantizers_utils import should_convert_module

    skipped = skipped_layers(model, storage.kind)

    def quantized(name: str, layer: Any) -> QuantizedLinear | None:
        is_linear = type(layer) is nn.Linear or isinstance(layer, Conv1D)
        if not (is_linear and should_convert_module(name, skipped)):
            return None
        weight = (layer.weight.T if isinstance(layer, Conv1D) else layer.weight).detach()
        made = quantized_layer(weight, layer.bias, storage)
        made.original = None if storage.in_checkpoint else lambda: weight
        return made

    replace_layers(model, quantized)


def quantized_layer(weight: torch.Tensor, bias: nn.Parameter | None, storage: Storage) -> QuantizedLinear:
    """A quantised linear layer for the weights ``(O, I)``; without data if they have none."""
    out_features, in_features = weight.shape
    parts = _packed(weight, storage)
    packed = parts.pop("weight")
    return QuantizedLinear(in_features, out_features, storage.kind, packed, parts, bias, weight, storage.multiplied_in)


def _packed(weight: torch.Tensor, storage: Storage) -> dict[str, torch.Tensor]:
    """The packed weights (``weight``) and their statistics; without data if the weights have none."""
    from bitsandbytes import functional

    if weight.is_meta:
        dtypes = {"weight": torch.int8 if storage.kind == "int8" else torch.uint8}
        dtypes["absmax"] = torch.uint8 if storage.double else torch.float32
        sizes = packed_sizes(storage.kind, storage.double, weight.shape[1], weight.shape[0])
        return {
            name: torch.empty(size, dtype=dtypes.get(name, torch.float32), device=weight.device)
            for name, size in sizes.items()
        }
    if storage.kind == "int8":
        rows, scales, _ = functional.int8_vectorwise_quant(weight.contiguous().half())
        return {"weight": rows.view(-1, 1), "absmax": scales}
    known = weight if weight.dtype in (torch.float32, torch.float16, torch.bfloat16) else weight.float()
    packed, state = functional.quantize_4bit(
        known.contiguous(), blocksize=BLOCK, compress_statistics=storage.double, quant_type=storage.kind
    )
    return {"weight": packed, **_statistics(state)}
