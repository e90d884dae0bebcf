"""Exports a trained adapter as a folder for other libraries. Logits are compared before the folder gets its name.

An adapter that was trained in bf16 is exported with its fp32 masters, and compared in fp32.
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
from bench.models.peft_folder import PEFT_TENSORS_FILE, QUANTIZATION_FILE
from bench.quantized.linear import dequantize
from bench.store.files import new_folder


def export_to_peft(folder: Path, destination: Path, model_path: str | None = None) -> float:
    """Write ``destination`` so that ``peft.PeftModel.from_pretrained(base_model, destination)`` gives the same logits.

    Args:
        folder: The folder of an adapter, see :func:`bench.models.adapter.read_card`.
        destination: A folder that does not exist.
        model_path: Path of the base model, if it is not where it was in training.

    Returns:
        Largest difference of logits on the probe, as a fraction of the largest logit.

    ``quantization_config.json`` has the settings that load a quantised base model, as arguments of
    ``BitsAndBytesConfig`` of transformers.

    Raises:
        AdapterError: There is no adapter, the destination exists, or peft computes another function.
        MethodError: peft has no such method, or not with these settings.
    """

    def write(restored: Restored, partial: Path) -> Callable[[], Any]:
        from peft import PeftModel

        adapter = restored.method.to_peft(restored.model)
        _write_peft(partial, adapter, restored)

        def load() -> Any:
            plain = restored.fresh_base()
            if adapter.config.get("use_dora"):  # peft reads the weight for its lengths, and cannot unpack ours
                dequantize(plain)
            return PeftModel.from_pretrained(plain, str(partial))

        return load

    return exported(folder, destination, model_path, "peft", write)


def exported(
    folder: Path,
    destination: Path,
    model_path: str | None,
    reader: str,
    write: Callable[[Restored, Path], Callable[[], Any]],
) -> float:
    """Write a folder, load it, and compare it with the adapted model.

    Args:
        folder: The folder of an adapter.
        destination: A folder that does not exist. It gets its name only after the comparison.
        model_path: Path of the base model, if it is not where it was in training.
        reader: The library that loads the folder, for messages.
        write: Takes the adapted model, which is not used afterwards, and the folder. Returns a function that loads it.

    Returns:
        Largest difference of logits, as a fraction of the largest.

    Raises:
        AdapterError: There is no adapter, the destination exists, or the loaded model computes another function.
    """
    if destination.exists():
        raise AdapterError(f"{destination} is there already; choose another folder with --into, or remove it")
    restored = restore(folder, torch.device("cpu"), model_path, exact=True)
    probe = LogitProbe(restored)
    with new_folder(destination) as partial:
        load = write(restored, partial)
        difference = probe.difference(load().to("cpu").eval())
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
    if (quantization := base.quantization_config(restored.base, restored.card.precision)) is not None:
        quantization.to_json_file(folder / QUANTIZATION_FILE)


def export_merged(folder: Path, destination: Path, model_path: str | None = None) -> float:
    """Write ``destination`` so that ``from_pretrained(destination)`` of transformers gives the adapted model, in fp32.

    Tokenizer and generation settings are those of the base model.

    Args:
        folder: The folder of an adapter.
        destination: A folder that does not exist.
        model_path: Path of the base model, if it is not where it was in training.

    Returns:
        Largest difference of logits on the probe, as a fraction of the largest logit.

    Raises:
        AdapterError: There is no adapter, the destination exists, or the loaded model computes another function.
        MethodError: A plain model has no place for the trained tensors.
    """

    def write(restored: Restored, partial: Path) -> Callable[[], Any]:
        from bench.models.merged_folder import write_merged

        write_merged(partial, restored)
        written = {"path": str(partial), "revision": None, "commit": None, "checkpoint_quantization": None}
        spec = restored.base.not_quantized.model_copy(update=written)
        return lambda: base.load_model(spec, torch.float32)

    return exported(folder, destination, model_path, "transformers", write)
