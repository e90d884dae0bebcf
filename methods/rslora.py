"""rsLoRA (Kalajdzievski 2023): LoRA scaled by the root of its rank."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field, PositiveFloat

from methods.parts.lora_family import LoRAConfig, LoRAFamily


class RankStabilizedLoRA(LoRAFamily):
    """LoRA whose product is scaled by alpha / sqrt(rank), so that a higher rank learns no slower.

    Source: Kalajdzievski 2023, theorem 3.2. Everything else is the method ``lora``.

    Deviations: none. Equal to peft's ``use_rslora``.
    """

    class Config(LoRAConfig):
        """Settings of rsLoRA."""

        alpha: PositiveFloat = Field(32.0, description="the added product is scaled by alpha / sqrt(rank)")

    paper: ClassVar[str] = "Kalajdzievski 2023, arXiv:2312.03732"
    adapts_experts: ClassVar[bool] = True

    @property
    def scaling(self) -> float:
        return float(self.config.alpha / math.sqrt(self.config.rank))
