"""LoRA (Hu et al. 2021): a trained low-rank matrix added to frozen linear layers."""

from __future__ import annotations

from typing import ClassVar

from methods.parts.lora_family import LoRAConfig, LoRAFamily
from methods.parts.lora_layer import LoRALayer

__all__ = ["LoRA", "LoRALayer"]


class LoRA(LoRAFamily):
    """Adds a trained low-rank matrix to frozen linear layers; by default to those of queries and values.

    Source: Hu et al. 2021, section 4.1 (A random, B zero, scaled by alpha / rank) and table 11 (rank 4, alpha 32 on
    queries and values for GPT-2). If a model makes queries, keys and values in one linear layer (GPT-2's c_attn), each
    adapted part of its output has its own A and B, as in the authors' code. In multi-head latent attention the layers
    that make queries and values from the latent vectors are adapted.

    Deviations: none in the function. The experts of a mixture, which the paper does not have, get an A and a B each.
    Dropout is off by default (table 11: 0.1 on E2E and WebNLG, 0 on DART).
    """

    class Config(LoRAConfig):
        """Settings of LoRA."""

    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    adapts_experts: ClassVar[bool] = True
