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


def tiny_gpt2() -> Any:
    """Two layers, fused projections, learned absolute positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=96,
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


def tiny_llama() -> Any:
    """Two layers, rotary positions, four heads that share two key/value heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        pad_token_id=0,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config)


FAMILIES: dict[str, Callable[[], Any]] = {"gpt2": tiny_gpt2, "llama": tiny_llama}


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
