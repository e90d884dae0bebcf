"""What ``tuneoff plan`` says of models of 8, 32 and 70 billion parameters on eight GPUs of 80 GB.

``PYTHONPATH=.:tests:tests/support OMP_NUM_THREADS=1 python tests/programs/large_plans.py`` writes
``results/exhibits/large_plans/large_plans.md``. It takes some minutes of one core and no weights: shapes are those of
Llama 3.1 and Qwen3.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from table_page import table_page

OUT = Path(__file__).resolve().parents[2] / "results" / "exhibits" / "large_plans" / "large_plans.md"
MODELS: dict[str, dict[str, Any]] = {
    "8B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "32B": {
        "model_type": "qwen3",
        "hidden_size": 5120,
        "num_hidden_layers": 64,
        "intermediate_size": 25600,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    },
    "70B": {
        "model_type": "llama",
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
# Method, quantisation and ZeRO stage. A quantised model is whole on every rank: stage 3 would share nothing of it.
WAYS = {"full": ("full", None, 3), "LoRA": ("lora", None, 3), "QLoRA (nf4)": ("lora", "nf4", 2)}
SOURCE_TOKENS, TARGET_TOKENS = 512, 128
GIB = 2**30


def main() -> None:
    """Entry of the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make_task(Path(folder))
        for name in arguments.models:
            for row in rows_of(name, Path(folder)):
                sys.stdout.write(row + "\n")
                sys.stdout.flush()
                rows.append(row)
    arguments.out.write_text(page(rows))


def make_task(folder: Path) -> None:
    """Long texts of one length."""
    (folder / "task").mkdir()
    source, target = (" ".join(["word"] * tokens) for tokens in (SOURCE_TOKENS, TARGET_TOKENS))
    for split in ("train", "dev", "test"):
        rows = [{"source": f"{number} {source}", "references": [target]} for number in range(64)]
        (folder / "task" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def rows_of(name: str, folder: Path) -> Iterator[str]:
    """Lines of the table of one model."""
    import torch
    from conftest import save_tokenizer
    from safetensors.torch import save_file
    from transformers import AutoConfig

    from bench.config.resolver import RegistryResolver
    from bench.plan.devices import DEVICES
    from bench.plan.plan import plan
    from bench.schema.trial import DecodeSpec, ModelSpec, ResourceSpec, TrainSpec, TrialSpec

    model = folder / name
    tokenizer = save_tokenizer(model, ends_texts=False)
    settings = dict(MODELS[name])
    kind = settings.pop("model_type")
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    AutoConfig.for_model(kind, tie_word_embeddings=False, **settings, **ids).save_pretrained(model)
    save_file({"nothing": torch.zeros(1)}, model / "model.safetensors")  # a model folder has weights; plans read none
    resolver = RegistryResolver()
    task = {"path": str(folder / "task"), "max_source_tokens": SOURCE_TOKENS, "max_target_tokens": TARGET_TOKENS}
    for way, (method, quantization, stage) in WAYS.items():
        config = {"target_modules": "all_linear"} if method == "lora" else {}
        spec = TrialSpec(
            method=resolver.method(method, config),
            model=ModelSpec(path=str(model), quantization=quantization, double_quantization=quantization is not None),
            task=resolver.task("jsonl", task),
            train=TrainSpec(steps=100, batch_size=32, micro_batch_size=2, gradient_checkpointing=True),
            decode=DecodeSpec(max_new_tokens=TARGET_TOKENS, batch_size=16),
            resources=ResourceSpec(ranks=8, zero_stage=stage, precision="bf16"),
            seed=0,
        )
        device = DEVICES["h100"]
        (planned,) = plan([spec], device)
        yield line(name, way, stage, planned, device)


def line(name: str, method: str, stage: int, found: Any, device: Any) -> str:
    """A line of the table, whose last cell says why."""
    parts = found.forecast.memory_bytes
    largest = max(found.phases, key=lambda phase: found.phases[phase])
    why = f"most in {largest}"
    if largest == "train":
        most = sorted(parts, key=lambda part: -parts[part])[:2]
        why += ": " + ", ".join(f"{part} {parts[part] / GIB:.1f}" for part in most)
    if not found.fits:
        why += "; " + (f"would fit with {found.remedies[-1]}" if found.remedies else "nothing tried fits")
    cells = [f"{size / GIB:.1f}" for size in found.phases.values()]
    taken = f"{found.taken_bytes / GIB:.1f}"
    step = f"{found.forecast.step_seconds:.2f}"
    fits = "yes" if found.fits else "no"
    return "| " + " | ".join([name, method, str(stage), *cells, taken, step, fits, why]) + " |"


PHASES = ("load", "initialise", "train", "validate", "gather", "decode", "score")


def page(rows: list[str]) -> str:
    """The page."""
    head = ["model", "method", "ZeRO", *PHASES, "context, NCCL", "s a step", "fits", "why"]
    note = (
        f"bf16, gradient checkpointing, {SOURCE_TOKENS} + {TARGET_TOKENS} tokens, batches of 32 in micro-batches "
        "of 2 a rank, 16 sources decoded at once, H100. LoRA trains all linear layers. GiB on one rank at the peak "
        "of each phase; what fits is at most 90 % of 80 GiB. These are forecasts: no GPU was at hand."
    )
    return table_page("Plans of large models on 8 x 80 GB", __doc__, head, rows, note)


if __name__ == "__main__":
    main()
