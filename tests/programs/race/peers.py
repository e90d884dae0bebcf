"""The peers: peft under transformers' Trainer, and in a bare loop of accelerate. No code of ours runs here."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

# What helps on a CPU and changes no number: no search for non-finite losses (it reads the loss at every step), no
# pinned memory. Grouping by length is in the order of the batches. Liger needs a GPU; neither side compiles.
BEST_FLAGS: dict[str, Any] = {"logging_nan_inf_filter": False, "dataloader_pin_memory": False, "disable_tqdm": True}


def load(model: str, adapter: Path | None, precision: str = "fp32") -> Any:
    """A base model, with the adapter in ``adapter`` to go on training; all weights trained without one.

    In bf16 the base model's weights are in bf16, and peft keeps those of the adapter in fp32.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    if adapter is None:
        return base
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    settings = json.loads((adapter / "config.json").read_text())
    wrapped = get_peft_model(base, PeftConfig.from_peft_type(**settings, task_type="CAUSAL_LM"))
    set_peft_model_state_dict(wrapped, load_file(adapter / "peft.safetensors"))
    return wrapped


def rows(pairs: Sequence[Sequence[Sequence[int]]], order: Sequence[Sequence[int]]) -> list[dict[str, list[int]]]:
    """The data set in the order of the batches, as peft's examples make it: labels of the source are masked."""
    chosen = [pairs[index] for batch in order for index in batch]
    return [
        {
            "input_ids": [*source, *target],
            "attention_mask": [1] * (len(source) + len(target)),
            "labels": [-100] * len(source) + list(target),
        }
        for source, target in chosen
    ]


class _Tick(TrainerCallback):
    def __init__(self, pacer: Any) -> None:
        self.pacer = pacer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.pacer.tick()


class RecordingTrainer(Trainer):
    """Keeps the losses of all steps, which the defaults log every 500 steps."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.losses: list[torch.Tensor] = []

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*arguments, **named)
        self.losses.append(loss)
        return loss


def train_with_trainer(
    model: Any, tokenizer: Any, data: list[dict[str, list[int]]], job: Any, pacer: Any, flags: dict[str, Any]
) -> list[float]:
    """``Trainer.train``; the sampler takes the rows as they come, so that all contenders see the same batches."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=pacer.steps,
            per_device_train_batch_size=job.batch_size,
            learning_rate=job.learning_rate,
            train_sampling_strategy="sequential",
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            seed=0,
            **flags,
        )
        trainer = RecordingTrainer(
            model=model,
            args=arguments,
            train_dataset=data,
            data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
            callbacks=[_Tick(pacer)],
        )
        trainer.train()
    return [float(loss) for loss in trainer.losses]


def train_with_accelerate(
    model: Any, tokenizer: Any, data: list[dict[str, list[int]]], job: Any, pacer: Any
) -> list[float]:
    """The loop of peft's examples, with the clipping that the other contenders have."""
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    from transformers import get_linear_schedule_with_warmup

    accelerator = Accelerator(cpu=True)
    collate = DataCollatorForSeq2Seq(tokenizer, padding=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job.learning_rate, weight_decay=0.0)
    scheduler = get_linear_schedule_with_warmup(optimizer, 0, pacer.steps)
    model, optimizer, loader, scheduler = accelerator.prepare(
        model, optimizer, DataLoader(data, batch_size=job.batch_size, collate_fn=collate), scheduler
    )
    model.train()
    losses = []
    for batch in loader:
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        pacer.tick()
    return [float(loss) for loss in losses]
