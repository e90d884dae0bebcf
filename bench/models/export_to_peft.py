"""Exports a trained adapter as a folder for other libraries. Logits are compared before the folder gets its name.

What was trained in bf16 is exported as its fp32 masters, and compared in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.method import PeftAdapter
from bench.models import base
from bench.models.adapter import Restored, restore
from bench.models.adapter_files import AdapterError
from bench.models.architecture import EncoderDecoder
from bench.models.logit_probe import TOLERANCE, LogitProbe
from bench.models.peft_folder import PEFT_TENSORS_FILE
from bench.store.files import new_folder

# Beside an adapter of peft: how the base model is loaded, which peft's own configuration has no place for.
QUANTIZATION_FILE = "quantization_config.json"


def export_to_peft(folder: Path, destination: Path, model_path: str | None = None) -> float:
    """Write ``destination`` so that ``peft.PeftModel.from_pretrained(base_model, destination)`` gives the same logits.

    Args:
        folder: An adapter's, see :func:`bench.models.adapter.read_card`.
        destination: A folder that is not there yet.
        model_path: Of the base model, if it lies elsewhere than where it was trained.

    Returns:
        Largest difference of logits on the probe, as a fraction of the largest logit.

    Of a quantised base model, ``quantization_config.json`` says how it is to be loaded: what is in it is for
    ``BitsAndBytesConfig`` of transformers.

    Raises:
        AdapterError: There is no adapter, the destination is there, or peft computes something else.
        MethodError: peft has no such method, or not with these settings.
    """

    def write(restored: Restored, partial: Path) -> Callable[[], Any]:
        from peft import PeftModel

        _write_peft(partial, restored.method.to_peft(restored.model), restored)
        return lambda: PeftModel.from_pretrained(restored.fresh_base(), str(partial))

    return exported(folder, destination, model_path, "peft", write)


def exported(
    folder: Path,
    destination: Path,
    model_path: str | None,
    reader: str,
    write: Callable[[Restored, Path], Callable[[], Any]],
) -> float:
    """Have a folder written, load what was written, and hold it against the adapted model.

    Args:
        folder: An adapter's.
        destination: A folder that is not there yet; a wrong one never exists.
        model_path: Of the base model, if it lies elsewhere than where it was trained.
        reader: Who loads the folder, for messages.
        write: Is given the adapted model, which it may use up, and the folder; returns what loads the folder.

    Returns:
        Largest difference of logits, as a fraction of the largest.

    Raises:
        AdapterError: There is no adapter, the destination is there, or something else comes back.
    """
    if destination.exists():
        raise AdapterError(f"{destination} is there already; choose another folder with --into, or remove it")
    restored = restore(folder, torch.device("cpu"), model_path, exact=True)
    probe = LogitProbe(restored)
    with new_folder(destination) as partial:
        load = write(restored, partial)
        difference = probe.difference(load().eval())
        if not difference <= TOLERANCE:
            raise AdapterError(
                f"{reader} computes other logits from this export: they differ by {difference:.2g} of the largest, "
                f"allowed are {TOLERANCE:g}; nothing was written"
            )
        partial.chmod(0o755)
    return difference


def _write_peft(folder: Path, adapter: PeftAdapter, restored: Restored) -> None:
    from peft import PeftConfig
    from safetensors.torch import save_file

    encoder_decoder = isinstance(restored.architecture, EncoderDecoder)
    config = PeftConfig.from_peft_type(  # type: ignore[no-untyped-call]
        **adapter.config,
        task_type="SEQ_2_SEQ_LM" if encoder_decoder else "CAUSAL_LM",
        base_model_name_or_path=restored.card.model.path,
        revision=restored.card.model.pinned_revision,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.state.items()}
    save_file(state, folder / PEFT_TENSORS_FILE)
    if (told := base.quantization_config(restored.base)) is not None:
        told.to_json_file(folder / QUANTIZATION_FILE)


def export_merged(folder: Path, destination: Path, model_path: str | None = None) -> float:
    """Write ``destination`` so that ``from_pretrained(destination)`` of transformers gives the adapted model, in fp32.

    Tokenizer and generation settings are those of the base model.

    Args:
        folder: An adapter's.
        destination: A folder that is not there yet.
        model_path: Of the base model, if it lies elsewhere than where it was trained.

    Returns:
        Largest difference of logits on the probe, as a fraction of the largest logit.

    Raises:
        AdapterError: There is no adapter, the destination is there, or the folder computes something else.
        MethodError: What the method trains has no place in a plain model.
    """

    def write(restored: Restored, partial: Path) -> Callable[[], Any]:
        from bench.models.merged_folder import write_merged

        write_merged(partial, restored)
        written = {"path": str(partial), "revision": None, "commit": None, "checkpoint_quantization": None}
        spec = restored.base.not_quantized.model_copy(update=written)
        return lambda: base.load_model(spec, torch.float32)

    return exported(folder, destination, model_path, "transformers", write)
