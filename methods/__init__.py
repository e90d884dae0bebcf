"""The fine-tuning methods, one file each. This table imports nothing, so that listing names costs nothing."""

METHODS: dict[str, str] = {
    "none": "methods.none:NoTuning",
    "full": "methods.full:FullFineTuning",
    "prompt_tuning": "methods.prompt_tuning:PromptTuning",
    "prefix_tuning": "methods.prefix_tuning:PrefixTuning",
    "lora": "methods.lora:LoRA",
    "adapters": "methods.adapters:Adapters",
    "ia3": "methods.ia3:IA3",
    "bitfit": "methods.bitfit:BitFit",
    "layer_norm": "methods.layer_norm:LayerNormTuning",
    "top_layers": "methods.top_layers:TopLayers",
    "llama_adapter": "methods.llama_adapter:LlamaAdapter",
    "mam": "methods.mam:MixAndMatchAdapters",
    "hf_peft": "methods.hf_peft:HfPeft",
}
