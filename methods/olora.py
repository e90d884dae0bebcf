"""OLoRA (Buyukakyuz 2024): LoRA that starts from an orthonormal basis of the weight."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from methods.parts.lora_family import FactorConfig, StartedLoRA, remember_start_of_rank, require_rank


class OrthonormalLoRA(StartedLoRA):
    """LoRA whose B starts orthonormal and A triangular, from the QR decomposition of the weight.

    Source: Buyukakyuz 2024, algorithm 1: the first columns of Q and rows of R. The base weight stays as it is: the
    product of the start, which is stored, is taken off what the layer puts out.

    Deviations: none in the function. As in peft the product that is taken off is scaled like the one that is trained.
    """

    class Config(FactorConfig):
        """Settings of OLoRA."""

    paper: ClassVar[str] = "Buyukakyuz 2024, arXiv:2406.01775"

    def begin(self, name: str, layer: Any) -> None:
        if layer.lora_A.is_meta:
            remember_start_of_rank(layer, self.config.rank, name)
            return
        rank, factors = self.config.rank, []
        for weight in layer.weights_of_parts():
            require_rank(rank, weight.shape, name)
            orthonormal, triangular = torch.linalg.qr(weight)
            factors.append((triangular[:rank], orthonormal[:, :rank]))
        layer.start_from(factors)
