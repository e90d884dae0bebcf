"""LoftQ (Li et al. 2023): LoRA that starts at what quantising the base weights took away."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from bench.method import MethodError, lost_in_quantizing, quantization_of, stored_in
from methods.parts.lora_family import LoRAConfig, LoRAFamily, require_rank, svd_factors


class LoftQ(LoRAFamily):
    """LoRA on quantised base weights that starts as the best approximation, of its rank, to the error of quantising.

    Source: Li et al. 2023, algorithm 1 with T = 1, in the form of peft's ``replace_lora_weights_loftq``: A and B start
    as singular vectors of what the weights were without the quantised ones, each times the root of the singular values.
    So the model does not start as the quantised base model, but nearer to the one before.

    Deviations: no further rounds, which quantise the weights without the product once more, because trials share the
    quantised weights. The product is right for any ``alpha``; peft's is for ``alpha`` equal to ``rank``.
    """

    class Config(LoRAConfig):
        """Settings of LoftQ."""

    paper: ClassVar[str] = "Li et al. 2023, arXiv:2310.08659"

    def patch(self, model: Any) -> nn.Module:
        if quantization_of(model) is None:
            kind = stored_in(model)
            fault = "are not quantised" if kind is None else f"are stored in {kind}, without what it took away"
            remedy = "set" if kind is None else "name a checkpoint that is not quantised, and set"
            raise MethodError(
                f"loftq starts from what quantising took away, and these weights {fault}; {remedy} model.quantization, "
                "or choose lora"
            )
        return super().patch(model)

    def begin(self, name: str, layer: Any) -> None:
        if quantization_of(layer.base_layer) is None:
            return  # what is not quantised has lost nothing, and starts as LoRA does
        for rows in layer.part_sizes:
            require_rank(self.config.rank, (rows, layer.lora_A.shape[1]), name)
        lost_weight = lost_in_quantizing(layer.base_layer, name)
        if layer.lora_A.is_meta:
            return
        factors = []
        for lost in layer.rows_of_parts(lost_weight):
            left, values, right = svd_factors(lost, self.config.rank, name)
            roots = (values / self.scaling).sqrt()
            factors.append((roots[:, None] * right, left * roots))
        layer.begin_at(factors)
