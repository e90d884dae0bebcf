"""A trained adapter as a folder that Hugging Face peft loads, proved by comparing logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bench import models
from bench.adapter import AdapterError, Restored, restore
from bench.architecture import EncoderDecoder, Pair, accepted_inputs
from bench.files import new_folder
from bench.method import PeftAdapter

# Of the largest logit; rounding of other but equal sums in fp32, and in bf16.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
PROBE_LENGTHS = (9, 17, 5)


def export_to_peft(folder: Path, destination: Path, model_path: str | None = None) -> float:
    """Write ``destination`` so that ``peft.PeftModel.from_pretrained(base_model, destination)`` gives the same logits.

    The folder is loaded again and compared before it takes its name, so that a wrong one never exists.

    Args:
        folder: An adapter's, see :func:`bench.adapter.read_card`.
        destination: A folder that is not there yet.
        model_path: Of the base model, if it lies elsewhere than where it was trained.

    Returns:
        Largest difference of logits on the probe, as a fraction of the largest logit.

    Raises:
        AdapterError: There is no adapter, the destination is there, or peft computes something else.
        MethodError: peft has no such method, or not with these settings.
    """
    if destination.exists():
        raise AdapterError(f"{destination} is there already; choose another folder with --into, or remove it")
    restored = restore(folder, torch.device("cpu"), model_path)
    adapter = restored.method.to_peft(restored.model)
    with new_folder(destination) as partial:
        _write(partial, adapter, restored)
        difference = _difference(partial, restored, model_path)
        allowed = TOLERANCE[restored.card.precision]
        if not difference <= allowed:
            raise AdapterError(
                f"peft computes other logits from this export: they differ by {difference:.2g} of the largest, allowed "
                f"are {allowed:g}; nothing was written"
            )
        partial.chmod(0o755)
    return difference


def _write(folder: Path, adapter: PeftAdapter, restored: Restored) -> None:
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
    save_file(state, folder / "adapter_model.safetensors")


def _difference(folder: Path, restored: Restored, model_path: str | None) -> float:
    """Largest difference of logits on a few rows of arbitrary tokens, as a fraction of the largest logit."""
    from peft import PeftModel

    spec = restored.card.model if model_path is None else restored.card.model.model_copy(update={"path": model_path})
    base = models.load_model(spec, next(restored.model.parameters()).dtype)
    theirs = PeftModel.from_pretrained(base, str(folder)).eval()
    generator = torch.Generator().manual_seed(0)
    vocabulary = base.get_input_embeddings().weight.shape[0]
    largest, difference = 0.0, 0.0
    for length in PROBE_LENGTHS:
        ids: list[int] = torch.randint(0, vocabulary, (length + 4,), generator=generator).tolist()
        batch = restored.architecture.batch([Pair(ids[:length], ids[length:])], pad_token_id=0)
        inputs: dict[str, Any] = accepted_inputs(theirs, batch.inputs)
        inputs = {name: part for name, part in inputs.items() if name != "position_ids"}
        with torch.no_grad():
            ours = restored.model(**inputs).logits.float()
            found = theirs(**inputs).logits.float()
        if found.shape[1] > ours.shape[1]:  # peft's prompt tuning keeps the positions of the prompt
            found = found[:, found.shape[1] - ours.shape[1] :]
        largest = max(largest, float(ours.abs().max()))
        difference = max(difference, float((ours - found).abs().max()))
    return difference / largest
