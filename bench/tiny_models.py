"""Tiny models with random weights, one of each family: what the contract is checked on. No weights are downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

VOCABULARY = 96
EOS = 1


class WordTokenizer:
    """A tokenizer of the tiny models: words become ids by their length and first letter."""

    eos_token_id = EOS
    pad_token_id = 0

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": [2 + (7 * ord(word[0]) + len(word)) % (VOCABULARY - 2) for word in text.split()]}


def tiny_gpt2(vocabulary: int = VOCABULARY) -> Any:
    """Two layers, fused projections, learned absolute positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=128,
        n_embd=24,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    return GPT2LMHeadModel(config)


def tiny_llama(vocabulary: int = VOCABULARY) -> Any:
    """Two layers, rotary positions, four heads that share two key/value heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config)


def tiny_t5(vocabulary: int = VOCABULARY) -> Any:
    """Encoder and decoder of two layers each, relative position bias shared by the layers of each."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=vocabulary,
        d_model=24,
        d_kv=6,
        d_ff=32,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=EOS,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config)


def tiny_bart(vocabulary: int = VOCABULARY) -> Any:
    """Encoder and decoder of two layers each, learned absolute positions, norms after the blocks."""
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=vocabulary,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=128,
        dropout=0.0,
        scale_embedding=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        forced_eos_token_id=None,
    )
    return BartForConditionalGeneration(config)


FAMILIES: dict[str, Callable[..., Any]] = {
    "gpt2": tiny_gpt2,
    "llama": tiny_llama,
    "t5": tiny_t5,
    "bart": tiny_bart,
}

CORE_FAMILIES = ("gpt2", "llama", "t5")
"""Unlike enough that a method which serves these serves most: what is checked where checking all takes too long."""


def tiny_model(family: str, seed: int = 0) -> Any:
    """A frozen tiny model with random weights, in float64 and evaluation mode.

    Weights are larger than an untrained model's, so that attention and norms matter.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FAMILIES[family]().double()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.generation_config.pad_token_id = 0
    return model.requires_grad_(False).eval()
