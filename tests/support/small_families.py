"""Small randomly initialised models of more families than the contract is checked on."""

from __future__ import annotations

from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
# Class of the model to what its configuration calls sizes that have other names elsewhere.
MODELS: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {},
    "LlamaForCausalLM": {},
    "GPTNeoXForCausalLM": {},
    "BloomForCausalLM": {},
    "Phi3ForCausalLM": {},
    "OPTForCausalLM": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "GPTJForCausalLM": {"rotary_dim": 4},
    "Qwen3ForCausalLM": {"head_dim": 16},
    "Gemma3ForCausalLM": {"head_dim": 16},
    "T5ForConditionalGeneration": {
        "d_kv": 16,
        "d_ff": 48,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "decoder_start_token_id": 0,
    },
    "BartForConditionalGeneration": {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_layers": 2},
}

EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
DEEPSEEK = {
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
OLD_NAMES = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_inner": 48}
SEQUENCE_TO_SEQUENCE = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
# Families that make queries, keys and values in ways of their own. What follows a space names a variant of a class.
UNUSUAL_ATTENTION: dict[str, dict[str, Any]] = {
    "Phi3ForCausalLM wide heads": {"head_dim": 16},
    "FalconForCausalLM groups": {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 48},
    "FalconForCausalLM multi-query": {"new_decoder_architecture": False, "multi_query": True, "alibi": False},
    "FalconForCausalLM multi-head": {"new_decoder_architecture": False, "multi_query": False, "alibi": True},
    "MptForCausalLM": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "CodeGenForCausalLM": {**OLD_NAMES, "rotary_dim": 4, "n_ctx": 64},
    "GPTBigCodeForCausalLM multi-query": {**OLD_NAMES, "multi_query": True},
    "GPTBigCodeForCausalLM multi-head": {**OLD_NAMES, "multi_query": False},
    "PersimmonForCausalLM": {},
    "DbrxForCausalLM": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "DeepseekV2ForCausalLM": {**DEEPSEEK, "q_lora_rank": None, "head_dim": 4},
    "DeepseekV3ForCausalLM": {**DEEPSEEK, "q_lora_rank": 16},
    "Qwen3NextForCausalLM": {
        **EXPERTS,
        "shared_expert_intermediate_size": 24,
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
}
# Families in whose blocks there is more than attention and one feed-forward part.
UNUSUAL_BLOCKS: dict[str, dict[str, Any]] = {
    "Qwen2MoeForCausalLM": {**EXPERTS, "shared_expert_intermediate_size": 40},
    "Qwen3MoeForCausalLM": {**EXPERTS, "head_dim": 16},
    "MixtralForCausalLM": EXPERTS,
    "Glm4MoeForCausalLM": {
        "head_dim": 8,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "Llama4ForCausalLM": {
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 48,
        "head_dim": 8,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 64,
    },
    "GptOssForCausalLM": {
        **EXPERTS,
        "head_dim": 8,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "GraniteMoeForCausalLM": EXPERTS,
    "GraniteMoeSharedForCausalLM": {**EXPERTS, "shared_intermediate_size": 24},
    "Gemma3nForCausalLM": {
        "head_dim": 8,
        "vocab_size_per_layer_input": 96,
        "hidden_size_per_layer_input": 8,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "laurel_rank": 4,
        "intermediate_size": [48] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
        "sliding_window": 4,
    },
    "Gemma4ForCausalLM": {
        "head_dim": 8,
        "global_head_dim": 16,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 96,
        "sliding_window": 4,
    },
    "FalconH1ForCausalLM": {**MAMBA, "mamba_d_ssm": 64, "head_dim": 8},
    "JambaForCausalLM": {
        **EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "GraniteMoeHybridForCausalLM": {
        **EXPERTS,
        **MAMBA,
        "mamba_expand": 2,
        "shared_intermediate_size": 24,
        "layer_types": ["mamba", "attention"],
    },
    "BambaForCausalLM": {**MAMBA, "attn_layer_indices": [1]},
    "Zamba2ForCausalLM": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "mamba_d_state": 8,
        "mamba_headdim": 16,
        "mamba_ngroups": 1,
        "n_mamba_heads": 4,
        "chunk_size": 8,
        "num_mem_blocks": 1,
        "adapter_rank": 4,
        "use_mem_rope": True,
    },
    "MambaForCausalLM": {"state_size": 8, "time_step_rank": 4},
    "Mamba2ForCausalLM": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "Lfm2ForCausalLM": {
        "layer_types": ["conv", "full_attention"],
        "block_auto_adjust_ff_dim": False,
        "conv_L_cache": 3,
    },
    "Lfm2MoeForCausalLM": {
        **EXPERTS,
        "layer_types": ["conv", "full_attention"],
        "conv_L_cache": 3,
        "num_dense_layers": 1,
    },
    "RwkvForCausalLM": {"attention_hidden_size": 32},
    "JetMoeForCausalLM": {**EXPERTS, "kv_channels": 8},
}
# Families without surprises, which have to stay so.
USUAL: dict[str, dict[str, Any]] = {
    "MistralForCausalLM": {"head_dim": 8},
    "Qwen2ForCausalLM": {},
    "GlmForCausalLM": {"head_dim": 8},
    "Glm4ForCausalLM": {"head_dim": 8},
    "Gemma2ForCausalLM": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4},
    "PhiForCausalLM": {},
    "GPTNeoForCausalLM": {
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
    },
    "Olmo2ForCausalLM": {},
    "OlmoeForCausalLM": EXPERTS,
    "GraniteForCausalLM": {},
    "CohereForCausalLM": {},
    "Starcoder2ForCausalLM": {},
    "PegasusForConditionalGeneration": SEQUENCE_TO_SEQUENCE,
    "SwitchTransformersForConditionalGeneration": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
        "num_experts": 4,
        "expert_capacity": 16,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
    },
}
ALL = {**MODELS, **UNUSUAL_ATTENTION, **UNUSUAL_BLOCKS, **USUAL}


def small_model(name: str) -> Any:
    model_class = getattr(transformers, name.partition(" ")[0])
    torch.manual_seed(0)
    return model_class(model_class.config_class(**{**SIZES, **ALL[name]})).requires_grad_(False).eval()


def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[5, 9, 3, 7, 2, 8]])
    decoder = {"decoder_input_ids": torch.tensor([[4, 6, 1]])} if model.config.is_encoder_decoder else {}
    computed_logits: torch.Tensor = model(input_ids=ids, **decoder).logits
    return computed_logits
