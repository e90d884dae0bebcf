"""Mix-and-match adapters (He et al. 2022): a short prefix and parallel adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from bench.method import Method, Range, SearchSpace
from methods.parts.blocks import blocks
from methods.parts.bottleneck import Activation, add_parallel_adapter
from methods.parts.trained_prefix import PrefixConfig, TrainedPrefix


class MixAndMatchAdapters(Method):
    """Trains a short prefix for attention, and a large scaled adapter beside every feed-forward part.

    Source: He et al. 2022, section 4.6 and table 6 (MAM adapter: prefix of length 30, adapters with bottleneck 512 and
    scale 4), and the authors' exps/run_xsum.sh (reparametrisation with 800 hidden units, start of LoRA, no norm inside
    the adapters).

    Deviations: the prefix starts from words by default, as in prefix_tuning, and not at random. Token positions are
    those of the base model unless ``shift_positions`` is set.
    """

    class Config(PrefixConfig):
        """Settings of prefix tuning, with this paper's defaults, and of the adapters."""

        default_mlp_hidden_size: ClassVar[int] = 800

        num_prompt_tokens: PositiveInt = Field(30, description="prompt tokens in front of every attention layer")
        parametrization: Literal["embedding", "key_value", "mlp"] = Field(
            "mlp", description="of the prefix: embedding, key_value or mlp, as in prefix_tuning"
        )
        bottleneck_size: PositiveInt = Field(512, description="inner size of each adapter")
        activation: Activation = Field("relu", description="nonlinearity of the adapters")
        scale: PositiveFloat = Field(4.0, description="factor on what an adapter adds")

    paper: ClassVar[str] = "He et al. 2022, arXiv:2110.04366"
    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=1e-4, high=1e-2)}

    def __init__(self, config: Any, tokenizer: Any = None) -> None:
        super().__init__(config, tokenizer)
        self.prefix = TrainedPrefix(config, tokenizer)

    def patch(self, model: Any) -> nn.Module:
        for block in blocks(model):
            add_parallel_adapter(block, self.config.bottleneck_size, self.config.activation, self.config.scale, "zero")
        self.prefix.add_to(model)
        module: nn.Module = model
        return module

    def adapter_state(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The trained tensors, with the keys and values that the prefix's MLP computes in place of the MLP."""
        return self.prefix.state(model)

    def load_adapter_state(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        """Put a stored state into a freshly patched model. Keys and values replace the prefix's MLP."""
        self.prefix.load(model, state)
