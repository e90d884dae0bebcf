"""Small randomly initialised models of more families than the contract is checked on."""

from __future__ import annotations

from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 40,
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


def small_model(name: str) -> Any:
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    return model_class(model_class.config_class(**{**SIZES, **MODELS[name]})).requires_grad_(False).eval()


def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[5, 9, 3, 7, 2, 8]])
    decoder = {"decoder_input_ids": torch.tensor([[4, 6, 1]])} if model.config.is_encoder_decoder else {}
    found: torch.Tensor = model(input_ids=ids, **decoder).logits
    return found
