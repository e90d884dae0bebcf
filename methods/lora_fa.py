"""LoRA-FA (Zhang et al. 2023): LoRA whose A stays as it was drawn."""

from __future__ import annotations

from typing import Any, ClassVar

from methods.parts.lora_family import LoRAConfig, StartedLoRA


class LoRAFrozenA(StartedLoRA):
    """LoRA whose A is frozen as it was drawn: B alone is trained, and inputs of A need not be kept.

    Source: Zhang et al. 2023, section 3.2. A is stored too, or a reloaded adapter would need the same random numbers.

    Deviations: A is drawn as the method ``lora`` draws it. peft's optimiser for LoRA-FA also turns the gradient of B,
    as a later work has it; this is the paper's plain form.
    """

    class Config(LoRAConfig):
        """Settings of LoRA-FA: those of LoRA."""

    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2308.03303"

    def begin(self, name: str, layer: Any) -> None:
        layer.lora_A.requires_grad_(False)
