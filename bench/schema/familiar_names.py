"""Names that Hugging Face's trainers, peft and scripts have for our settings, for people who know those."""

from __future__ import annotations

# Their name -> our key.
FAMILIAR: dict[str, str] = {
    "adam_epsilon": "train.adam_epsilon",
    "base_model": "model",
    "base_model_name_or_path": "model",
    "bf16": "resources.precision: bf16",
    "data_seed": "task.subset_seed (which examples) and seeds (their order)",
    "dataset": "task",
    "dataset_name": "task: {name: hub, path: ...}",
    "deepspeed": "resources.zero_stage",
    "do_sample": "decode.temperature (0 decodes greedily or by decode.beams)",
    "eval_steps": "train.evaluate_every_steps",
    "evaluation_strategy": "train.evaluate_every_steps",
    "eval_strategy": "train.evaluate_every_steps",
    "fp16": "resources.precision: fp16",
    "generation_max_length": "decode.max_new_tokens",
    "generation_num_beams": "decode.beams",
    "gradient_accumulation_steps": "train.micro_batch_size (accumulates batch_size / (ranks x micro_batch_size))",
    "label_smoothing_factor": "train.label_smoothing",
    "lora_alpha": "config.alpha of the method lora",
    "lora_dropout": "config.dropout of the method lora",
    "lr": "train.learning_rate",
    "lr_scheduler_type": "train.schedule",
    "max_length": "decode.max_new_tokens, task.max_source_tokens and task.max_target_tokens",
    "max_seq_length": "task.max_source_tokens and task.max_target_tokens",
    "max_source_length": "task.max_source_tokens",
    "max_steps": "train.steps",
    "max_target_length": "task.max_target_tokens",
    "min_length": "decode.min_new_tokens",
    "model_name_or_path": "model",
    "num_beams": "decode.beams",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "num_virtual_tokens": "config.num_prompt_tokens of the methods prefix_tuning and prompt_tuning",
    "optim": "train.optimizer",
    "optim_args": "train.optimizer_options",
    "output_dir": "name, and --results of the command",
    "peft_type": "the name of a method, or config.peft_type of the method hf_peft",
    "per_device_eval_batch_size": "decode.batch_size",
    "per_device_train_batch_size": "train.batch_size (over all ranks) and train.micro_batch_size (of one)",
    "r": "config.rank of the method lora",
    "report_to": "trackers, or --tracker of the command",
    "save_steps": "resources.checkpoint_every_steps",
    "seed": "seeds, a list",
    "target_modules": "config.target_modules of the method lora",
    "task_type": "nothing: the model says what it is",
    "torch_dtype": "resources.precision",
    "train_batch_size": "train.batch_size",
    "warmup_ratio": "train.warmup_fraction",
}


def meant_here(name: str) -> str | None:
    """Our key for a setting of Hugging Face's programs; None if the name is not known."""
    return FAMILIAR.get(name)
