"""PiSSA (Meng et al. 2024): LoRA that starts as the largest part of the weight itself."""

from __future__ import annotations

from typing import Any, ClassVar

from methods.parts.lora_family import FactorConfig, StartedLoRA, remember_start_of_rank, svd_factors


class PiSSA(StartedLoRA):
    """LoRA whose A and B start as the largest part of the weight, by singular values; the rest of it is frozen.

    Source: Meng et al. 2024, section 3: A and B are the roots of the values times the vectors. The base weight stays
    as it is: the product of the start, which is stored, is taken off what the layer puts out.

    Deviations: none in the function. The singular values are exact, not those of a randomised algorithm.
    """

    class Config(FactorConfig):
        """Settings of PiSSA."""

    paper: ClassVar[str] = "Meng et al. 2024, arXiv:2404.02948"

    def begin(self, name: str, layer: Any) -> None:
        if layer.lora_A.is_meta:
            remember_start_of_rank(layer, self.config.rank, name)
            return
        factors = []
        for weight in layer.weights_of_parts():
            left, values, right = svd_factors(weight, self.config.rank, name)
            root = (values / self.scaling).sqrt()
            factors.append((root[:, None] * right, left * root))
        layer.start_from(factors)
