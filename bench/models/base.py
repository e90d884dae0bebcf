"""Base models: a local folder, a hub id, or the embedded default. safetensors only."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import re
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.models.architecture import Architecture, ArchitectureError, architecture_of, vocabulary_size
from bench.models.lean_modules import use_lean_modules
from bench.models.loading_faults import in_words, require_weights_of_model
from bench.models.model_files import (
    EMBEDDED,
    EMBEDDED_GGUF,
    EMBEDDED_PACKAGE,
    ModelError,
    adapter_in,
    cache_path,
    embedded_folder,
    embedded_package,
    local_folder,
    require_model_files,
    require_readable_weights,
    weights_sha256,
)
from bench.models.original_weights import remember_originals
from bench.models.quantization import (
    Storage,
    bitsandbytes_config,
    cast_dequantized,
    dequantizing_config,
    packed_by_another_library,
    quantize,
    quantized_by,
    skipped_layers,
    storage_of,
    trains_through,
    use_quantized_layers,
)
from bench.models.sharded_loading import keeping_slices, require_all_in_shards
from bench.models.whole_layers import call_projections
from bench.quantized.linear import say_stored_in
from bench.schema.trial import DEFAULT_BRANCH, JsonDict, ModelSpec, Precision
from bench.shards.slices import gather_in_forward
from bench.store.files import new_folder

# Names of bench.models.model_files are exported, too, so that users of models import one module.
__all__ = [
    "ABOUT_ATTENTION",
    "EMBEDDED",
    "EMBEDDED_GGUF",
    "EMBEDDED_PACKAGE",
    "ModelError",
    "architecture",
    "cache_path",
    "embedded_folder",
    "embedded_model",
    "embedded_package",
    "empty_model",
    "has_dropout",
    "load_config",
    "load_generation_config",
    "load_model",
    "load_tokenizer",
    "local_folder",
    "model_source",
    "quantization_config",
    "require_model_files",
    "require_readable_weights",
    "stored_bytes",
    "weights_dtype",
    "weights_sha256",
]

# Words in transformers' messages about a model that does not have a kind of attention.
ABOUT_ATTENTION = ("attention implementation", "attn_implementation", "flash attention", "flashattention", "flash_attn")


def model_source(spec: ModelSpec) -> str:
    """The path that transformers loads: a local folder, checked and converted if necessary, or a hub id.

    Raises:
        ModelError: The folder is no model folder, or the embedded model's package is missing.
    """
    if spec.path == EMBEDDED:
        return str(embedded_model())
    folder = local_folder(spec)
    return spec.path if folder is None else str(folder)


def _files_of(spec: ModelSpec) -> Path:
    """The folder with the files of a model that was loaded before, which may be one of the hub's cache."""
    from transformers.utils.hub import cached_file

    source = model_source(spec)
    if Path(source).is_dir():
        return Path(source)
    found = cached_file(source, "config.json", revision=spec.pinned_revision, local_files_only=True)
    return Path(str(found)).parent


def load_tokenizer(spec: ModelSpec) -> Any:
    """The tokenizer. If its padding token is missing, or without a row in the embedding, it becomes the end token.

    The attention mask hides padding, but the embedding still looks it up.

    Raises:
        ModelError: There is no usable tokenizer, or it has no end token that the model knows.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model_source(spec), revision=spec.pinned_revision, trust_remote_code=spec.trust_remote_code
        )
    except ModelError:
        raise
    except Exception as error:  # of many kinds, by the file that is missing or damaged
        raise ModelError(f"model.path: {spec.path!r} has no usable tokenizer: {in_words(error, spec)}") from error
    rows = vocabulary_size(load_config(spec))
    end, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
    if end is None:
        raise ModelError(f"model.path: the tokenizer of {spec.path!r} has no end token, so no text could ever end")
    if rows is not None and end >= rows:
        raise ModelError(
            f"model.path: the tokenizer of {spec.path!r} has the end token {tokenizer.eos_token!r} with the id {end}, "
            f"and the embedding has {rows:,} rows, so no text could ever end; set eos_token in its "
            "tokenizer_config.json to a token that the model knows"
        )
    if padding is None or (rows is not None and padding >= rows):
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def weights_dtype(precision: Precision) -> torch.dtype:
    """The dtype of a base model's weights at a precision of ``resources.precision``."""
    return DTYPES[precision]


def load_model(
    spec: ModelSpec, dtype: torch.dtype, dropout: float | None = None, shards_on: torch.device | None = None
) -> Any:
    """The base model, all weights frozen, in evaluation mode.

    It is on the CPU, unless transformers quantises it, which it does on a GPU where there is one, and leaves it there.

    Args:
        spec: The model.
        dtype: Dtype of its weights.
        dropout: Probability inside the model in training; None is that of its configuration.
        shards_on: The device of this rank's slices of the weights, if it holds nothing else of them, see
            :mod:`bench.shards.slices`. This needs a process group. None loads the whole model.

    Raises:
        ModelError: The model cannot be loaded, or has no dropout to set.
    """
    import transformers
    from transformers.utils import find_adapter_config_file

    auto_class = getattr(transformers, architecture(spec).auto_class)
    storage = _storage(spec)
    settings: JsonDict = _dropout_settings(spec, dropout) | _padding_settings(spec)
    source = model_source(spec)
    if find_adapter_config_file(source, revision=spec.pinned_revision) is not None:
        raise adapter_in(source)
    dequantizing = dequantizing_config(load_config(spec))
    if (quantization := dequantizing or _quantization_settings(spec, storage, dtype)) is not None:
        settings["quantization_config"] = quantization
    try:
        with nullcontext() if shards_on is None else keeping_slices(shards_on):
            model, loaded = auto_class.from_pretrained(
                source,
                revision=spec.pinned_revision,
                dtype=dtype,
                attn_implementation=spec.attention,
                use_safetensors=True,
                trust_remote_code=spec.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # which is refused below, by name
                **settings,
            )
    except Exception as error:  # of many kinds: damaged files, sizes that differ, packages that are missing
        raise _unusable(spec, error) from error
    require_weights_of_model(model, loaded, spec.path)
    if dequantizing is not None and shards_on is None:
        cast_dequantized(model, dtype)
    if storage is not None:
        use_quantized_layers(model, storage, dtype)
        if not storage.in_checkpoint:
            remember_originals(model, partial(_files_of, spec), partial(empty_model, spec.not_quantized))
    elif (quantizer := getattr(model, "hf_quantizer", None)) is not None:  # one that has not dequantised the weights
        say_stored_in(model, quantized_by(model.config) or "packed weights", trains_through(quantizer))
    use_lean_modules(model)
    call_projections(model)
    if shards_on is not None:
        require_all_in_shards(model, spec.path)
        gather_in_forward(model)
    return model.requires_grad_(False).eval()


def _storage(spec: ModelSpec) -> Storage | None:
    """The format of linear layers, if bitsandbytes quantises them or has quantised them in the checkpoint."""
    return storage_of(spec, load_config(spec))


def quantization_config(spec: ModelSpec, precision: Precision = "fp32") -> Any:
    """The quantisation settings of transformers for a model that is quantised in loading; None for other models.

    Args:
        spec: The model.
        precision: Of the computation, where the model does not say in which dtype weights are multiplied.
    """
    return _quantization_settings(spec, _storage(spec), weights_dtype(precision))


def _quantization_settings(spec: ModelSpec, storage: Storage | None, dtype: torch.dtype) -> Any:
    if storage is None or storage.in_checkpoint:
        return None
    return bitsandbytes_config(storage, dtype, skipped_layers(empty_model(spec.not_quantized), storage.kind))


def stored_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Bytes of a base model's weights and of the statistics that dequantise them, from its configuration alone."""
    empty = empty_model(spec, dtype)
    return sum(tensor.numel() * tensor.element_size() for tensor in (*empty.parameters(), *empty.buffers()))


def _unusable(spec: ModelSpec, error: Exception) -> ModelError:
    """The error for a base model that transformers refuses to make. It names the wrong key, and what would be right."""
    reason = str(error) or type(error).__name__
    if any(word in reason.lower() for word in ABOUT_ATTENTION):
        other = "leave model.attention out" if spec.attention.startswith("flash") else "set model.attention: eager"
        name = (getattr(load_config(spec), "architectures", None) or ["the model"])[0]
        return ModelError(
            f"model.attention: {name} in {spec.path!r} cannot be had with {spec.attention!r}; {other} "
            f"({reason.partition('. ')[0]})"
        )
    if (method := quantized_by(load_config(spec))) is not None and _something_is_missing(error):
        return ModelError(
            f"model.path: the weights of {spec.path!r} are quantised by {method}, and transformers cannot load them "
            f"here ({reason.partition('. ')[0]}); install what reads them, or name a checkpoint that is not quantised "
            "and set model.quantization"
        )
    if "use_safetensors" in reason:  # which is no setting here
        return ModelError(
            f"model.path: {spec.path!r} has no safetensors at {spec.pinned_revision or DEFAULT_BRANCH} on the hub, and "
            "nothing else is read; name a revision that has them, or convert the weights and give their folder"
        )
    return ModelError(f"model.path: {spec.path!r} cannot be loaded: {in_words(error, spec)}")


def _something_is_missing(error: Exception) -> bool:
    """Whether an error is about a package or a device that is not there."""
    words = ("install", "package", "gpu", "cuda", "xpu")
    about_them = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    return isinstance(error, ImportError) or about_them


def _dropout_settings(spec: ModelSpec, dropout: float | None) -> dict[str, float]:
    """The model's settings of dropout, by any name, set to one value; none if ``dropout`` is None.

    LayerDrop is not among them, nor is the dropout of classifiers, which a language model does not use.
    """
    if dropout is None:
        return {}
    names = _dropouts(spec).keys()
    if not names and dropout:
        raise ModelError(f"train.dropout: {dropout:g} has no effect: the configuration of {spec.path!r} has no dropout")
    return dict.fromkeys(names, dropout)


def _dropouts(spec: ModelSpec) -> dict[str, float]:
    """The probabilities of dropout in the model's configuration, by the names of its family."""
    return {
        name: value
        for name, value in load_config(spec).to_dict().items()
        if "drop" in name and "layerdrop" not in name and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _padding_settings(spec: ModelSpec) -> dict[str, None]:
    """Remove a padding token that the embedding has no row for from the configuration, because torch refuses it."""
    config = load_config(spec)
    padding, rows = getattr(config, "pad_token_id", None), vocabulary_size(config)
    outside = isinstance(padding, int) and rows is not None and not 0 <= padding < rows
    return {"pad_token_id": None} if outside else {}


def has_dropout(spec: ModelSpec, dropout: float | None) -> bool:
    """Whether the model has dropout in training, see :func:`load_model`."""
    if dropout is not None:
        return dropout > 0
    of_classifiers = ("classif", "summary")
    return any(value for name, value in _dropouts(spec).items() if not name.startswith(of_classifiers))


def empty_model(
    spec: ModelSpec, dtype: torch.dtype = torch.float32, dropout: float | None = None, device: str = "meta"
) -> Any:
    """The base model without weights, frozen. Converts nothing.

    Args:
        spec: The model.
        dtype: Dtype of its weights.
        dropout: As in :func:`load_model`.
        device: The meta device suffices to count parameters; another one is for a mode of fake tensors.

    Raises:
        ModelError: transformers refuses to make it, for example with a kind of attention that the model does not have.
    """
    import transformers

    auto_class = getattr(transformers, architecture(spec).auto_class)
    config = load_config(spec)
    for name, value in (_dropout_settings(spec, dropout) | _padding_settings(spec)).items():
        setattr(config, name, value)
    try:
        with torch.device(device):
            model = auto_class.from_config(
                config, attn_implementation=spec.attention, dtype=dtype, trust_remote_code=spec.trust_remote_code
            )
    except RuntimeError:
        raise  # of code that a model brings, which computes while the model is made, and so needs its weights
    except Exception as error:  # of many kinds, by the setting of the configuration that is wrong
        raise _unusable(spec, error) from error
    _keep_in_fp32(model, dtype)
    if (storage := _storage(spec)) is not None:
        quantize(model, storage)
    elif (kind := packed_by_another_library(config)) is not None:
        say_stored_in(model, kind, trains_through(config.quantization_config))
    use_lean_modules(model)
    call_projections(model)
    return model.requires_grad_(False).eval()


def _keep_in_fp32(model: Any, dtype: torch.dtype) -> None:
    """Give an empty model the weights in fp32 that transformers keeps so when it loads a model in half precision."""
    if not (plan := model._get_dtype_plan(dtype)):
        return
    kept = re.compile("|".join(pattern.replace("*", ".*") for pattern in plan))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if kept.search(name) and tensor.is_floating_point():
            tensor.data = tensor.data.float()


def load_config(spec: ModelSpec) -> Any:
    """The base model's configuration. Converts nothing.

    Raises:
        ModelError: It cannot be read.
    """
    from transformers import AutoConfig

    if spec.path == EMBEDDED and not embedded_folder().is_dir():
        return copy.deepcopy(_config_before_conversion(embedded_package()))
    try:
        return AutoConfig.from_pretrained(
            model_source(spec), revision=spec.pinned_revision, trust_remote_code=spec.trust_remote_code
        )
    except ModelError:
        raise
    except Exception as error:  # of many kinds, and those of code that the model brings
        raise ModelError(f"model.path: {spec.path!r} has no usable configuration: {in_words(error, spec)}") from error


@functools.cache
def _config_before_conversion(package: Path) -> Any:
    """The embedded model's configuration in its GGUF file, which takes seconds to parse."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(package, gguf_file=EMBEDDED_GGUF)


def load_generation_config(spec: ModelSpec) -> Any:
    """The base model's ``generation_config.json``; None if there is none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(model_source(spec), revision=spec.pinned_revision)
    except OSError:
        return None


def architecture(spec: ModelSpec) -> Architecture:
    """The kind of the base model: a decoder, or an encoder with a decoder.

    Raises:
        ModelError: The configuration cannot be read, or lacks a setting.
    """
    try:
        return architecture_of(load_config(spec))
    except ArchitectureError as error:
        raise ModelError(f"model.path: {spec.path!r}: {error}") from error


def embedded_model() -> Path:
    """Folder of the embedded model, converted from GGUF to safetensors (fp32) once for each user.

    The conversion takes some ten seconds, in a temporary folder that is renamed at the end. If two processes convert at
    the same time, both get the folder of the first one that ends.
    """
    target = embedded_folder()
    if target.is_dir():
        return target
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = embedded_package()
    noise = io.StringIO()  # progress bars that would break the caller's display; errors are exceptions
    with (
        contextlib.suppress(FileExistsError),  # another process was quicker and has made the same folder
        new_folder(target) as unfinished,
        contextlib.redirect_stdout(noise),
        contextlib.redirect_stderr(noise),
        _read_once(),
    ):
        AutoTokenizer.from_pretrained(package, gguf_file=EMBEDDED_GGUF).save_pretrained(unfinished)
        model = AutoModelForCausalLM.from_pretrained(package, gguf_file=EMBEDDED_GGUF, dtype=torch.float32)
        # The weights are dequantised, but transformers refuses to save while the model says it is quantised.
        del model.config.quantization_config
        model.hf_quantizer = None
        model.save_pretrained(unfinished)
    return target


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """Let transformers parse a GGUF file once: it does so for the tokenizer, the configuration and the weights.

    The names of tensors, too, it would look up in a new table for each module. Both take longer than the weights do.
    """
    import gguf

    originals = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in originals.items():
        setattr(gguf, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(gguf, name, function)
