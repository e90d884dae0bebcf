"""Bottleneck adapters (Houlsby et al. 2019, Pfeiffer et al. 2021, He et al. 2022)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from bench.method import Method, MethodConfig, Range, SearchSpace
from methods.parts.blocks import blocks, norms
from methods.parts.bottleneck import Activation, add_adapter_behind, add_parallel_adapter, add_sequential_adapter

PARALLEL_SCALE = 4.0


class Adapters(Method):
    """Trains small bottleneck networks in every block: behind its parts, or beside its feed-forward part.

    Sources, by ``placement``:

    - ``houlsby``: Houlsby et al. 2019, section 2.1: behind attention and behind the feed-forward part, before the
      residual is added; starts near zero; the norms are trained as well.
    - ``pfeiffer``: Pfeiffer et al. 2021, section 3.2.1: behind the feed-forward part only.
    - ``parallel``: He et al. 2022, sections 3.3 and 4.6: beside the feed-forward part, from the same input, scaled by
      4, started like LoRA.

    Deviations: in models that normalise before each part there is only one order of adapter, residual and norm, so that
    Pfeiffer's search over orders (in BERT, which normalises after each part) has no counterpart. The nonlinearity is
    ReLU in all placements by default (Houlsby's code uses GELU). Dropout behind a part acts after the adapter. In the
    decoder of an encoder-decoder model ``houlsby`` has an adapter behind cross-attention, too. A mixture of experts,
    which none of the papers has, gets one adapter for all of its experts, behind or beside their common output.
    """

    class Config(MethodConfig):
        """Settings of adapters."""

        placement: Literal["houlsby", "pfeiffer", "parallel"] = Field(
            "pfeiffer",
            description="houlsby: behind attention and feed-forward, norms trained too; pfeiffer: behind feed-forward; "
            "parallel: beside feed-forward",
        )
        bottleneck_size: PositiveInt = Field(64, description="inner size of each adapter")
        activation: Activation = Field("relu", description="nonlinearity of the adapters")
        scale: PositiveFloat | None = Field(
            None, description="factor on what an adapter adds; null: 4 for parallel (He et al. 2022), 1 otherwise"
        )
        train_norms: bool | None = Field(
            None, description="train the scales and shifts of the norms too; null: true for houlsby, false otherwise"
        )

    paper: ClassVar[str] = (
        "Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2021, arXiv:2005.00247; "
        "He et al. 2022, arXiv:2110.04366"
    )
    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=5e-5, high=5e-3)}

    def patch(self, model: Any) -> nn.Module:
        config = self.config
        parallel, houlsby = config.placement == "parallel", config.placement == "houlsby"
        scale = config.scale if config.scale is not None else (PARALLEL_SCALE if parallel else 1.0)
        settings = (config.bottleneck_size, config.activation, scale)
        for block in blocks(model):
            for layer in block.attention_outputs if houlsby else ():
                add_sequential_adapter(layer, *settings, "near_zero")
            if parallel:
                add_parallel_adapter(block, *settings, "zero")
            else:
                add_adapter_behind(block, *settings, "near_zero")
        if config.train_norms or (config.train_norms is None and houlsby):
            for _, norm in norms(model):
                norm.requires_grad_(True)
        module: nn.Module = model
        return module
