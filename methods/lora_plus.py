"""LoRA+ (Hayou et al. 2024): B learns faster than A."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, PositiveFloat
from torch import nn

from bench.method import Range, SearchSpace, trained_parameters
from methods.parts.lora_family import LoRAConfig, LoRAFamily


class LoRAPlus(LoRAFamily):
    """LoRA with a learning rate for B that is a multiple of that for A.

    Source: Hayou et al. 2024, section 4 (a ratio of about 16). ``train.learning_rate`` is that of A.

    Deviations: none. Equal to peft's ``create_loraplus_optimizer``; its further rate for embeddings has no use here.
    """

    class Config(LoRAConfig):
        """Settings of LoRA+."""

        rate_ratio: PositiveFloat = Field(16.0, description="the learning rate of B over that of A")

    paper: ClassVar[str] = "Hayou et al. 2024, arXiv:2402.12354"
    adapts_experts: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=1e-5, high=1e-3)}

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        of_b: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for name, parameter in trained_parameters(model):
            of_b[name.endswith("lora_B")].append(parameter)
        rates = {False: 1.0, True: self.config.rate_ratio}
        return [{"params": part, "lr_scale": rates[is_b]} for is_b, part in of_b.items()]
