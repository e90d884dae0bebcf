"""Prefix tuning (Li & Liang 2021): every attention layer also attends to a trained prefix.

H key/value heads, C head channels, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from bench.method import Lanes, Method, PeftAdapter, Range, SearchSpace
from methods.parts.peft_prefix import prefix_for_peft
from methods.parts.trained_prefix import PrefixConfig, TrainedPrefix


class PrefixTuning(Method):
    """Every attention layer attends to a trained prefix in front of its tokens.

    Source: Li & Liang 2021, section 4. Three parametrisations:

    - ``embedding``: trained prompt embeddings in front of the hidden states of every attention layer, whose frozen
      projections make keys and values of them (PrefixTuningAttentionLayer); D parameters for a token and layer. The
      idea is the per-layer prompt of google-research/prompt-tuning (extended/train/per_layer.py).
    - ``key_value``: free keys and values for every layer, as P-tuning v2 (Liu et al. 2022); 2 H C parameters for a
      token and layer.
    - ``mlp``: the same keys and values, made by an embedding and an MLP in training (Li & Liang's reparametrisation).
      The keys and values are stored; the MLP is dropped.

    In an encoder-decoder model the self-attention of the encoder, that of the decoder and the cross-attention each have
    their own prefixes, as in the authors' ``seq2seq/prefixTuning.py``; with ``mlp`` each of the three has an MLP.

    Deviations from Li & Liang: ``embedding`` is the default parametrisation. Token positions are those of the base
    model unless ``shift_positions`` is set. With relative positions (rotary, T5's bias) the prefix is right before the
    first token; with learned absolute positions, which are added at the input only, the prefix has no position. With
    ``mlp``, ``init: text`` and ``vocabulary`` set the last layer in closed form instead of fitting the MLP by 500 steps
    of Adam, and ``text`` is the default also for large data sets. Tokens see the prefix from beyond a sliding window.
    In a hybrid model only layers with attention have prefixes. Layers that attend to the keys of an earlier layer
    (Gemma 3n, Gemma 4) see the prefix of that layer.
    """

    class Config(PrefixConfig):
        """Settings of prefix tuning."""

    paper: ClassVar[str] = "Li & Liang 2021, arXiv:2101.00190"
    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=1e-3, high=1e-1)}

    def __init__(self, config: Any, tokenizer: Any = None) -> None:
        super().__init__(config, tokenizer)
        self.prefix = TrainedPrefix(config, tokenizer)

    def patch(self, model: Any) -> nn.Module:
        self.prefix.add_to(model)
        module: nn.Module = model
        return module

    @property
    def fusable(self) -> bool:
        return bool(self.config.path == "fused")

    def fuse(self, models: Sequence[nn.Module], lanes: Lanes) -> None:
        self.prefix.join_lanes(models, lanes)

    def adapter_state(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The trained tensors; with ``mlp`` the keys and values that the MLP computes."""
        return self.prefix.state(model)

    def load_adapter_state(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        """Put a stored state into a freshly patched model. Keys and values replace the MLP if there is one."""
        self.prefix.load(model, state)

    def to_peft(self, model: nn.Module) -> PeftAdapter:
        """PREFIX_TUNING of peft: the keys and values of every layer, in any parametrisation."""
        return prefix_for_peft(model, self.config, self.adapter_state(model))
