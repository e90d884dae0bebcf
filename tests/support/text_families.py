"""A tiny random model of every text family that transformers knows as a causal language model.

Nothing but sizes differs from a family's defaults, and the kinds of its layers where two layers would else be of one
kind. ``LEFT_OUT`` says why the remaining names of the mapping have no model here.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 96
EOS = 1

# What configurations call their sizes; each takes those that it knows.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": EOS,
    "eos_token_id": EOS,
    "is_decoder": True,
    "add_cross_attention": False,
    "layerdrop": 0.0,
    "sliding_window": 4,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "rotary_dim", "time_step_rank"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 128),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "type_vocab_size", "linear_num_key_heads"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "linear_num_value_heads"), 4),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("head_dim", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    "q_lora_rank": 12,
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_d_conv"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("mamba_d_state", "mamba_chunk_size", "ssm_state_size", "state_size", "chunk_size"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    "mamba_d_ssm": 64,
    "mamba_expand": 2,
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "attention_dropout", "hidden_dropout"), 0.0),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout"), 0.0),
}
HALF_LINEAR: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"]}
HALF_CONVOLUTION: dict[str, Any] = {"layer_types": ["conv", "full_attention"]}
LATENT: dict[str, Any] = {"num_key_value_heads": 4}
HALF_LINEAR_LATENT: dict[str, Any] = {**HALF_LINEAR, **LATENT}
HYBRID_BLOCKS: dict[str, Any] = {
    "num_hidden_layers": 5,
    "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid", "linear_attention"],
}
SHARED_KEYS: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
}
LATENT_FAMILIES = (
    "axk1",
    "axk2",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "dots3_note_text",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "longcat_flash",
    "minicpm3",
    "youtu",
)
HALF_LINEAR_FAMILIES = (
    "granitemoehybrid",
    "minimax",
    "olmo_hybrid",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
)
SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(LATENT_FAMILIES, LATENT),
    **dict.fromkeys(HALF_LINEAR_FAMILIES, HALF_LINEAR),
    **dict.fromkeys(("zamba", "zamba2"), HYBRID_BLOCKS),
    **dict.fromkeys(("lfm2", "lfm2_moe"), HALF_CONVOLUTION),
    **dict.fromkeys(("bailing_hybrid", "kimi_linear"), HALF_LINEAR_LATENT),
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2_lite": {**LATENT, "q_lora_rank": None},
    "falcon_alibi": {"alibi": True},
    "falcon_grouped": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "gemma3n_text": {
        **SHARED_KEYS,
        "intermediate_size": [48] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
    },
    "gemma4_text": {**SHARED_KEYS, "global_head_dim": 16},
    "gemma4_unified_text": {"layer_types": ["sliding_attention", "full_attention"], "global_head_dim": 16},
    "granite_3": {
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.125,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_dt_rank": 4,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    **{name: {"no_rope_layer_interval": 2} for name in ("llama4_text", "smollm3")},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "nemotron_h": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
    },
    "olmo3": {"layer_types": ["sliding_attention", "full_attention"]},
    "phi4": {
        "sliding_window": None,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 250_000.0, "partial_rotary_factor": 0.75},
    },
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "block_types": ["recurrent", "recurrent", "attention"],
        "lru_width": 32,
        "attention_window_size": 4,
    },
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 16), "attention_head_size": 8},
    "roc_bert": {"pronunciation_vocab_size": VOCABULARY, "shape_vocab_size": VOCABULARY},
    "zaya": {"num_experts_per_tok": 1},
}
# Settings of a family under a name of their own.
VARIANTS = {
    "falcon_alibi": "falcon",
    "falcon_grouped": "falcon",
    "deepseek_v2_lite": "deepseek_v2",
    "granite_3": "granite",
    "phi4": "phi3",
}
# Settings with an entry for each layer.
BY_LAYER = ("layer_types", "layers_block_type", "block_types", "intermediate_size", "activation_sparsity_pattern")

# Names of the mapping that have no tiny model here.
TEXT_PART = "reads more than text; its text part has a name of its own or is one of the families here"
LEFT_OUT: dict[str, str] = {
    **dict.fromkeys(
        (
            "blt",
            "dots3_note",
            "emu3",
            "fuyu",
            "gemma3",
            "gemma3n",
            "gemma4",
            "gemma4_assistant",
            "gemma4_unified",
            "gemma4_unified_assistant",
            "git",
            "got_ocr2",
            "llama4",
            "mllama",
            "moss_transcribe_diarize",
            "musicgen",
            "musicgen_melody",
            "phi4_multimodal",
            "qwen3_5",
            "qwen3_5_moe",
            "qwen4_exp",
        ),
        TEXT_PART,
    ),
    **dict.fromkeys(("gpt-sw3", "internlm3", "iquestcoder"), "the class of another family"),
    **dict.fromkeys(
        ("cohere_compass_text", "cpmant", "dbrx", "inkling2_text", "lfm3", "qwen4_exp_text", "xglm", "xlstm"),
        "needs sizes that are not guessed here, or another dtype",
    ),
}


def names() -> list[str]:
    """All families with a tiny model, variants among them."""
    known = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in LEFT_OUT]
    return sorted([*known, *VARIANTS])


def untrained_family(name: str, vocabulary: int = VOCABULARY, layers: int | None = None, float64: bool = False) -> Any:
    """A tiny model as transformers initialises it, on the default device.

    Args:
        name: One of :func:`names`.
        vocabulary: The number of tokens.
        layers: The number of layers; None: as many as it takes to have one of each kind.
        float64: Whether the model will be made float64, which grouped matrix products do not know.
    """
    config_class, model_class = _classes(name)
    known = {
        *config_class().to_dict(),
        *inspect.signature(config_class.__init__).parameters,
        *getattr(config_class, "attribute_map", {}),
    }
    settings = {key: value for key, value in SIZES.items() if key in known} | SPECIAL.get(name, {})
    settings |= {key: vocabulary for key, value in settings.items() if key.startswith("vocab_size")}
    if layers is not None:
        settings |= {key: layers for key in ("num_hidden_layers", "n_layer") if key in settings}
        for key in BY_LAYER:
            if isinstance(settings.get(key), list):
                settings[key] = list(itertools.islice(itertools.cycle(settings[key]), layers))
    config = config_class(**settings)
    if float64:
        config._experts_implementation = "eager"
    return model_class(config)


def _classes(name: str) -> tuple[Any, Callable[[Any], Any]]:
    model_type = VARIANTS.get(name, name)
    model_class: Callable[[Any], Any] = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
    return transformers.CONFIG_MAPPING[model_type], model_class


def tiny_family(name: str, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Any:
    """A frozen tiny model in evaluation mode; its weights are larger than at a start, so that all parts matter."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = untrained_family(name, float64=device != "meta").to(dtype)
        if device != "meta":
            for parameter in model.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
    if name == "xmod":
        model.set_default_language("en_XX")
    model.generation_config.pad_token_id = 0
    return model.requires_grad_(False).eval()
