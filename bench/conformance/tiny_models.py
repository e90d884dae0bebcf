"""Tiny models with random weights, one of each family, for checks of the contract. No weights are downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

VOCABULARY = 96
EOS = 1

SPECIAL_TOKENS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": EOS, "eos_token_id": EOS}
LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


class WordTokenizer:
    """A tokenizer of the tiny models: words become ids by their length and first letter.

    It has those parts of a real tokenizer that methods use. Its attributes show what a method changes.
    """

    pad_token, eos_token, bos_token = "<pad>", "</s>", "</s>"
    pad_token_id, eos_token_id, bos_token_id = 0, EOS, EOS
    padding_side = truncation_side = "right"
    model_max_length = 128

    def __init__(self) -> None:
        self.all_special_ids = [0, EOS]
        self.added_tokens: list[str] = []

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": [2 + (7 * ord(word[0]) + len(word)) % (VOCABULARY - 2) for word in text.split()]}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return self(text)["input_ids"]

    @property
    def vocab_size(self) -> int:
        return VOCABULARY

    def __len__(self) -> int:
        return VOCABULARY + len(self.added_tokens)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pad_token if token == 0 else self.eos_token if token == EOS else f"w{token}" for token in ids]

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return [
            {self.pad_token: 0, self.eos_token: EOS}[token] if token[0] == "<" else int(token[1:]) for token in tokens
        ]

    def get_vocab(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.convert_ids_to_tokens(list(range(VOCABULARY))))}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return " ".join(self.convert_ids_to_tokens([each for each in ids if not skip_special_tokens or each > EOS]))

    def add_tokens(self, tokens: list[str], special_tokens: bool = False) -> int:
        self.added_tokens += tokens
        return len(tokens)

    def add_special_tokens(self, tokens: dict[str, str]) -> int:
        vars(self).update(tokens)
        return self.add_tokens(list(tokens.values()))


def tiny_gpt2(vocabulary: int = VOCABULARY) -> Any:
    """Two layers, joined projections, learned absolute positions."""
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

    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **LLAMA_LIKE, **SPECIAL_TOKENS))


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


def tiny_gpt_neox(vocabulary: int = VOCABULARY) -> Any:
    """GPT-NeoX, Pythia: joined projections by head, a quarter of each head rotated, attention beside the MLP."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        rotary_pct=0.5,
        max_position_embeddings=128,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        **SPECIAL_TOKENS,
    )
    return GPTNeoXForCausalLM(config)


def tiny_opt(vocabulary: int = VOCABULARY) -> Any:
    """OPT: learned absolute positions, word embeddings narrower than the layers."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=vocabulary,
        hidden_size=24,
        word_embed_proj_dim=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=32,
        max_position_embeddings=128,
        dropout=0.0,
        **SPECIAL_TOKENS,
    )
    return OPTForCausalLM(config)


def tiny_mistral(vocabulary: int = VOCABULARY) -> Any:
    """Mistral: a sliding window of four tokens in every layer."""
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(
        MistralConfig(vocab_size=vocabulary, sliding_window=4, head_dim=8, **LLAMA_LIKE, **SPECIAL_TOKENS)
    )


def tiny_qwen2(vocabulary: int = VOCABULARY) -> Any:
    """Qwen 2: biases on queries, keys and values."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, **LLAMA_LIKE, **SPECIAL_TOKENS))


def tiny_qwen3(vocabulary: int = VOCABULARY) -> Any:
    """Qwen 3: queries and keys are normalised; heads are wider than their share of the hidden size."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocabulary, head_dim=12, **LLAMA_LIKE, **SPECIAL_TOKENS))


def tiny_gemma3(vocabulary: int = VOCABULARY) -> Any:
    """Gemma 3: scaled embeddings; layers with and without a sliding window rotate by different angles."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=vocabulary,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        head_dim=8,
        query_pre_attn_scalar=8,
        **LLAMA_LIKE,
        **SPECIAL_TOKENS,
    )
    return Gemma3ForCausalLM(config)


FAMILIES: dict[str, Callable[..., Any]] = {
    "gpt2": tiny_gpt2,
    "llama": tiny_llama,
    "t5": tiny_t5,
    "bart": tiny_bart,
    "gpt_neox": tiny_gpt_neox,
    "opt": tiny_opt,
    "mistral": tiny_mistral,
    "qwen2": tiny_qwen2,
    "qwen3": tiny_qwen3,
    "gemma3": tiny_gemma3,
}

CORE_FAMILIES = ("gpt2", "llama", "t5")
"""These families differ so much that a method that works on them works on most. They are checked where all take too
long."""


def tiny_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float64, layers: int | None = None) -> Any:
    """A frozen tiny model with random weights, in evaluation mode.

    Weights are larger than an untrained model's, so that attention and norms have an effect. ``layers`` is the number
    of layers of encoder and decoder; None: two.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (FAMILIES[family]() if layers is None else _with_layers(family, layers)).to(dtype)
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.generation_config.pad_token_id = 0
    return model.requires_grad_(False).eval()


def _with_layers(family: str, layers: int) -> Any:
    if "layers" in inspect.signature(FAMILIES[family]).parameters:
        return FAMILIES[family](layers=layers)
    with torch.device("meta"):
        shallow = FAMILIES[family]()
    config = shallow.config
    sizes = ("num_hidden_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
    for name in sizes:
        if hasattr(config, name):
            setattr(config, name, layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[number % len(config.layer_types)] for number in range(layers)]
    return type(shallow)(config)
