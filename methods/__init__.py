"""The fine-tuning methods, one file each. This table imports nothing, so that listing names costs nothing."""

METHODS: dict[str, str] = {
    "none": "methods.none:NoTuning",
    "full": "methods.full:FullFineTuning",
    "prompt_tuning": "methods.prompt_tuning:PromptTuning",
    "prefix_tuning": "methods.prefix_tuning:PrefixTuning",
    "lora": "methods.lora:LoRA",
}
